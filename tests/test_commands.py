"""The commands as a user types them: real processes, real files."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

BIN = Path(sys.executable).parent
SMALL = '--data digits --preset smoke --latent_dim 16'.split()


def hear_ctrl_c(): signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell tells its background jobs to ignore it, and they their children


def start(cwd, command, *args, **options):
    options = dict(preexec_fn=hear_ctrl_c) | options
    return subprocess.Popen([BIN / command, *map(str, args)], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def call(cwd, command, *args):
    process = start(cwd, command, *args)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp('work')
    status, out, err = call(path, 'cebm_train', *SMALL, '--steps', 12, '--out', 'run', '--quiet')
    assert status == 0, err
    assert 'complete' in out
    return path


def test_a_run_folder_holds_what_the_design_says(folder):
    names = {p.relative_to(folder / 'run').as_posix() for p in (folder / 'run').rglob('*') if p.is_file()}
    assert names >= {'config.json', 'metrics.csv', 'model.safetensors', 'checkpoint/state.safetensors', 'figures/samples.png', 'figures/training.png'}
    assert not [n for n in names if 'part' in n]
    config = json.loads((folder / 'run' / 'config.json').read_text())
    assert config['seed'] == 0 and config['settings']['sgld_steps'] == 3 and config['versions']['torch'] and config['finished']['updates'] == 12


def test_evaluation_and_samples(folder):
    status, out, err = call(folder, 'cebm_eval', 'run', '--draws', 3, '--only', 'few-label')
    assert status == 0, err
    assert 'pixel' in out and 'stand' in out
    records = json.loads((folder / 'run' / 'eval.json').read_text())['few_label']
    assert {(r['representation'], r['labels_per_class']) for r in records} == {(who, n) for who in ('pixel', 'cebm') for n in (1, 10, 100, 'all')}
    assert all(0 <= r['accuracy_mean'] <= 1 and r['converged'] for r in records)
    for begin in ('buffer', 'noise'):
        status, out, err = call(folder, 'cebm_sample', 'run', '--n', 5, '--steps', 3, '--start', begin, '--out', f'{begin}.png')
        assert status == 0 and (folder / f'{begin}.png').read_bytes()[1:4] == b'PNG', err


def test_settings_are_chosen_on_the_validation_split_and_tried_on_the_test_set(tmp_path):
    status, out, err = call(tmp_path, 'cebm_train', *SMALL, '--data', 'digits/validation', '--steps', 12, '--judge_every', 6, '--quiet')
    assert status == 0, err
    run = tmp_path / 'runs' / 'digits-validation-cebm-smoke-s0-1'
    status, out, err = call(tmp_path, 'cebm_eval', run, '--draws', 2, '--only', 'few-label')
    assert status == 0, err
    status, out, err = call(tmp_path, 'cebm_eval', run, '--draws', 2, '--only', 'few-label', '--data', 'digits')
    assert status == 0, err
    chosen, tried = (json.loads((folder / 'eval.json').read_text()) for folder in (run, run / 'on-digits'))
    assert chosen['train_images'] + chosen['test_images'] == tried['train_images'] and chosen['data'] == 'digits/validation'


def test_same_seed_same_weights_in_two_processes(folder):
    for name, seed in (('again', 0), ('other', 1)): assert call(folder, 'cebm_train', *SMALL, '--steps', 12, '--seed', seed, '--out', name, '--quiet')[0] == 0
    first, again, other = (load_file(folder / n / 'model.safetensors') for n in ('run', 'again', 'other'))
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not all(torch.equal(first[k], other[k]) for k in first)


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_everything_and_resume_goes_on(folder, number):
    name = f'stopped-{number}'
    process = start(folder, 'cebm_train', *SMALL, '--steps', 1_000_000, '--out', name, '--quiet')
    deadline = time.monotonic() + 120
    while not (folder / name / 'config.json').exists() and time.monotonic() < deadline: time.sleep(0.05)
    time.sleep(3)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert 'Interrupted' in out and '--resume' in out
    config = json.loads((folder / name / 'config.json').read_text())
    assert config['finished']['status'] == 'interrupted' and (folder / name / 'model.safetensors').exists()
    done = config['finished']['updates']
    status, out, err = call(folder, 'cebm_train', '--resume', name, '--steps', done + 5, '--quiet')
    assert status == 0, err
    config = json.loads((folder / name / 'config.json').read_text())
    assert config['finished'] | {'seconds': 0} == {'status': 'complete', 'updates': done + 5, 'seconds': 0}


def test_resumed_equals_uninterrupted(folder):
    assert call(folder, 'cebm_train', *SMALL, '--steps', 7, '--out', 'part', '--quiet')[0] == 0
    assert call(folder, 'cebm_train', '--resume', 'part', '--steps', 12, '--quiet')[0] == 0
    whole, part = load_file(folder / 'run' / 'checkpoint' / 'state.safetensors'), load_file(folder / 'part' / 'checkpoint' / 'state.safetensors')
    assert whole.keys() == part.keys() and all(torch.equal(whole[k], part[k]) for k in whole)


@pytest.mark.parametrize('model', ['gmm-cebm', 'igebm', 'vae', 'gmm-vae', 'bigan', 'gmm-bigan'])
def test_every_model_trains_evaluates_samples_and_resumes(folder, model):
    train = ['cebm_train', *SMALL, '--model', model, '--average', 0.9, '--quiet']
    if 'bigan' in model: train += ['--instance_noise', 0]  # else it falls with the part of the budget that is used, and the budgets below differ
    status, out, err = call(folder, *train, '--steps', 9, '--out', model)
    assert status == 0, err
    assert {'training.png', 'samples.png'} <= {p.name for p in (folder / model / 'figures').iterdir()}
    assert (folder / model / 'figures' / 'reconstructions.png').exists() == (model in ('vae', 'gmm-vae', 'bigan', 'gmm-bigan'))

    status, out, err = call(folder, 'cebm_eval', model, '--draws', 2, '--only', 'few-label,clusters')
    assert status == 0, err
    result = json.loads((folder / model / 'eval.json').read_text())
    assert {r['representation'] for r in result['few_label']} == {'pixel', model}
    assert {(r['representation'], r['method']) for r in result['clusters']} == ({(model, 'components'), (model, 'k-means'), ('pixel', 'k-means')} if model.startswith('gmm') else set())
    assert ('not a mixture' in out) != model.startswith('gmm')

    status, out, err = call(folder, 'cebm_sample', model, '--n', 5, '--out', f'{model}.png')
    assert status == 0 and (folder / f'{model}.png').read_bytes()[1:4] == b'PNG', err
    kept = (folder / model / 'figures' / 'samples.png').read_bytes()
    assert call(folder, 'cebm_sample', model, '--n', 5)[0] == 0
    assert (folder / model / 'figures' / ('samples-buffer.png' if 'ebm' in model else 'samples-prior.png')).exists()
    assert (folder / model / 'figures' / 'samples.png').read_bytes() == kept  # the picture of training is not overwritten
    if 'ebm' not in model:
        status, out, err = call(folder, 'cebm_sample', model, '--steps', 5)
        assert status == 2 and 'has a generator' in err and len(err.splitlines()) == 1

    assert call(folder, *train, '--steps', 5, '--out', f'{model}-part')[0] == 0
    assert call(folder, 'cebm_train', '--resume', f'{model}-part', '--steps', 9, '--quiet')[0] == 0
    whole, part = (load_file(folder / n / 'checkpoint' / 'state.safetensors') for n in (model, f'{model}-part'))
    assert whole.keys() == part.keys() and all(torch.equal(whole[k], part[k]) for k in whole)


@pytest.mark.parametrize('command, args, word', [
    ('cebm_train', '--data digit', "did you mean 'digits'"),
    ('cebm_train', '--data digits --model gmm-cbem', "did you mean 'gmm-cebm'"),
    ('cebm_train', '--data digits --preset papers', "did you mean 'paper'"),
    ('cebm_train', '--data digits --batch_size 2000', 'batch_size'),
    ('cebm_train', '--data digits --batch_size 0', 'positive'),
    ('cebm_train', '--data digits --batch_size -5', 'positive'),
    ('cebm_train', '--data digits --latent_dim 0', 'at least 1'),
    ('cebm_train', '--data digits --steps 0', 'positive'),
    ('cebm_train', '--data digits --minutes -1', 'positive'),
    ('cebm_train', '--data digits --minutes nan', 'positive'),
    ('cebm_train', '--data digits --steps 5 --epochs 1', 'one of'),
    ('cebm_train', '--data digits --learning_rate nan', 'positive'),
    ('cebm_train', '--data digits --device cuda:99', 'not available'),
    ('cebm_train', '--data digits --precision float8', 'precision'),
    ('cebm_train', '--data digits --model pixel', 'no energy'),
    ('cebm_train', '--data digits --model vae --sgld_steps 5', "unknown setting 'sgld_steps'"),
    ('cebm_train', '--data digits --model cebm --instance_noise 0.1', "unknown setting 'instance_noise'"),
    ('cebm_train', '--data digits --model igebm --components 5', "unknown option of igebm 'components'"),
    ('cebm_train', '--data digits --model bigan --learn_prior', "unknown option of bigan 'learn_prior'"),
    ('cebm_train', '--data digits --model gmm-vae --components 0', 'at least 1'),
    ('cebm_train', '--data folder:nowhere', 'no folder'),
    ('cebm_train', '--resume nowhere', 'no run folder'),
    ('cebm_train', '--resume run --learning_rate 1', 'only a budget'),
    ('cebm_eval', 'nowhere', 'no run folder'),
    ('cebm_eval', 'run --only few-labels', "did you mean 'few-label'"),
    ('cebm_eval', 'run --data mnist-5k', 'shape'),
    ('cebm_eval', 'run --labels 0', 'positive numbers'),
    ('cebm_eval', 'run --labels many', 'positive numbers'),
    ('cebm_eval', 'run nowhere', 'no run folder'),
    ('cebm_report', 'nowhere', 'no run folder'),
    ('cebm_sample', 'run --n 0', 'at least 1'),
    ('cebm_bench', '--only stepp', "did you mean 'step'"),
    ('cebm_bench', '--repeats 0', 'at least 1'),
    ('cebm_sample', 'run --n 100000', 'at most'),
    ('cebm_sample', 'run --start here', 'unknown start'),
    ('cebm_sample', 'run --out picture.jpg', '.png'),
])
def test_bad_input_gets_one_line(folder, command, args, word):
    extra = ['--out', 'none'] if command == 'cebm_train' and '--resume' not in args else []
    before = sorted(p for p in folder.rglob('*'))
    status, out, err = call(folder, command, *args.split(), *extra)
    assert status == 2
    assert len(err.splitlines()) == 1 and err.startswith(f'{command}: ') and word in err
    assert sorted(p for p in folder.rglob('*')) == before


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path):
    process = start(tmp_path, 'cebm_sweep', 'cpu', '--plan')
    process.stdout.close()
    assert process.wait(timeout=120) == 141 and process.stderr.read() == ''
    process.stderr.close()


def test_an_occupied_folder_is_refused_and_left_alone(folder):
    before = {p: p.read_bytes() for p in (folder / 'run').rglob('*') if p.is_file()}
    status, out, err = call(folder, 'cebm_train', *SMALL, '--out', 'run')
    assert status == 2 and 'not empty' in err
    assert before == {p: p.read_bytes() for p in (folder / 'run').rglob('*') if p.is_file()}


def test_divergence_keeps_what_was_healthy(folder):
    status, out, err = call(folder, 'cebm_train', *SMALL, '--steps', 200, '--learning_rate', '1e30', '--out', 'wild', '--quiet')
    assert status == 2 and 'not finite' in err and len(err.splitlines()) == 1


@pytest.mark.parametrize('command', ['cebm_train', 'cebm_eval', 'cebm_sample', 'cebm_report', 'cebm_bench'])
def test_help_explains_every_option(command, tmp_path):
    status, out, _ = call(tmp_path, command, '--help')
    assert status == 0 and 'usage' in out
    assert 'None' not in out
