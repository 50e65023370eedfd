"""The fast Langevin path against the plain one, and what it must not do."""
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cebm_nb.bench import bench_growth, growths, plain_model, plain_sample, step_memory, step_operations, step_table
from cebm_nb.conditional import fill_in
from cebm_nb.fast import FrozenEnergy, native_precisions
from cebm_nb.sgld import SGLD, ReplayBuffer
from cebm_nb.data import load_data
from cebm_nb.models import CEBM
from cebm_nb.settings import Budget, UserError, get_settings
from cebm_nb.trainer import EnergyTrainer
from cebm_nb.zoo import create_model

shapes = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (1, 17, 23)]


def images(n, shape, seed=0): return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def plain_chain(energy, x, kernel, seed):  # the formula, a line a step
    generator = torch.Generator().manual_seed(seed)
    for _ in range(kernel.steps):
        x = x.detach().requires_grad_()
        x = x - kernel.step_size / 2 * torch.autograd.grad(energy(x).sum(), x)[0] + kernel.noise_std * torch.empty_like(x).normal_(generator=generator)
    return x.detach()


@pytest.mark.parametrize('shape', shapes)
@pytest.mark.parametrize('name', ['cebm', 'gmm-cebm', 'igebm'])
def test_twenty_steps_are_those_of_the_plain_loop(name, shape):
    model, kernel, x = create_model(name, shape, latent_dim=32), SGLD(steps=20), images(6, shape)
    with torch.no_grad(): model.encoder.net[-1].weight.mul_(10)  # gradients of the size that training gives
    fast, plain = kernel(FrozenEnergy(model, 'float32'), x, torch.Generator().manual_seed(3)), plain_chain(model.energy, x, kernel, 3)
    assert (plain - x).norm() > 0.1
    assert (fast - plain).norm() < 1e-4 * (plain - x).norm()


@pytest.mark.parametrize('options', [dict(encoder='residual'), dict(encoder='mlp'), dict(encoder_options=dict(activation='relu')), dict(encoder_options=dict(hidden=(32,))), dict(learn_prior=True)])
def test_other_networks_too(options):
    model, x = create_model('gmm-cebm', (1, 12, 12), latent_dim=8, **options), images(5, (1, 12, 12))
    ours = FrozenEnergy(model, 'float32').value_and_gradient(x)
    y = x.clone().requires_grad_()
    energy = model.energy(y)
    gradient, = torch.autograd.grad(energy.sum(), y)
    assert torch.allclose(ours[0], energy.detach(), atol=1e-5) and torch.allclose(ours[1], gradient, rtol=1e-4, atol=1e-6)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_double_precision_stays_double():
    model, x = create_model('cebm', (1, 12, 12), latent_dim=8).double(), images(5, (1, 12, 12)).double()
    y = x.clone().requires_grad_()
    gradient, = torch.autograd.grad(model.energy(y).sum(), y)
    energy, ours = FrozenEnergy(model).value_and_gradient(x)
    assert ours.dtype == energy.dtype == torch.float64 and torch.allclose(ours, gradient, rtol=1e-10)


def test_gradients_leave_weights_alone_and_follow_them():
    model, x = create_model('igebm', (1, 12, 12)), images(4, (1, 12, 12))
    energy = FrozenEnergy(model, 'float32')
    before = energy(x)
    with torch.no_grad(): model.encoder.net[0].weight.add_(1.)
    energy.value_and_gradient(x)
    assert not torch.equal(energy(x), before) and torch.equal(energy(x), FrozenEnergy(model, 'float32')(x))
    assert not energy(x).requires_grad and all(p.grad is None and p.requires_grad for p in model.parameters())


def test_pieces_of_a_batch_give_the_batch():
    model, x = create_model('cebm', (1, 28, 28)), images(50, (1, 28, 28))
    whole, pieces = FrozenEnergy(model, 'float32'), FrozenEnergy(model, 'float32')
    value, gradient = whole.value_and_gradient(x)
    pieces.piece = 7
    assert torch.allclose(pieces(x), value, atol=1e-5) and torch.allclose(pieces.value_and_gradient(x)[1], gradient, rtol=1e-4, atol=1e-6)


def test_it_serves_inside_another_energy():
    model, x, known = create_model('cebm', (1, 12, 12)), images(4, (1, 12, 12)), torch.zeros(1, 12, 12, dtype=torch.bool)
    known[:, :6] = True
    fast, plain = (fill_in(energy, SGLD(steps=5), x, known, torch.Generator().manual_seed(0)) for energy in (FrozenEnergy(model, 'float32'), model.energy))
    assert torch.equal(fast[..., :6, :], x[..., :6, :]) and torch.allclose(fast, plain, atol=1e-5)


@pytest.mark.parametrize('name, tolerance', [('cebm', 0.01), ('gmm-cebm', 0.03), ('igebm', 0.01)])  # a mixture's energies are differences of larger numbers
def test_bfloat16_energies_are_near(name, tolerance):
    model, x = create_model(name, (1, 28, 28)), images(40, (1, 28, 28))
    with torch.no_grad(): model.encoder.net[-1].weight.mul_(10)
    exact, half = FrozenEnergy(model, 'float32')(x), FrozenEnergy(model, 'bfloat16')(x)
    assert half.dtype == torch.float32 and (half - exact).abs().max() < tolerance * exact.abs().max()


def test_a_model_without_weights():
    class Bowl(torch.nn.Module):
        def energy(self, x): return x.square().flatten(1).sum(1)
    x = images(3, (1, 8, 8))
    energy, gradient = FrozenEnergy(Bowl(), 'float32').value_and_gradient(x)
    assert torch.allclose(energy, x.square().sum((1, 2, 3))) and torch.allclose(gradient, 2 * x)


class Hooked(torch.nn.Module):
    "An own energy: of another form, with a hook, on layers of its own."
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        self.net[1].register_forward_pre_hook(lambda module, inputs: (2 * inputs[0],))
    def energy(self, x): return 3 * self.net(x)[:, 0]


def test_an_energy_of_ones_own_is_taken_at_its_word():
    class Louder(CEBM):
        def energy(self, x): return 5 * super().energy(x)
    made = create_model('cebm', (1, 8, 8), latent_dim=4)
    for model in (Hooked(), Louder(made.encoder, made.prior)):
        x = images(5, (1, 8, 8)).requires_grad_()
        energy = model.energy(x)
        gradient, = torch.autograd.grad(energy.sum(), x)
        ours = FrozenEnergy(model, 'float32').value_and_gradient(x.detach())
        assert torch.allclose(ours[0], energy, rtol=1e-5) and torch.allclose(ours[1], gradient, rtol=1e-4, atol=1e-7)


def torchebm_sampler(step, noise, steps):
    core, samplers = pytest.importorskip('torchebm.core'), pytest.importorskip('torchebm.samplers')
    class Energy(core.BaseModel):
        def __init__(self, energy): super().__init__(); self.energy = energy
        def forward(self, x): return self.energy(x)
    return lambda energy, x0, generator=None: samplers.LangevinDynamics(Energy(energy), step_size=step, noise_scale=noise / (2 * step)**0.5).sample(x=x0, n_steps=steps)


def ebmkit_sampler(step, noise, steps):
    chain = pytest.importorskip('ebm.samplers.langevin').LangevinDynamics(step, steps, noise)
    return lambda energy, x0, generator=None: chain.sample(energy, x0)


@pytest.mark.parametrize('make', [torchebm_sampler, ebmkit_sampler])
def test_samplers_of_other_libraries_move_chains_as_ours_do(make):
    data, settings = load_data('digits'), get_settings('smoke', sampler=dict(steps=5))
    model, x = create_model('cebm', data.in_shape, latent_dim=8), images(40, data.in_shape)
    with torch.no_grad(): model.encoder.net[-1].weight.mul_(60)
    ours = SGLD(2., 0., steps=5)(FrozenEnergy(model, 'float32'), x)
    theirs = make(1., 1e-9, 5)(FrozenEnergy(model, 'float32'), x)                 # all but without noise, so that the gradient is seen
    assert (ours - x).norm() > 0.5 and (theirs - ours).norm() < 1e-3 * (ours - x).norm()
    trainer = EnergyTrainer(model, data, settings, device='cpu', precision='float32', sampler=make(1., 7.5e-3, 5))
    before = trainer.buffer.chains.clone()
    trainer.fit(Budget(steps=11))
    assert (trainer.buffer.chains != before).any() and trainer.buffer.chains.isfinite().all() and trainer.step == 11


def test_the_benchmark_measures_the_same_chain():
    model, x = create_model('cebm', (1, 28, 28)), images(10, (1, 28, 28))
    kernel = SGLD(noise_std=1e-12, steps=5)
    assert torch.allclose(plain_sample(plain_model(model), kernel, x), kernel(FrozenEnergy(model, 'float32'), x), atol=1e-5)
    assert step_operations(model, x) == 10 * step_operations(model, x[:1])


def test_growth_and_memory(monkeypatch):
    monkeypatch.setitem(growths, 'batch', (10, 20))
    records = bench_growth('batch', repeats=1, memory=False)
    assert [r['batch'] for r in records] == [10, 20] and records[1]['gflop'] == pytest.approx(2 * records[0]['gflop'])
    small, large = step_memory(100), step_memory(800)
    if not math.isnan(small): assert 5 < small and 10 < large < 8 * small + 50  # MiB: at most in proportion


def test_bench_command(tmp_path):
    done = subprocess.run([Path(sys.executable).parent / 'cebm', 'bench', '--only', 'step', '--repeats', '1', '--out', 'times'], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / 'times' / 'bench.json').read_text())['step']
    fast = native_precisions(torch.device('cpu'))
    assert set(record) >= {'plain', *fast, *(f'matmul {p}' for p in fast)} and ('bfloat16' in record) == ('bfloat16' in fast)
    table = step_table(record)
    assert table.loc['plain', 'against plain'] == 1. and 'torchebm' in done.stdout
    assert table.loc[fast[-1], 'GFLOP/s'] == pytest.approx(1000 * record['gflop'] / record[fast[-1]], abs=1)


def test_shapes_are_those_of_the_model_and_of_the_buffer():
    energy, buffer = FrozenEnergy(create_model('cebm', (1, 28, 28), latent_dim=4)), ReplayBuffer(8, (3,))
    for shape in ((2, 1, 31, 31), (2, 3, 28, 28), (2, 28, 28)):
        with pytest.raises(UserError, match='shape'): energy(torch.zeros(shape))
        with pytest.raises(UserError, match='shape'): SGLD(steps=1)(energy, torch.zeros(shape))
    index, chains = buffer.draw(2)
    for wrong in (torch.ones(1, 1), torch.ones(2, 1), torch.ones(3, 3)):
        with pytest.raises(UserError, match='shape'): buffer.update(index, wrong)
