"""One density: domain, temperature and families, against sums over all z, quadrature over x and an independent library."""
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Normal

import cebm_nb as cn
from cebm_nb.conditional import conditional_records
from cebm_nb.likelihood import annealed_weights
from cebm_nb.sgld import reflect

FAMILIES = sorted(cn.FAMILIES)


def all_z(family):  # values of z (n, dim) and the logarithms of their weights: a sum over them is an integral over all z
    def line(low, high, n): return torch.linspace(low, high, n, dtype=torch.float64), torch.full((n,), (high - low) / (n - 1), dtype=torch.float64)
    kind = type(family).__name__
    if kind in ('Bernoulli', 'Categorical'):
        z = torch.arange(getattr(family, 'values', 2)).double()
        w = torch.ones_like(z)
    elif kind == 'Gamma':
        u, w = line(-45, 5, 601)
        z, w = u.exp(), w * u.exp()
    elif kind == 'VonMises':
        z, w = line(-math.pi, math.pi, 201)
        w[[0, -1]] /= 2
    else: z, w = line(-11, 11, 321)
    if family.dim == 1: return z[:, None], w.log()
    return torch.cartesian_prod(z, z), torch.cartesian_prod(w.log(), w.log()).sum(1)


@pytest.mark.parametrize('components', [None, 3])
@pytest.mark.parametrize('dim', [1, 2])
@pytest.mark.parametrize('name', FAMILIES)
def test_every_family_is_conjugate_through_the_public_face(name, dim, components):
    family = cn.FAMILIES.find(name)(dim)
    torch.manual_seed(dim)
    prior = cn.Prior(family) if components is None else cn.MixturePrior.random(family, components)
    model = cn.CEBM(nn.Linear(3, math.prod(family.natural_shape)), prior, in_shape=(3,)).double()
    x, (z, log_weight) = torch.randn(4, 3).double(), all_z(family)
    for temperature in (1., 0.25):
        model.temperature.fill_(temperature)
        with torch.no_grad():
            many = x.repeat_interleave(len(z), 0)
            joint = model.log_joint(many, z.repeat(4, 1)).view(4, -1)
            log_p, posterior = model.log_prob_unnormalised(x.clamp(-1, 1)), model.posterior(x)
            marginal = torch.logsumexp(joint + log_weight, 1)
            np.testing.assert_allclose(marginal, -model.energy(x) / temperature, rtol=1e-9, atol=1e-9)
            inside = model.posterior(x[:1]).log_prob(z)
            np.testing.assert_allclose(inside, joint[0] - marginal[0], rtol=1e-9, atol=1e-9)
            assert log_p.isfinite().all() and posterior.batch_shape == (4,)
            if temperature == 1:
                np.testing.assert_allclose(joint, (model.log_factor(many, z.repeat(4, 1)) + model.log_prior(z.repeat(4, 1))).view(4, -1), rtol=1e-9, atol=1e-9)
            if components:  # p(component | x) from the joint density of each component
                t = model.suff_stats(x)
                each = torch.stack([torch.logsumexp(family.inner(t[:, None], z) + family.log_prob(n, z) + log_weight, 1) for n in prior.natural], 1)
                np.testing.assert_allclose(model.responsibilities(x), each.softmax(1), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('name', FAMILIES)
def test_every_family_trains_saves_and_loads(name, tmp_path):
    run = cn.train('cebm', 'digits', preset='smoke', steps=12, options=dict(family=name, latent_dim=6), out=tmp_path / 'run', progress=False)
    model, x = cn.load_model(tmp_path / 'run'), cn.load_data('digits').test.to_float(slice(20))
    torch.testing.assert_close(model.encode(x), run.model.encode(x))
    assert model.encode(x).isfinite().all()
    assert math.isclose(float(model.temperature), 0.0075**2 / 2, rel_tol=1e-6) and float(model.reach) == 1.5
    torch.testing.assert_close(model.log_prob_unnormalised(x), -model.energy(x) / model.temperature)
    assert run.chains.abs().max() <= 1.5
    result = cn.evaluate(run, cn.load_data('digits'), parts=['information', 'neighbours'])
    _, pictures = conditional_records(run, cn.load_data('digits'), n=4, candidates=(5,))
    assert 'inpainted' in pictures and ('traversals' in pictures) == (name in ('gaussian', 'full-gaussian', 'von-mises'))
    assert -0.01 <= result['information'][0]['mutual_information'] <= result['information'][0]['at_most'] and result['information'][0]['kl'] > -0.01


@pytest.mark.parametrize('name', ['bernoulli', 'categorical', 'von-mises'])
def test_what_cannot_be_differentiated_is_refused_by_the_vae(name):
    with pytest.raises(cn.UserError): cn.create_model('vae', (1, 8, 8), family=name)


@pytest.mark.parametrize('prior', [True, False])
def test_chains_stay_in_the_domain(prior):
    model = cn.create_model('cebm', (5,), latent_dim=4, seed=2)
    with torch.no_grad():
        for p in model.parameters(): p.mul_(1 if prior else 5)  # a steep one too
    x = cn.SGLD(2., 0.3, 2000, reach=1.5)(model, torch.zeros(100, 5), torch.Generator().manual_seed(0))
    assert x.isfinite().all() and x.abs().max() <= 1.5


def test_reflection_is_that_of_a_ball_between_walls():
    generator = torch.Generator().manual_seed(0)
    for x in (20 * torch.randn(200, generator=generator)).tolist():
        y, reach = x, 1.3
        while abs(y) > reach: y = 2 * reach - y if y > reach else -2 * reach - y
        assert abs(reflect(torch.tensor([x], dtype=torch.float64), reach).item() - y) < 1e-9


class Wells(nn.Module):  # two wells in the plane, far inside a box of 8
    in_shape, reach, temperature = (2,), torch.tensor(8.), torch.tensor(1.)

    def forward(self, x): return -torch.logsumexp(torch.stack([-(x - 1.5).square().sum(1), -(x + 1.5).square().sum(1) / 0.5 - 1]), 0)
    def log_prob_unnormalised(self, x): return -self(x)


def test_what_is_outside_a_domain_is_refused(tmp_path):
    F = cn.families
    skewed = torch.tensor([[0., -1., 5.], [0., 0., -1.]])  # precisions that are not symmetric: no density
    for family, natural in ((F.Gamma(1), torch.tensor([[-.5, -1.]])), (F.Gamma(1), torch.tensor([[1., 1.]])), (F.Gaussian(1), torch.tensor([[0., .5]])), (F.FullGaussian(2), skewed)):
        with pytest.raises(cn.UserError, match='natural domain'): cn.Prior(family, natural)
        with pytest.raises(cn.UserError, match='natural domain'): cn.MixturePrior(family, torch.stack([family.standard(), natural]))
    covariance = torch.eye(8) + .999 * torch.rand(8, 8, generator=torch.Generator().manual_seed(0)).mm(torch.rand(8, 8, generator=torch.Generator().manual_seed(0)).mT)
    precise = torch.cat([torch.zeros(8, 1), -torch.linalg.inv(covariance) / 2], 1)  # symmetric up to rounding
    assert cn.Prior(F.FullGaussian(8), precise).energy(torch.zeros(1, 8, 9)).isfinite()
    line = np.linspace(-.1, .1, 200)[:, None]
    edge = cn.ImageData.from_arrays(line, test=line)  # its largest value is another one in float32
    options = dict(steps=2, progress=False, validate_every=0, preset='smoke', options=dict(latent_dim=2))
    cn.train('cebm', edge, out=tmp_path / 'edge', sampler=dict(reach=.1), **options)
    for data, reach in ((cn.load_data('digits'), .9), (cn.ImageData.from_arrays(torch.randn(200, 2).numpy()), .1)):  # walls inside the data would fold them
        with pytest.raises(cn.UserError, match='reach must be at least'): cn.train('cebm', data, out=tmp_path / 'no', sampler=dict(reach=reach), **options)
        run = cn.train('cebm', data, out=tmp_path / data.name, sampler=dict(reach=data.extent), **options)
        assert run.model.log_prob_unnormalised(data.train.to_float(slice(50))).isfinite().all()
    model, x = cn.create_model('cebm', (2,), latent_dim=2), torch.zeros(4, 2)
    for samples, steps in ((x, 0), (x, -1), (x + math.nan, 5), (x + 2, 5)):
        with pytest.raises(cn.UserError): cn.bracket(model, samples, steps)
    for more in (dict(points=0), dict(reach=math.nan), dict(reach=-1.)):
        with pytest.raises(cn.UserError): cn.log_partition(model, **more)


def test_the_bracket_holds_log_z_by_quadrature_and_agrees_with_another_library():
    model = Wells()
    exact = cn.log_partition(model)
    assert math.isclose(exact, math.log(math.pi + math.pi / 2 / math.e), abs_tol=1e-4)
    held = narrow = 0
    for seed in range(20):
        g = torch.Generator().manual_seed(seed)
        first = torch.rand(2000, generator=g) < math.pi / math.exp(exact)                # exact samples of the two wells
        x = torch.where(first[:, None], 1.5 + 0.5**0.5 * torch.randn(2000, 2, generator=g), -1.5 + 0.5 * torch.randn(2000, 2, generator=g))
        b = cn.bracket(model, x, 150, generator=g)
        error = 3 * ((1 / b.ess_lower + 1 / b.ess_upper) - 2 / 2000)**0.5
        narrow += abs(b.upper - b.lower) < 0.1
        held += b.lower - error < exact < b.upper + error
    assert held >= 19 and narrow >= 19
    torch.manual_seed(0)
    from ebm.ais import ais_log_z
    theirs = ais_log_z(model, (2,), base_scale=3., n_temps=150, n_chains=500)
    assert abs(theirs.log_z - exact) < 4 * theirs.stderr + 0.02


def test_annealing_a_gaussian_into_a_narrower_one_has_the_exact_weight():
    g = torch.Generator().manual_seed(0)
    start = torch.empty(2000, 1).uniform_(-4, 4, generator=g)
    weights = annealed_weights(lambda x: Normal(0, 0.2).log_prob(x).sum(1), start, 4., torch.linspace(0, 1, 100, dtype=torch.float64), g)
    assert abs(math.log(8) + weights.logsumexp(0).item() - math.log(2000)) < 0.1


def test_information_lies_between_nothing_and_everything():
    from cebm_nb.representation import information_record
    data = cn.load_data('mnist-5k')
    record = information_record(cn.load_model('cebm-mnist-5k'), data.test.to_float(slice(200)))
    assert 0 < record['mutual_information'] < record['kl'] < record['at_most'] == math.log(200)


@pytest.mark.parametrize('dim', [1, 2])
def test_the_integral_settles_at_the_walls_and_not_without_them(dim):
    model = cn.create_model('cebm', (dim,), latent_dim=4, seed=3)
    inside = [cn.log_partition(model, 1200, reach=r) for r in (0.75, 1.5, 3., 6.)]     # half the box, the box, and beyond it
    assert inside[0] < inside[1] and all(math.isclose(z, inside[1], abs_tol=0.02) for z in inside[2:])
    model.reach.fill_(1e3)
    without = [cn.log_partition(model, reach=r) for r in (10., 100., 1000.)]
    assert without[0] < without[1] < without[2]                                         # each range has more of it
