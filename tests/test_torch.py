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


def test_looking_at_a_model_while_it_trains_leaves_its_layout():
    from cebm_nb.representation import encode_images
    from cebm_nb.settings import get_settings
    from cebm_nb.trainer import EnergyTrainer
    data = cn.load_data('mnist-5k')
    trainer = EnergyTrainer(cn.create_model('cebm', data.in_shape, latent_dim=8), data, get_settings('smoke'), device='cpu')
    trainer.update()
    before = [p.stride() for p in trainer.model.parameters()]
    assert trainer.average is trainer.model
    encode_images(trainer.average, data.train.subset(slice(20)), device='cpu')
    assert [p.stride() for p in trainer.model.parameters()] == before


def test_a_run_shows_itself_whether_it_has_ended_or_not(tmp_path):
    run = cn.train('cebm', 'digits', 'smoke', tmp_path / 'run', steps=12, options=dict(latent_dim=4), progress=False, validate_every=0, device='cpu')
    assert '12 updates, complete' in run._repr_html_() and '<img alt="curves"' in run._repr_html_()
    run.config['run']['finished'] = None                                   # it trains still, or was killed
    assert 'updates' in run._repr_html_()
    assert cn.load_data('digits')._repr_html_().count('<img') == 1


def test_names_of_models_on_the_hub_are_not_taken_for_typing_errors(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('HF_ENDPOINT', 'HF_HUB_OFFLINE'): monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    with pytest.raises(FileNotFoundError, match="no run folder 'someone/cebm-mnist-5k', and none on the Hugging Face hub"): cn.load_model('someone/cebm-mnist-5k')
    with pytest.raises(FileNotFoundError, match="did you mean 'cebm-mnist-5k'"): cn.load_model('cebm-mnst-5k')
    (tmp_path / 'runs').mkdir()
    with pytest.raises(FileNotFoundError, match="no run folder"): cn.load_model('runs/demo')


@pytest.mark.parametrize('name', ['cebm', 'bigan'])
def test_watching_a_run_changes_none_of_its_weights(name, tmp_path):
    from cebm_nb.watch import draw_state, snapshot
    def look(trainer, used):
        if trainer.step % 5 == 0: snapshot(trainer), draw_state(trainer)
    def weights(out, **about):
        run = cn.train(name, 'digits' if name == 'cebm' else 'mnist-5k', 'smoke', tmp_path / out, steps=12, options=dict(latent_dim=4), progress=False, validate_every=0, device='cpu', **about)
        return run.model.state_dict()
    alone, watched = weights('alone'), weights('watched', callbacks=(look,))
    assert all(torch.equal(alone[k], watched[k]) for k in alone)
