"""What torch does with modules: copies, export, compilation, several devices, files."""
import copy
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import cebm_nb as cn
from cebm_nb.settings import MODELS, trainable_names

NAMES = [name for name in MODELS if name in trainable_names()]


@pytest.mark.parametrize('name', NAMES)
def test_modules_are_copied_exported_compiled_and_replicated(name):
    model, x = cn.create_model(name, (1, 28, 28), latent_dim=8).eval(), torch.rand(4, 1, 28, 28) * 2 - 1
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        out = model(x)
        exported = torch.export.export(model, (x,)).module()
        compiled = torch.compile(model, backend='aot_eager', fullgraph=True)
        for other in (exported, compiled, nn.DataParallel(model), copy.deepcopy(model)): torch.testing.assert_close(other(x), out)
        again = cn.create_model(name, (1, 28, 28), latent_dim=8, seed=1).eval()
        again.load_state_dict(model.state_dict())
        assert torch.equal(again(x), out)
    assert f'inputs (1, 28, 28), {sum(p.numel() for p in model.parameters()):,} weights' in repr(model)


@pytest.mark.parametrize('name', ['cebm', 'vae', 'bigan'])
def test_weights_can_be_saved_by_others_after_all_that_is_done_with_a_model(name, tmp_path):
    run = cn.train(name, 'mnist-5k', 'smoke', tmp_path / 'run', steps=2, options=dict(latent_dim=8), progress=False, validate_every=0, device='cpu')
    def saved():
        save_file(run.model.state_dict(), tmp_path / 'weights.safetensors')
        return load_file(tmp_path / 'weights.safetensors')
    first = saved()
    cn.sample_images(run, 2, device='cpu')
    cn.evaluate(run, cn.load_data('mnist-5k'), parts=['neighbours'], device='cpu', with_floors=False)
    assert all(torch.equal(first[k], v) for k, v in saved().items())
    assert next(cn.load_model(run.folder, device='auto').parameters()).device.type in ('cpu', 'cuda')
