"""All eight names behind one interface, at every size; models that cannot be."""
from dataclasses import asdict

import pytest
import torch

from cebm_nb.runs import model_presets
from cebm_nb.settings import MODELS, get_settings, read_document
from cebm_nb.storage import save_weights, write_json
from cebm_nb.zoo import create_model, identity, load_model

SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 20, 13), (1, 45, 64)]
TRAINED = [n for n in MODELS if n != 'pixel']


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('name', list(MODELS))
def test_one_interface_at_every_size(name, shape):
    model = create_model(name, shape, latent_dim=7).eval()
    x = torch.rand(4, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        code = model.encode(x)
        assert code.shape == ((4, 7) if name != 'pixel' else (4, x[0].numel())) and code.isfinite().all()
        assert torch.allclose(model.encode(x[1:3]), code[1:3], atol=1e-5)  # neighbours in the batch do not matter
        for method in ('energy', 'elbo'):
            if hasattr(model, method): assert getattr(model, method)(x).shape == (4,)
        if hasattr(model, 'sample'):
            made, again = (model.sample(3, torch.Generator().manual_seed(5)) for _ in range(2))
            assert made.shape == (3, *shape) and -1 <= made.min() and made.max() <= 1 and torch.equal(made, again)
            assert model.reconstruct(x).shape == x.shape
        if hasattr(model, 'responsibilities'):
            shares = model.responsibilities(x)
            assert shares.shape == (4, 20 if name.startswith('gmm') else 1) and torch.allclose(shares.sum(1), torch.ones(4), atol=1e-5)
    assert hasattr(model, 'energy') or hasattr(model, 'elbo') or hasattr(model, 'discriminator') or name == 'pixel'


@pytest.mark.parametrize('name', TRAINED)
def test_saved_and_loaded_it_is_the_same(name, tmp_path):
    model = create_model(name, (1, 8, 8), latent_dim=5, seed=3).eval()
    options = {k: v for k, v in model.config.items() if k not in ('name', 'in_shape', 'seed')}
    document = asdict(read_document(dict(model=name, seed=3, options=options)))
    document |= dict(run=dict(in_shape=[1, 8, 8], data='', device='cpu', own={}, versions={}, rollbacks=[], finished=None))
    write_json(tmp_path / 'config.json', document)
    save_weights(tmp_path / 'model.safetensors', model.state_dict(), dict(model=model.config, config=identity(document), step=0))
    x = torch.rand(4, 1, 8, 8) * 2 - 1
    assert torch.equal(load_model(tmp_path).encode(x), model.encode(x))


@pytest.mark.parametrize('name', TRAINED)
def test_presets_of_every_model(name):
    assert set(MODELS[name].presets) == {'paper', 'cpu', 'smoke'} and MODELS[name].presets is model_presets(create_model(name, (1, 8, 8)))
    assert get_settings('paper', name).batch_size == 100
    assert get_settings('paper', name).optimiser.learning_rate == (1e-4 if 'vae' in name else 2e-4 if 'bigan' in name else 5e-5)


@pytest.mark.parametrize('name, shape, options, word', [
    ('vae', (5,), {}, 'needs images'), ('bigan', (5,), {}, 'needs images'), ('igebm', (1, 28, 28), dict(components=3), 'unknown setting'),
    ('gmm-vae', (1, 28, 28), dict(components=0), 'at least 1'), ('vae', (1, 28, 28), dict(latent_dim=0), 'at least 1'), ('igebm', (1, 28, 28), dict(latent_dim=0), 'at least 1'),
    ('bigan', (1, 4, 4), {}, 'from 8 to 64'), ('cebm', (1, 8, 8), dict(encoder='cnov'), "did you mean 'conv'"), ('pixel', (1, 8, 8), dict(encoder='conv'), 'unknown setting')])
def test_impossible_models_are_told_in_one_line(name, shape, options, word):
    with pytest.raises(ValueError, match=word) as caught: create_model(name, shape, **options)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize('name', ['igebm', 'cebm'])
def test_half_precision_does_not_round_energies(name):
    model, x = create_model(name, (1, 28, 28)), torch.rand(64, 1, 28, 28) * 2 - 1
    with torch.no_grad(): exact = model.energy(x) 
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16): half = model.energy(x)
    assert half.dtype == torch.float32 and (half != half.bfloat16().float()).any()
    assert (half - exact).abs().max() < 0.02
