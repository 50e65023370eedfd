"""The experiment notebooks under papermill, sweeps that are killed and gone on with, and what an installed package brings."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import nbformat
import pytest
import torch
from commands import call, start
from test_export import BIN, ROOT

from cebm_nb.data import load_data
from cebm_nb.storage import write_lock
from cebm_nb.zoo import load_model, pretrained_names, read_card
from cebm_nb.representation import encode_images, few_label
from cebm_nb.workers import run_notebook

NOTEBOOKS = ROOT / 'nbs' / 'experiments'


def papermill(folder, name, **parameters):
    done = subprocess.run([BIN / 'papermill', NOTEBOOKS / f'{name}.ipynb', f'{name}-done.ipynb', '-y', json.dumps(parameters), '--no-progress-bar'], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return nbformat.read(folder / f'{name}-done.ipynb', as_version=4)


def outputs(notebook): return [output for cell in notebook.cells if cell.cell_type == 'code' for output in cell.outputs]


def test_the_three_notebooks_under_papermill(tmp_path):
    trained = papermill(tmp_path, 'train', data='digits', model='gmm-cebm', preset='smoke', steps=40, options=dict(latent_dim=16, components=5), validate_every=20, out='run')
    text = ''.join(output.get('text', '') for output in outputs(trained))
    assert ' 50%  update 20' in text and '40 updates' in text and 'cebm train --data digits --model gmm-cebm' in text
    assert sum('image/png' in output.get('data', {}) for output in outputs(trained)) >= 7  # data, four quarters, curves, samples
    assert (tmp_path / 'run' / 'model.safetensors').is_file()
    papermill(tmp_path, 'evaluate', runs=['run'], parts=['few-label', 'clusters'], draws=2)
    result = json.loads((tmp_path / 'run' / 'eval.json').read_text())
    assert result['few_label'] and result['clusters'] and not result['ood']
    before = (tmp_path / 'run' / 'eval.json').stat().st_mtime_ns
    again = papermill(tmp_path, 'evaluate', runs=['run'], parts=['few-label', 'clusters'], draws=2)
    assert (tmp_path / 'run' / 'eval.json').stat().st_mtime_ns == before and any('nothing to do' in output.get('text', '') for output in outputs(again))
    for name, parameters, word in (('train', dict(data='digits', model='vae', preset='smoke', steps=40, out=str(tmp_path / 'run')), 'holds another run'),
                                   ('train', dict(stepz=20), "did you mean 'steps'"), ('evaluate', dict(runs='runs/x'), 'must be a list')):
        assert word in run_notebook(name, parameters, tmp_path / 'wrong.ipynb')
    papermill(tmp_path, 'report', runs=['run'], out='page')
    shutil.copytree(tmp_path / 'run', tmp_path / 'other')
    (tmp_path / 'other' / 'eval.json').unlink()
    with write_lock(tmp_path / 'run', 'eval'):  # one that cannot be written does not keep the other from its figures
        wrong = run_notebook('evaluate', dict(runs=[str(tmp_path / 'run'), str(tmp_path / 'other')], parts=['few-label', 'neighbours'], draws=2), tmp_path / 'both.ipynb')
    assert 'another process' in wrong and json.loads((tmp_path / 'other' / 'eval.json').read_text())['neighbours']
    assert 'gmm-cebm' in (tmp_path / 'page' / 'report.md').read_text() and (tmp_path / 'page' / 'clusters.csv').is_file()


GRID = '''out: sweep
parts: [few-label]
draws: 2
grids:
- {data: digits, model: [vae, cebm], preset: smoke, steps: 400, options: {latent_dim: 16}}
- {data: digits, model: cebm, preset: smoke, steps: 10, tag: impossible, settings: {batch_size: 5000, buffer: {size: 5000}}}
'''


def test_a_sweep_that_is_killed_goes_on_and_passes_over_failures(tmp_path):
    (tmp_path / 'grid.yaml').write_text(GRID)
    process = start(tmp_path, 'sweep', 'grid.yaml')
    deadline, second = time.monotonic() + 400, tmp_path / 'sweep' / 'digits-cebm-s0' / 'checkpoint' / 'state.safetensors'
    while not second.exists() and time.monotonic() < deadline: time.sleep(0.05)
    status, _, err = call(tmp_path, 'sweep', 'grid.yaml')
    assert status == 2 and 'another process' in err and len(err.splitlines()) == 1
    process.kill()
    process.communicate()
    first = (tmp_path / 'sweep' / 'digits-vae-s0' / 'model.safetensors').stat().st_mtime_ns
    status, out, err = call(tmp_path, 'sweep', 'grid.yaml', '--jobs', 2)
    assert status == 1, err
    assert 'FAILED digits-cebm-s0-impossible: cebm train: batch_size' in out and '2 of 3 runs are done' in out
    assert (tmp_path / 'sweep' / 'digits-vae-s0' / 'model.safetensors').stat().st_mtime_ns == first, 'what was done was done again'
    for name in ('vae', 'cebm'):
        assert json.loads((tmp_path / 'sweep' / f'digits-{name}-s0' / 'config.json').read_text())['run']['finished'] | dict(seconds=0) == dict(status='complete', updates=400, seconds=0)
    assert 'vae' in (tmp_path / 'sweep' / 'report' / 'report.md').read_text()


def test_ctrl_c_ends_a_sweep_with_its_runs_saved(tmp_path):
    (tmp_path / 'grid.yaml').write_text('out: sweep\nparts: [neighbours]\ngrids: [{data: digits, model: [vae, cebm], preset: smoke, steps: 1000000}]\n')
    process, folders = start(tmp_path, 'sweep', 'grid.yaml', '--jobs', 2), [tmp_path / 'sweep' / f'digits-{model}-s0' for model in ('vae', 'cebm')]
    deadline = time.monotonic() + 120
    while not all((folder / 'checkpoint' / 'state.safetensors').exists() for folder in folders) and time.monotonic() < deadline: time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130 and 'Stopping' in out and 'interrupted' in err and 'Traceback' not in err
    for folder in folders: assert json.loads((folder / 'config.json').read_text())['run']['finished']['status'] == 'interrupted'


@pytest.mark.parametrize('name', pretrained_names())
def test_a_shipped_model_encodes_and_has_its_card(name):
    model, card = load_model(name), read_card(name)
    x = torch.zeros(3, *model.in_shape)
    assert model.encode(x).shape[0] == 3 and model.encode(x).isfinite().all()
    assert {'pixel', card['model']} == {r['representation'] for r in card['few_label']}
    text = (ROOT / 'cebm_nb' / 'weights' / f'{name}.md').read_text()
    assert card['command'] in text and card['limits'] in text
    assert (ROOT / 'cebm_nb' / 'weights' / f'{name}.safetensors').stat().st_size < 2 * 2**20


def test_a_shipped_model_does_what_its_card_says():
    card, data = read_card('cebm-mnist-5k'), load_data('mnist-5k')
    train, test = (encode_images(load_model('cebm-mnist-5k'), part) for part in (data.train, data.test))
    found = few_label(train, data.train.labels.numpy(), test, data.test.labels.numpy(), (10,), 10)[0]
    said = next(r for r in card['few_label'] if r['representation'] == 'cebm' and r['labels_per_class'] == 10)
    assert abs(found['accuracy_mean'] - said['accuracy_mean']) < 0.005


def test_an_installed_package_has_its_notebooks_and_weights(tmp_path):
    subprocess.run([sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '-w', tmp_path, ROOT], check=True, cwd=tmp_path, timeout=300)
    wheel, = tmp_path.glob('*.whl')
    subprocess.run([sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--target', tmp_path / 'site', wheel], check=True, timeout=300)
    code = '''
import cebm_nb.workers as s, cebm_nb.sweep as g, cebm_nb.zoo as m
from cebm_nb.settings import read_configuration, read_document, recipe_names
print(s.experiments_folder()); print(*g.grid_names()); print(*recipe_names()); read_document(read_configuration('fashion-mnist'))
print(*m.pretrained_names()); [m.load_model(n) for n in m.pretrained_names()]
assert s.run_notebook('train', dict(data='digits', preset='smoke', steps=3, out='run'), s.Path('done.ipynb')) is None
'''
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True, timeout=300, env=os.environ | dict(PYTHONPATH=str(tmp_path / 'site')))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(tmp_path / 'site' / 'cebm_nb' / 'experiments'), 'cpu paper search seeds smoke', 'fashion-mnist fashion-mnist-guided', ' '.join(pretrained_names())]
