"""What a training run lives through: kills at any moment, and faults of disk, files, numbers, signals and clocks."""
import contextlib
import filecmp
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import time

import pytest
import torch
from safetensors.torch import load_file
from commands import SMALL, call, hear_ctrl_c, start

from cebm_nb.bigan import AdversarialTrainer, BiGAN
from cebm_nb.data import load_data
from cebm_nb.models import CEBM
from cebm_nb.runs import Run, load_run, resume, train
from cebm_nb.storage import load_weights
from cebm_nb.trainer import DivergenceError, EnergyTrainer
from cebm_nb.zoo import create_model, load_model

KILLS = int(os.environ.get('CEBM_KILLS', 1))  # for each model; CEBM_KILLS=4 is the long form
MODELS = ['cebm', 'gmm-cebm', 'igebm', 'guided-cebm', 'vae', 'gmm-vae', 'bigan', 'gmm-bigan']
KILLED = MODELS if KILLS > 1 else ['gmm-cebm', 'guided-cebm', 'vae', 'bigan']  # one of each trainer
FAST = dict(data='digits', preset='smoke', progress=False, validate_every=0, options=dict(latent_dim=16))


def state(folder): return load_weights(folder / 'checkpoint' / 'state.safetensors')[0]


def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def wait_for_a_new(path, process, seconds=120):  # until a file is there, or is another than before
    before, deadline = path.stat().st_mtime_ns if path.exists() else None, time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if path.stat().st_mtime_ns != before: return
        except FileNotFoundError: pass
        time.sleep(0.01)


def flip(path, where=0.5):
    data = bytearray(path.read_bytes())
    data[int(len(data) * where)] ^= 16
    path.write_bytes(data)


@pytest.mark.parametrize('model', KILLED)
def test_killed_at_random_moments_it_is_still_the_same_run(model, tmp_path):
    updates, rng, killed = (120 if 'bigan' in model else 600) * (2 if KILLS > 1 else 1), random.Random(model), 0
    options = [*SMALL, '--validate-every', 40, '--model', model, '--optimiser.average', 0.9, '--augment.shift', 1, '--augment.flip',
               '--steps', updates]
    assert call(tmp_path, 'train', *options, '--out', 'whole', '--quiet')[0] == 0
    attempt = ['train', *options, '--out', 'killed', '--save_every', 0.2, '--quiet']
    for _ in range(10 * KILLS):
        process = start(tmp_path, *attempt)
        wait_for_a_new(tmp_path / 'killed' / 'checkpoint' / 'state.safetensors', process)
        time.sleep(rng.random() * (0.5 if KILLS > 1 else 1))
        process.kill()
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
        attempt = ['train', '--resume', 'killed', '--quiet']
        if killed == KILLS: break
    status, out, err = call(tmp_path, *attempt)
    assert status == 0, err
    assert killed == KILLS
    assert same(state(tmp_path / 'whole'), state(tmp_path / 'killed'))
    for name in ('model.safetensors', 'best.safetensors', 'health.csv'):
        if (tmp_path / 'whole' / name).exists(): assert filecmp.cmp(tmp_path / 'whole' / name, tmp_path / 'killed' / name, shallow=False), name
    assert len((tmp_path / 'whole' / 'health.csv').read_text().splitlines()) == 1 + updates // 40


@pytest.fixture(scope='module')
def short(tmp_path_factory):  # a run of 20 updates that others copy
    folder = tmp_path_factory.mktemp('short') / 'run'
    train(out=folder, steps=12, **FAST)
    resume(folder, steps=20, progress=False)
    return folder


@pytest.fixture
def run(short, tmp_path):
    shutil.copytree(short, tmp_path / 'run')
    return tmp_path / 'run'


# Disks and files

def test_a_full_disk_ends_the_run_with_its_checkpoint_whole(run):
    before, limit = state(run), (run / 'checkpoint' / 'state.safetensors').stat().st_size // 2

    def little_room():
        hear_ctrl_c()
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    process = start(run.parent, 'train', '--resume', 'run', '--steps', 30, '--quiet', preexec_fn=little_room)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1 and len(err.splitlines()) == 1 and 'too large' in err
    assert same(state(run), before) and not list(run.rglob('*.part'))
    assert call(run.parent, 'train', '--resume', 'run', '--steps', 30, '--quiet')[0] == 0


def test_a_disk_that_fills_up_while_training(short, tmp_path):
    small = tmp_path / 'small'
    small.mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=16m', 'tmpfs', small], capture_output=True).returncode: pytest.skip('only root may mount')
    try:
        shutil.copytree(short, small / 'run')
        process = start(small, 'train', '--resume', 'run', '--steps', 1_000_000, '--quiet', preexec_fn=hear_ctrl_c)
        wait_for_a_new(small / 'run' / 'checkpoint' / 'state.safetensors', process)
        for _ in range(40):  # again and again: a file that is replaced just then gives room back
            with contextlib.suppress(OSError), open(small / 'filler', 'ab') as filler: filler.write(b'x' * max(shutil.disk_usage(small).free - 4096, 0))
            time.sleep(0.05)
        process.terminate()
        out, err = process.communicate(timeout=120)
        assert process.returncode == 1 and len(err.splitlines()) == 1 and 'No space left' in err and '--resume' in err
        (small / 'filler').unlink()
        done = load_weights(small / 'run' / 'checkpoint' / 'state.safetensors')[1]['step']
        assert call(small, 'train', '--resume', 'run', '--steps', done + 5, '--quiet')[0] == 0
    finally: subprocess.run(['umount', small], check=True)


@pytest.mark.parametrize('damage', [lambda p: flip(p), lambda p: p.write_bytes(p.read_bytes()[:3000]), lambda p: p.write_bytes(b''), lambda p: p.unlink()],
                         ids=['flipped byte', 'truncated', 'empty', 'missing'])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(run, damage):
    whole = state(run)
    damage(run / 'checkpoint' / 'state.safetensors')
    status, out, err = call(run.parent, 'train', '--resume', 'run', '--steps', 20, '--quiet')
    assert status == 0, err
    assert 'Going on from previous.safetensors' in out
    assert same(state(run), whole)


def test_a_kill_between_two_names_loses_nothing(run):
    whole = state(run)
    (run / 'checkpoint' / 'previous.safetensors').unlink()
    os.link(run / 'checkpoint' / 'state.safetensors', run / 'checkpoint' / 'previous.safetensors')   # before the new state is there
    (run / 'checkpoint' / '.state.safetensors.0123456789abcdef.part').write_bytes(b'half')
    assert resume(run, steps=20, progress=False).config['run']['finished']['updates'] == 20
    assert same(state(run), whole) and not list(run.rglob('.*.part'))


def test_all_checkpoints_damaged_is_told_in_one_line(run):
    for path in (run / 'checkpoint').iterdir(): flip(path)
    status, out, err = call(run.parent, 'train', '--resume', 'run', '--steps', 30, '--quiet')
    assert status == 2 and len(err.splitlines()) == 1 and 'state.safetensors is damaged' in err


@pytest.mark.parametrize('name, word', [('model.safetensors', 'model.safetensors'), ('config.json', 'config.json')])
@pytest.mark.parametrize('command', ['eval', 'sample'])
def test_a_missing_or_damaged_file_is_named(run, name, word, command):
    (run / name).write_bytes((run / name).read_bytes()[:100])
    status, out, err = call(run.parent, command, 'run')
    assert status == 2 and len(err.splitlines()) == 1 and word in err and 'damaged' in err
    (run / name).unlink()
    status, out, err = call(run.parent, command, 'run')
    assert status == 2 and len(err.splitlines()) == 1 and word in err


def test_settings_changed_behind_its_back_are_noticed(run):
    config = json.loads((run / 'config.json').read_text())
    config['settings']['sampler']['steps'] += 1
    (run / 'config.json').write_text(json.dumps(config))
    with pytest.raises(ValueError, match='was changed since'): resume(run, steps=30, progress=False)
    config['settings']['sampler']['steps'] -= 1
    config['options']['latent_dim'] = 17
    (run / 'config.json').write_text(json.dumps(config))
    with pytest.raises(ValueError, match='was changed since'): load_model(run)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / 'file').write_text('')
    for out in ['/proc/run', 'file/run', 'file']:
        status, _, err = call(tmp_path, 'train', *SMALL, '--steps', 5, '--out', out, '--quiet')
        assert status == 2 and len(err.splitlines()) == 1, err


# Two writers

def test_two_processes_cannot_write_one_folder(tmp_path):
    options = ['train', *SMALL, '--steps', 1_000_000, '--out', 'run', '--quiet']
    process = start(tmp_path, *options)
    try:
        wait_for_a_new(tmp_path / 'run' / 'checkpoint' / 'state.safetensors', process)
        status, out, err = call(tmp_path, 'train', '--resume', 'run')
        assert status == 2 and len(err.splitlines()) == 1 and 'another process' in err
        status, out, err = call(tmp_path, *options)
        assert status == 2 and 'not empty' in err
    finally: process.kill()
    process.communicate()
    done = load_weights(tmp_path / 'run' / 'checkpoint' / 'state.safetensors')[1]['step']
    assert call(tmp_path, 'train', '--resume', 'run', '--steps', done + 5, '--quiet')[0] == 0  # the lock died with its holder


def test_two_that_begin_at_the_same_moment(tmp_path):
    both = [start(tmp_path, 'train', *SMALL, '--steps', 30, '--out', 'run', '--quiet') for _ in range(2)]
    ends = [(p.communicate(timeout=300), p.returncode) for p in both]
    assert sorted(code for _, code in ends) in ([0, 2], [0, 0]) and all(len(err.splitlines()) <= 1 for (_, err), _ in ends)
    assert sum(code == 0 for _, code in ends) == 1, ends
    assert Run.load(tmp_path / 'run').config['run']['finished']['updates'] == 30


# Signals and clocks

def test_ctrl_c_twice_leaves_a_whole_checkpoint(tmp_path):
    process = start(tmp_path, 'train', *SMALL, '--steps', 1_000_000, '--out', 'run', '--quiet')
    wait_for_a_new(tmp_path / 'run' / 'checkpoint' / 'state.safetensors', process)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130 and len(err.splitlines()) <= 1, err
    done = load_weights(tmp_path / 'run' / 'checkpoint' / 'state.safetensors')[1]['step']
    assert call(tmp_path, 'train', '--resume', 'run', '--steps', done + 5, '--quiet')[0] == 0


def test_a_terminal_that_closes(tmp_path):
    process = start(tmp_path, 'train', *SMALL, '--steps', 1_000_000, '--out', 'run', '--quiet', preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL))
    wait_for_a_new(tmp_path / 'run' / 'checkpoint' / 'state.safetensors', process)
    process.send_signal(signal.SIGHUP)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130 and json.loads((tmp_path / 'run' / 'config.json').read_text())['run']['finished']['status'] == 'interrupted', err


def test_a_clock_that_is_set_back(tmp_path, monkeypatch):
    def set_back(trainer, used):
        now = time.time()
        monkeypatch.setattr(time, 'time', lambda: now - 1e6)
    run = train(out=tmp_path / 'run', minutes=0.02, callbacks=(set_back,), **FAST)
    assert run.config['run']['finished']['status'] == 'complete' and 1 <= run.config['run']['finished']['seconds'] < 60


# Numbers

class NaNInABatch(EnergyTrainer):
    def batch(self):
        x = super().batch()
        if self.step == 30 and not self.rollbacks: x[0, 0, 0, 0] = float('nan')
        return x


class NaNInAGradient(EnergyTrainer):
    def backward(self, loss, *args):
        if self.step == 30 and not self.rollbacks: next(self.model.parameters()).register_hook(lambda g: g * (1 if self.rollbacks else float('nan')))
        return super().backward(loss, *args)


@pytest.mark.parametrize('trainer', [NaNInABatch, NaNInAGradient])
def test_not_a_number_once_is_lived_through(trainer, tmp_path):
    made = create_model('cebm', (1, 8, 8), latent_dim=16)
    model = type('Own', (CEBM,), dict(trainer=trainer))(made.encoder, made.prior)
    run = train(model, 'digits', 'smoke', out=tmp_path / 'run', steps=60, progress=False, validate_every=0)
    assert run.config['run']['finished']['status'] == 'complete' and run.config['run']['finished']['updates'] == 60
    assert len(run.config['run']['rollbacks']) == 1 and 'not finite at update 31' in run.config['run']['rollbacks'][0]['reason']
    assert all(p.isfinite().all() for p in run.model.parameters())


class LostAt30(AdversarialTrainer):
    def learn(self, x, used):
        if self.step == 30: raise DivergenceError('lost')
        return super().learn(x, used)


def test_a_bigan_that_gives_up_is_saved_with_statistics_of_its_averaged_weights(tmp_path):
    made, data = create_model('bigan', (1, 8, 8), latent_dim=8), load_data('digits')
    made.__class__ = type('Own', (BiGAN,), dict(trainer=LostAt30))
    with pytest.raises(DivergenceError, match='1 rollbacks are used up'): train(made, data, 'smoke', out=tmp_path / 'run', steps=60, optimiser=dict(average=0.9), rollbacks=1, precision='float32', device='cpu', progress=False)
    saved = load_weights(tmp_path / 'run' / 'model.safetensors')[0]
    again = AdversarialTrainer(create_model('bigan', (1, 8, 8), latent_dim=8), data, AdversarialTrainer.presets['smoke'], device='cpu', precision='float32')
    again.average = create_model('bigan', (1, 8, 8), latent_dim=8)  # another than the model, as where weights are averaged
    again.average.load_state_dict(saved)
    again.refresh_average()
    assert any('running_mean' in name for name in saved)
    for name, value in again.average.state_dict().items(): assert torch.allclose(value, saved[name], rtol=1e-4, atol=1e-5), name


@pytest.mark.parametrize('where', [float('inf'), float('nan'), 1e4])
def test_chains_anywhere_are_lived_through(where, tmp_path):
    def send_away(trainer, used):
        if trainer.step == 40 and not trainer.rollbacks: trainer.buffer.chains.fill_(where)
    run = train(out=tmp_path / 'run', steps=200, callbacks=(send_away,), **FAST)
    assert run.config['run']['finished']['status'] == 'complete' and run.chains.isfinite().all() and run.chains.abs().max() <= 1.5
    reasons = [rollback['reason'] for rollback in run.config['run']['rollbacks']]
    assert any('finite' in reason for reason in reasons) == (where != 1e4)  # the walls bring back what is only far away


@pytest.mark.parametrize('model, rate, steps', [('cebm', 0.3, 150), ('vae', 1, 400), ('bigan', 1, 150)])
def test_a_learning_rate_a_thousand_times_too_high(model, rate, steps, tmp_path):
    status, out, err = call(tmp_path, 'train', *SMALL, '--model', model, '--steps', steps, '--optimiser.learning-rate', rate, '--out', 'run', '--quiet')
    assert status == 0 or (len(err.splitlines()) == 1 and 'rollbacks are used up' in err), err
    run = Run.load(tmp_path / 'run')
    assert all(p.isfinite().all() for p in run.model.parameters()) and run.config['run']['rollbacks']
    if model == 'cebm': assert run.chains.isfinite().all()


def test_when_nothing_helps_the_healthy_model_stays(tmp_path):
    def always(trainer, used):
        if trainer.step == 15: raise DivergenceError('sent astray')
    with pytest.raises(DivergenceError, match='sent astray; 2 rollbacks are used up, the healthy model of update 0'):
        train(out=tmp_path / 'run', steps=50, rollbacks=2, callbacks=(always,), **FAST)
    run = Run.load(tmp_path / 'run')
    assert run.config['run']['finished']['status'] == 'diverged' and run.config['run']['finished']['updates'] == 0 and len(run.config['run']['rollbacks']) == 2
    assert [r['settings']['sampler']['steps'] for r in run.config['run']['rollbacks']] == [5, 8]
    resumed = resume(tmp_path / 'run', steps=10, progress=False)
    assert resumed.config['run']['finished']['updates'] == 10 and len(resumed.config['run']['rollbacks']) == 2


def test_a_run_stopped_after_a_rescue_goes_on_gently(tmp_path):
    def astray(trainer, used):
        if trainer.step == 15 and not trainer.rollbacks: raise DivergenceError('sent astray')
    train(out=tmp_path / 'whole', steps=30, callbacks=(astray,), **FAST)
    train(out=tmp_path / 'part', steps=20, callbacks=(astray,), **FAST)
    resume(tmp_path / 'part', steps=30, progress=False)
    assert same(state(tmp_path / 'whole'), state(tmp_path / 'part'))
    assert load_weights(tmp_path / 'part' / 'checkpoint' / 'state.safetensors')[1]['rollbacks'][0]['settings'] == dict(optimiser=dict(learning_rate=1.5e-4), sampler=dict(steps=5))


def test_a_run_that_was_killed_before_its_first_model_was_written_goes_on(run):
    steps = load_run(run).config['run']['finished']['updates']
    (run / 'model.safetensors').unlink()
    again = resume(run, steps=steps + 4, progress=False)
    assert again.config['run']['finished']['updates'] == steps + 4 and (run / 'model.safetensors').is_file()
