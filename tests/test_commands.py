"""What the commands do, say and refuse."""
import json
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from commands import SMALL, call, run_lines, start
from safetensors.torch import load_file

from cebm_nb.data import load_data


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp('work')
    status, out, err = call(path, 'train', *SMALL, '--steps', 12, '--out', 'run', '--quiet')
    assert status == 0, err
    assert 'complete' in out
    return path


def test_a_run_folder_holds_what_the_design_says(folder):
    names = {p.relative_to(folder / 'run').as_posix() for p in (folder / 'run').rglob('*') if p.is_file()}
    assert names >= {'config.json', 'metrics.csv', 'model.safetensors', 'checkpoint/state.safetensors', 'figures/samples.png', 'figures/training.png'}
    assert not [n for n in names if 'part' in n]
    config = json.loads((folder / 'run' / 'config.json').read_text())
    assert config['seed'] == 0 and config['settings']['sampler']['steps'] == 3 and config['run']['versions']['torch'] and config['run']['finished']['updates'] == 12


def test_evaluation_and_samples(folder):
    status, out, err = call(folder, 'eval', 'run', '--draws', 3, '--only', 'few-label')
    assert status == 0, err
    assert 'pixel' in out and 'stand' in out
    records = json.loads((folder / 'run' / 'eval.json').read_text())['few_label']
    counts, rows = (1, 10, 100, 'all'), {(r['representation'], r['read_out'], r['labels_per_class']) for r in records}
    assert rows == ({(who, how, n) for who in ('pixel', 'PCA', 'HOG', 'untrained cebm', 'cebm') for how in ('logistic', 'spreading') for n in counts if (how, n) != ('spreading', 'all')} |
                    {('HOG and cebm', how, n) for how in ('logistic', 'spreading') for n in counts[:3]} | {('cebm', 'paper', n) for n in counts})
    kept = np.load(folder / 'run' / 'few-label.npz')
    assert all(np.allclose((kept[f"{r['representation']}, {r['read_out']}, {r['labels_per_class']}"] == load_data('digits').test.labels.numpy()).mean(), r['accuracy_mean']) for r in records)
    assert all(0 <= r['accuracy_mean'] <= 1 and r['converged'] for r in records)
    for begin in ('buffer', 'noise'):
        status, out, err = call(folder, 'sample', 'run', '--n', 5, '--steps', 3, '--start', begin, '--out', f'{begin}.png')
        assert status == 0 and (folder / f'{begin}.png').read_bytes()[1:4] == b'PNG', err


def test_settings_are_chosen_on_the_validation_split_and_tried_on_the_test_set(tmp_path):
    status, out, err = call(tmp_path, 'train', *SMALL, '--data', 'digits/validation', '--steps', 12, '--validate-every', 6, '--quiet')
    assert status == 0, err
    run = tmp_path / 'runs' / 'digits-validation-cebm-smoke-s0-1'
    status, out, err = call(tmp_path, 'eval', run, '--draws', 2, '--only', 'few-label')
    assert status == 0, err
    status, out, err = call(tmp_path, 'eval', run, '--draws', 2, '--only', 'few-label', '--data', 'digits')
    assert status == 0, err
    chosen, tried = (json.loads((folder / 'eval.json').read_text()) for folder in (run, run / 'on-digits'))
    assert chosen['train_images'] + chosen['test_images'] == tried['train_images'] and chosen['on'] == 'valid' and tried['on'] == 'test'


def test_same_seed_same_weights_in_two_processes(folder):
    for name, seed in (('again', 0), ('other', 1)): assert call(folder, 'train', *SMALL, '--steps', 12, '--seed', seed, '--out', name, '--quiet')[0] == 0
    first, again, other = (load_file(folder / n / 'model.safetensors') for n in ('run', 'again', 'other'))
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not all(torch.equal(first[k], other[k]) for k in first)


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_everything_and_resume_goes_on(folder, number):
    name = f'stopped-{number}'
    process = start(folder, 'train', *SMALL, '--steps', 1_000_000, '--out', name, '--quiet')
    deadline = time.monotonic() + 120
    while not (folder / name / 'config.json').exists() and time.monotonic() < deadline: time.sleep(0.05)
    time.sleep(3)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert 'Interrupted' in out and '--resume' in out
    config = json.loads((folder / name / 'config.json').read_text())
    assert config['run']['finished']['status'] == 'interrupted' and (folder / name / 'model.safetensors').exists()
    done = config['run']['finished']['updates']
    status, out, err = call(folder, 'train', '--resume', name, '--steps', done + 5, '--quiet')
    assert status == 0, err
    config = json.loads((folder / name / 'config.json').read_text())
    assert config['run']['finished'] | {'seconds': 0} == {'status': 'complete', 'updates': done + 5, 'seconds': 0}


def test_resumed_equals_uninterrupted(folder):
    assert call(folder, 'train', *SMALL, '--steps', 7, '--out', 'part', '--quiet')[0] == 0
    assert call(folder, 'train', '--resume', 'part', '--steps', 12, '--quiet')[0] == 0
    whole, part = load_file(folder / 'run' / 'checkpoint' / 'state.safetensors'), load_file(folder / 'part' / 'checkpoint' / 'state.safetensors')
    assert whole.keys() == part.keys() and all(torch.equal(whole[k], part[k]) for k in whole)


@pytest.mark.parametrize('model', ['gmm-cebm', 'igebm', 'vae', 'gmm-vae', 'bigan', 'gmm-bigan'])
def test_every_model_trains_evaluates_samples_and_resumes(folder, model):
    train = ['train', *SMALL, '--model', model, '--optimiser.average', 0.9, '--quiet']
    if 'bigan' in model: train += ['--instance_noise', 0]  # else it falls with the part of the budget that is used, and the budgets below differ
    status, out, err = call(folder, *train, '--steps', 9, '--out', model)
    assert status == 0, err
    assert {'training.png', 'samples.png'} <= {p.name for p in (folder / model / 'figures').iterdir()}
    assert (folder / model / 'figures' / 'reconstructions.png').exists() == (model in ('vae', 'gmm-vae', 'bigan', 'gmm-bigan'))

    status, out, err = call(folder, 'eval', model, '--draws', 2, '--only', 'few-label,clusters')
    assert status == 0, err
    result = json.loads((folder / model / 'eval.json').read_text())
    mixture = {f'components of {model}'} if model.startswith('gmm') else set()
    assert {r['representation'] for r in result['few_label']} == {'pixel', 'PCA', 'HOG', f'untrained {model}', model, f'HOG and {model}'} | mixture
    assert {(r['representation'], r['method']) for r in result['clusters']} == {(who, 'k-means') for who in (model, 'pixel', 'PCA', 'HOG', f'untrained {model}')} | ({(model, 'components')} if model.startswith('gmm') else set())

    status, out, err = call(folder, 'sample', model, '--n', 5, '--out', f'{model}.png')
    assert status == 0 and (folder / f'{model}.png').read_bytes()[1:4] == b'PNG', err
    kept = (folder / model / 'figures' / 'samples.png').read_bytes()
    assert call(folder, 'sample', model, '--n', 5)[0] == 0
    assert (folder / model / 'figures' / ('samples-buffer.png' if 'ebm' in model else 'samples-prior.png')).exists()
    assert (folder / model / 'figures' / 'samples.png').read_bytes() == kept  # the picture of training is not overwritten
    if 'ebm' not in model:
        status, out, err = call(folder, 'sample', model, '--steps', 5)
        assert status == 2 and 'has a generator' in err and len(err.splitlines()) == 1

    assert call(folder, *train, '--steps', 5, '--out', f'{model}-part')[0] == 0
    assert call(folder, 'train', '--resume', f'{model}-part', '--steps', 9, '--quiet')[0] == 0
    whole, part = (load_file(folder / n / 'checkpoint' / 'state.safetensors') for n in (model, f'{model}-part'))
    assert whole.keys() == part.keys() and all(torch.equal(whole[k], part[k]) for k in whole)


WRONG = [  # what a user may type, and a word of the one line that tells
    ('train --data digit', "did you mean 'digits'"),
    ('train --data digits --model gmm-cbem', "did you mean 'gmm-cebm'"),
    ('train --data digits --preset papers', "did you mean 'paper'"),
    ('train --data digits --batch-size 2000', 'batch_size'),
    ('train --data digits --batch-size 0', 'positive'),
    ('train --data digits --batch_size -5', 'positive'),
    ('train --data digits --latent_dim 0', 'at least 1'),
    ('train --data digits --steps 0', 'positive'),
    ('train --data digits --minutes -1', 'positive'),
    ('train --data digits --minutes nan', 'positive'),
    ('train --data digits --steps ten', 'ten'),
    ('train --data digits --stepz 10', '--steps'),
    ('train --data digits --steps 5 --epochs 1', 'one of'),
    ('train --data digits --optimiser.learning-rate nan', 'positive'),
    ('train --data digits --device cuda:99', 'not available'),
    ('train --data digits --precision float8', 'precision'),
    ('train --data digits --model pixel', 'unknown model'),
    ('train --data digits --model vae --sampler.steps 5', '--sampler.steps'),
    ('train --data digits --model cebm --instance_noise 0.1', '--instance'),
    ('train --data digits --model igebm --components 5', '--components'),
    ('train --data digits --model bigan --learn-prior', '--learn-prior'),
    ('train --data digits --model gmm-vae --components 0', 'at least 1'),
    ('train --data digits --encoder cnov', "did you mean 'conv'"),
    ('train --data digits --family gausian', "did you mean 'gaussian'"),
    ('train --data digits --sampler.name sgdl', "did you mean 'sgld'"),
    ('train --data folder:nowhere', 'no folder'),
    ('train --data npz:nowhere.npz', 'no file'),
    ('train --config nowhere.json', 'cannot read'),
    ('train --use nowhere.py', 'no file'),
    ('train --resume nowhere', 'no run folder'),
    ('train --resume run --learning-rate 1', '--learning-rate'),
    ('eval nowhere', 'no run folder'),
    ('eval', 'name a run folder'),
    ('eval run --only few-labels', "did you mean 'few-label'"),
    ('eval run --data mnist-5k', 'shape'),
    ('eval run --on valid', 'unknown part of the data'),
    ('eval run --labels 0', 'positive numbers'),
    ('eval run --labels many', 'positive numbers'),
    ('eval run nowhere', 'no run folder'),
    ('report nowhere', 'no run folder'),
    ('sample run --n 0', 'at least 1'),
    ('bench --only stepp', "did you mean 'step'"),
    ('bench --repeats 0', 'at least 1'),
    ('sample run --n 100000', 'at most'),
    ('sample run --start here', 'here'),
    ('sample run --out picture.jpg', '.png'),
    ('trian', "did you mean 'train'"),
]

@pytest.fixture(scope='module')
def told(folder, tmp_path_factory):
    before = sorted(p for p in folder.rglob('*'))
    lines = [line.split() + (['--out', 'none'] if line.startswith('train') and '--resume' not in line else []) for line, _ in WRONG]
    results = run_lines(lines, folder, tmp_path_factory.mktemp('driver'))
    assert sorted(p for p in folder.rglob('*')) == before
    return {line: result for (line, _), result in zip(WRONG, results)}


@pytest.mark.parametrize('line, word', WRONG)
def test_bad_input_gets_one_line(told, line, word):
    status, err = told[line]
    assert status == 2, err
    assert len(err.splitlines()) == 1 and err.startswith('cebm') and word in err, err


def test_a_fault_of_ours_shows_where_with_debug(folder):
    (folder / 'broken.py').write_text("from cebm_nb.settings import DATA_SETS\n@DATA_SETS.register('broken')\ndef broken(root, download): raise ValueError('a bug')\n")
    status, _, err = call(folder, 'train', '--use', 'broken.py', '--data', 'broken')
    assert status == 1 and len(err.splitlines()) == 1 and 'internal error' in err and '--debug' in err
    status, _, err = call(folder, 'train', '--use', 'broken.py', '--data', 'broken', '--debug')
    assert status == 1 and 'Traceback' in err and 'in broken' in err


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path):
    process = start(tmp_path, 'sweep', 'cpu', '--plan')
    process.stdout.close()
    assert process.wait(timeout=120) == 141 and process.stderr.read() == ''
    process.stderr.close()


def test_an_occupied_folder_is_refused_and_left_alone(folder):
    before = {p: p.read_bytes() for p in (folder / 'run').rglob('*') if p.is_file()}
    status, out, err = call(folder, 'train', *SMALL, '--out', 'run')
    assert status == 2 and 'not empty' in err
    assert before == {p: p.read_bytes() for p in (folder / 'run').rglob('*') if p.is_file()}


def test_divergence_keeps_what_was_healthy(folder):
    status, out, err = call(folder, 'train', *SMALL, '--steps', 200, '--optimiser.learning-rate', '1e30', '--out', 'wild', '--quiet')
    assert status == 1 and 'not finite' in err and len(err.splitlines()) == 1


@pytest.mark.parametrize('command, options', [
    ('train', '--data --model --preset --seed --steps --epochs --minutes --out --resume --config --print-config --device --precision --root --image-size --latent-dim --family '
              '--encoder --batch-size --data-noise --max-gap --sampler.steps --sampler.noise-std --buffer.size --buffer.restart-prob --optimiser.learning-rate --optimiser.cosine --save-every'),
    ('train --model vae', '--learn-prior --optimiser.average'), ('train --model gmm-bigan', '--components --generator --instance-noise --discriminator-rate'),
    ('eval', '--only --data --on --labels --draws --root --which --device'), ('sample', '--n --steps --start --out --seed --which'), ('report', '--out --title --root'),
    ('sweep', '--jobs --plan --root'), ('bench', '--only --out --repeats')])
def test_help_explains_every_option(command, options, tmp_path):
    status, out, _ = call(tmp_path, *command.split(), '--help')
    assert status == 0 and 'usage: cebm' in out
    text = ' '.join(re.sub('[│╭╮╰╯─]', ' ', out).split())
    for option in options.split():
        found = re.findall(rf' {re.escape(option)},?(?: --\S+)?(?: \S*(?:\||STR|INT|FLOAT|\}})\S*)? ([^-].+?) \(default', text)
        assert max(map(len, found), default=0) > 5, option                        # words of its own


def test_the_preset_shows_its_values_and_the_document_is_the_configuration(folder):
    assert '(default: 3)' in call(folder, 'train', '--preset', 'smoke', '--help')[1]
    document = json.loads(call(folder, 'train', '--config', 'run/config.json', '--sampler.steps', 7, '--print-config')[1])
    run = json.loads((folder / 'run' / 'config.json').read_text())
    assert document.pop('settings') == run['settings'] | dict(sampler=run['settings']['sampler'] | dict(steps=7)) and document.items() <= run.items()
    (folder / 'mine.yaml').write_text('model: vae\nsettings: {batch_size: 30}\n')
    assert json.loads(call(folder, 'train', '--config', 'mine.yaml', '--print-config')[1])['settings']['batch_size'] == 30
    assert json.loads(call(folder, 'train', '--config', 'fashion-mnist', '--print-config')[1])['options']['encoder'] == 'oriented'  # a recipe
    assert "did you mean 'fashion-mnist'" in call(folder, 'train', '--config', 'fashion-mnits')[2]
    (folder / 'odd.yaml').write_text('model: vae\nsampler: 3\n')
    status, _, err = call(folder, 'train', '--config', 'odd.yaml')
    assert status == 2 and "unknown setting 'sampler'" in err


@pytest.mark.parametrize('line', ['--help', '--version', 'trian', 'train --help', 'train --stepz 3', 'train --data mnsit', 'train --model gpt', 'train --resume nowhere', 'eval nowhere', 'sample nowhere', 'report nowhere'])
def test_commands_answer_without_what_is_slow(line, tmp_path):
    code = f"import sys; from cebm_nb.cli import main\ntry: main({line.split()!r})\nexcept SystemExit: pass\nprint(*{{'torch', 'numpy', 'sklearn', 'pandas', 'matplotlib'}} & {{*sys.modules}}, file=sys.stderr)"
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stderr.splitlines()[-1].strip() == '', done.stderr
