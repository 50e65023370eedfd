"""What is different on a GPU: CUDA graphs, exactness, and checkpoints that travel. Skipped on a machine without one."""
import json
import signal
import subprocess
import sys

import pytest
import torch

from cebm_nb.data import load_data
from cebm_nb.evaluation import evaluate
from cebm_nb.fast import CUDAGraphs, FrozenEnergy, _Captured, exact_convolutions
from cebm_nb.models import CEBM
from cebm_nb.runs import Run, resume, train
from cebm_nb.settings import change, get_settings
from cebm_nb.trainer import EnergyTrainer
from cebm_nb.sgld import SGLD
from cebm_nb.zoo import create_model, load_model
from cebm_nb.samples import sample_images

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
models = ['cebm', 'gmm-cebm', 'igebm']


def sharp(name, shape=(1, 28, 28), **options):  # with gradients of the size that training gives
    model = create_model(name, shape, latent_dim=32, **options)
    with torch.no_grad(): model.encoder.net[-1].weight.mul_(10)
    return model.cuda()


def images(n, shape=(1, 28, 28)): return (torch.rand(n, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1).cuda()


def noise(seed): return torch.Generator('cuda').manual_seed(seed)


@pytest.mark.parametrize('shape', [(1, 28, 28), (3, 32, 32), (1, 17, 23)])
@pytest.mark.parametrize('name', models)
def test_a_replayed_chain_is_that_of_the_plain_loop(name, shape):
    model, kernel, start = sharp(name, shape), SGLD(steps=20), images(6, shape)
    energy = FrozenEnergy(model, 'float32')
    fast, plain, generator = kernel(energy, start, noise(3)), start, noise(3)
    assert isinstance(*energy.graphs.captured.values(), _Captured)
    with exact_convolutions(start.device):
        for _ in range(20):
            x = plain.detach().requires_grad_()
            plain = x - torch.autograd.grad(model.energy(x).sum(), x)[0] + kernel.noise_std * torch.empty_like(x).normal_(generator=generator)
    plain = plain.detach()
    assert (plain - start).norm() > 0.1 and (fast - plain).norm() < 1e-4 * (plain - start).norm()
    assert torch.equal(fast, kernel(energy, start, noise(3)))  # all of it replayed, the same


@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
@pytest.mark.parametrize('name', models)
def test_a_graph_follows_the_weights(name, precision):
    model, x = sharp(name, **(dict(learn_prior=True) if name != 'igebm' else {})), images(10)
    energy = FrozenEnergy(model, precision)
    for _ in range(4): before = energy.value_and_gradient(x)
    with torch.no_grad():
        for p in model.parameters(): p.mul_(1.1)
    energy.refresh()
    for ours, fresh in zip(energy.value_and_gradient(x), FrozenEnergy(model, precision).value_and_gradient(x)): assert torch.allclose(ours, fresh, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(energy(x), before[0], rtol=1e-2)
    first = energy.value_and_gradient(x)[1]
    kept = first.clone()
    energy.value_and_gradient(-x)
    assert torch.equal(first, kept)  # what was given is not written over


def test_a_graph_notices_that_weights_have_moved():
    model, x = sharp('igebm'), images(5)
    energy = FrozenEnergy(model, 'float32')
    for _ in range(4): before = energy.value_and_gradient(x)
    model.cpu()
    with torch.no_grad():
        for p in model.parameters(): p.mul_(1.1)
    model.cuda()
    energy.refresh()
    for _ in range(4): after = energy.value_and_gradient(x)
    expected = FrozenEnergy(model, 'float32').value_and_gradient(x)
    assert torch.allclose(after[0], expected[0], rtol=1e-5) and torch.allclose(after[1], expected[1], rtol=1e-4, atol=1e-6) and not torch.allclose(after[0], before[0], rtol=1e-2)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason='one GPU')
def test_two_gpus():
    for index in (0, 1, 0):  # the capture must be on the stream of the model's device, not on that of the first one
        device = torch.device('cuda', index)
        model, x = sharp('cebm').to(device), images(5).to(device)
        energy = FrozenEnergy(model, 'float32')
        for scale in (1., 0.5, 0.2, -0.5, -1.): value, _ = energy.value_and_gradient(scale * x)
        assert isinstance(*energy.graphs.captured.values(), _Captured) and torch.allclose(value, energy(-x), rtol=1e-5)


def test_old_graphs_go():
    energy = FrozenEnergy(sharp('cebm'))
    for n in (2, 3, 4, 5):
        for _ in range(4): energy.value_and_gradient(images(n))
    assert [key[0][0][0] for key in energy.graphs.captured] == [3, 4, 5]


def test_what_cannot_be_captured_is_called():
    class Looks(CEBM):
        def forward(self, x): return super().forward(x) * (1. if x.sum().item() < 1e30 else 2.)
    model, other = sharp('cebm'), sharp('cebm')
    other.__class__ = Looks
    looks, x = FrozenEnergy(other, 'float32'), images(5)
    with pytest.warns(UserWarning, match='could not be captured'):
        for _ in range(5): value, gradient = looks.value_and_gradient(x)
    expected = FrozenEnergy(model, 'float32').value_and_gradient(x)
    assert torch.allclose(value, expected[0], rtol=1e-5) and torch.allclose(gradient, expected[1], rtol=1e-4, atol=1e-6)
    assert list(looks.graphs.captured.values()) == [None]
    assert torch.cuda.get_sync_debug_mode() == 0 and torch.cuda.current_stream() == torch.cuda.default_stream()


@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
@pytest.mark.parametrize('name, young', [*((name, {}) for name in models), ('cebm', dict(restart_prob=0.2, burn_in=2, start=100))])
def test_training_from_graphs_is_training(name, young, precision, monkeypatch):
    data, settings = load_data('digits'), get_settings('cpu', name, sampler=dict(steps=5), batch_size=50, optimiser=dict(warmup=0), buffer=young)
    def trained(updates):
        trainer = EnergyTrainer(create_model(name, data.in_shape), data, settings, 3, 'cuda', precision)
        rows = [{k: float(v) for k, v in trainer.update(0.).items()} for _ in range(updates)]
        if updates > 8: trainer.use(change(settings, dict(sampler=dict(steps=8), optimiser=dict(grad_clip=0.1))))  # as a rollback does
        rows += [{k: float(v) for k, v in trainer.update(0.).items()} for _ in range(6 if updates > 8 else 0)]
        return trainer, rows
    trainer, replayed = trained(12)
    assert isinstance(*trainer.graphs.captured.values(), _Captured)
    monkeypatch.setattr(CUDAGraphs, '__call__', lambda self, function, *tensors: function(*tensors))
    _, called = trained(12)
    for a, b in zip(replayed, called): assert a == pytest.approx(b, rel=2e-3, abs=2e-3)
    assert replayed[0]['energy_data'] != pytest.approx(replayed[11]['energy_data'], rel=0.05)


@pytest.mark.parametrize('name, tolerance', [('cebm', 0.01), ('gmm-cebm', 0.03), ('igebm', 0.01)])
def test_precisions(name, tolerance):
    model, x = sharp(name), images(40)
    exact, half = FrozenEnergy(model, 'float32')(x), FrozenEnergy(model, 'bfloat16')(x)
    on_cpu = FrozenEnergy(sharp(name).cpu(), 'float32')(x.cpu())
    assert torch.allclose(exact.cpu(), on_cpu, rtol=1e-4, atol=1e-4) and (half - exact).abs().max() < tolerance * exact.abs().max()


@pytest.mark.parametrize('name', ['cebm', 'gmm-cebm', 'igebm', 'vae', 'gmm-vae', 'bigan', 'gmm-bigan'])
def test_same_seed_same_run_and_a_resumed_one_too(name, tmp_path):
    def weights(folder): return load_model(folder).state_dict()
    def interrupt(trainer, used):
        if trainer.step == 25: signal.raise_signal(signal.SIGINT)
    options = dict(model=name, data='digits', preset='smoke', steps=60, device='cuda', progress=False)
    for part in 'ab': train(out=tmp_path / part, **options)
    assert train(out=tmp_path / 'c', callbacks=(interrupt,), **options).config['run']['finished'] | dict(seconds=0) == dict(status='interrupted', updates=25, seconds=0)
    resume(tmp_path / 'c', progress=False)
    first = weights(tmp_path / 'a')
    for other in 'bc': assert all(torch.equal(first[k], v) for k, v in weights(tmp_path / other).items()), other


def test_a_run_travels_to_the_processor_and_back(tmp_path):
    data = load_data('digits')
    run = train('cebm', data='digits', preset='smoke', steps=40, device='cuda', out=tmp_path / 'run', progress=False)
    moved = Run.load(tmp_path / 'run')
    x = data.test.to_float(slice(50))
    assert next(moved.model.parameters()).device.type == 'cpu'
    assert torch.allclose(moved.model.encode(x), run.model.encode(x.cuda()).cpu(), rtol=1e-2, atol=1e-3)
    found = [evaluate(moved, data, parts=['few-label'], labels=(10,), draws=2, device=device)['few_label'][0]['accuracy_mean'] for device in ('cpu', 'cuda')]
    assert found[0] == pytest.approx(found[1], abs=0.01)
    assert sample_images(moved, 4, steps=10).shape == (4, 1, 8, 8)


def test_commands(tmp_path):
    for words in ['train --data digits --preset smoke --steps 30 --out run --quiet', 'eval run --draws 2 --only few-label,ood', 'sample run --steps 5']:
        done = subprocess.run([sys.executable, '-c', 'from cebm_nb.cli import main; main()', *words.split()], cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
    assert 'cuda' in json.loads((tmp_path / 'run' / 'config.json').read_text())['run']['device']
