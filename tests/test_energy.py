"""Energies against a brute-force re-implementation of the paper's formulas."""
import math

import pytest
import torch

from cebm_nb.zoo import create_model


def brute_energy(encoder, means, x):
    energies = []
    for image in x:
        out = encoder(image[None])[0].reshape(-1, 2)
        terms = []
        for mean in means:
            total = 0.
            for (a, b), m in zip(out, mean):
                n1, n2 = m + a, -0.5 - b * b
                total += (-n1**2 / (4 * n2) - torch.log(-2 * n2) / 2) - m**2 / 2
            terms.append(total)
        energies.append(-torch.logsumexp(torch.stack(terms), 0) + math.log(len(means)))
    return torch.stack(energies)


@pytest.mark.parametrize('shape', [(1, 28, 28), (3, 32, 32)])
@pytest.mark.parametrize('name', ['cebm', 'gmm-cebm'])
@pytest.mark.parametrize('dtype, tolerance', [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_energy_equals_brute_force(name, shape, dtype, tolerance):
    model = create_model(name, shape, **dict(components=3) if name == 'gmm-cebm' else {}).to(dtype)
    with torch.no_grad(): model.encoder.net[-1].weight.mul_(30)  # energies of the size that training gives
    x = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0)).to(dtype) * 2 - 1
    means = model.prior.natural[..., 0].reshape(-1, 128)
    with torch.no_grad(): ours, brute = model.energy(x), brute_energy(model.encoder, means, x)
    assert brute.abs().min() > 0.1
    assert ((ours - brute) / brute).abs().max() < tolerance


@pytest.mark.parametrize('name', ['cebm', 'gmm-cebm'])
def test_joint_is_posterior_times_marginal(name):
    model = create_model(name, (1, 8, 8), latent_dim=5).double()
    x, z = torch.rand(6, 1, 8, 8).double() * 2 - 1, torch.randn(6, 5).double()
    assert torch.allclose(model.log_joint(x, z), model.posterior(x).log_prob(z) - model.energy(x), rtol=1e-9)
    assert torch.allclose(model.responsibilities(x).sum(1), torch.ones(6).double())


@pytest.mark.parametrize('name', ['cebm', 'gmm-cebm'])
def test_a_learned_prior_learns_and_stays_valid(name):
    model = create_model(name, (2,), latent_dim=3, learn_prior=True)
    before = model.prior.natural.detach().clone()
    optimiser = torch.optim.Adam(model.parameters(), lr=0.5)
    for _ in range(20):
        optimiser.zero_grad()
        model.energy(torch.randn(8, 2)).square().mean().backward()
        optimiser.step()
    assert (model.prior.natural != before).any()
    assert (model.prior.natural[..., 1] < 0).all()
    assert not list(create_model(name, (2,)).prior.parameters())


@pytest.mark.parametrize('shape', [(1, 28, 28), (3, 32, 32)])
def test_responsibilities_are_bayes_rule(shape):
    model = create_model('gmm-cebm', shape, latent_dim=16, components=5).double()
    with torch.no_grad(): model.encoder.net[-1].weight.mul_(60)
    x = torch.rand(6, *shape, generator=torch.Generator().manual_seed(1)).double() * 2 - 1
    means = model.prior.natural[..., 0]
    with torch.no_grad():
        likelihood = torch.stack([torch.exp(-brute_energy(model.encoder, mean[None], x)) for mean in means], 1)  # p(x | y = k), up to a constant of x
        shares = model.responsibilities(x)
    assert torch.allclose(shares, likelihood / likelihood.sum(1, keepdim=True), atol=1e-9)
    assert torch.allclose(shares.sum(1), torch.ones(6).double())
    assert shares.max() > 0.3  # not all the same
