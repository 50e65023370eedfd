"""Several processes train one model: real ones, started by torchrun, killed, interrupted and resumed."""
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cebm_nb.storage import read_json, read_table

ENV = os.environ | dict(OMP_NUM_THREADS='1')
SMALL = ['--data', 'digits', '--preset', 'smoke', '--steps', '120', '--validate-every', '50', '--save-every', '0.3', '--quiet']


def start(processes, *words):
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', str(processes), '-m', 'cebm_nb.cli', 'train', *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENV, start_new_session=True)


def finish(process, status=0):
    text = process.communicate(timeout=300)[0]
    assert process.returncode == status, text
    return text


def workers(process):
    pids = [int(p.name) for p in Path('/proc').iterdir() if p.name.isdigit()]
    def stat(pid):
        try: return (Path('/proc') / str(pid) / 'stat').read_text().rsplit(')', 1)[1].split()
        except OSError: return ['', '0']
    return [pid for pid in pids if int(stat(pid)[1]) == process.pid]


def until(process, ready):
    while not ready():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)


def same(a, b):
    one, two = (load_file(run / 'model.safetensors') for run in (a, b))
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp('whole') / 'run'
    finish(start(2, *SMALL, '--out', str(out)))
    return out


def test_two_processes_leave_one_run_that_says_so(whole):
    record = read_json(whole / 'config.json')['run']
    assert record['processes'] == 2 and record['finished']['updates'] == 120
    tensors = load_file(whole / 'checkpoint' / 'state.safetensors')
    assert tensors['chains'].shape == tensors['process1.chains'].shape == (32, 1, 8, 8)       # 64 in the preset
    assert not torch.equal(tensors['chains'], tensors['process1.chains'])
    assert not torch.equal(tensors['generator'], tensors['process1.generator'])
    assert read_table(whole / 'health.csv', 'step').step.tolist() == [50, 100, 120]


@pytest.mark.parametrize('seed', range(int(os.environ.get('KILLS', 1))))
def test_a_process_that_is_killed_changes_nothing_in_the_end(whole, tmp_path, seed):
    out, rng = tmp_path / 'run', random.Random(seed)
    process = start(2, *SMALL, '--out', str(out))
    until(process, lambda: (out / 'checkpoint' / 'healthy.safetensors').exists() and len(workers(process)) == 2)
    time.sleep(rng.random() * 2)
    if process.poll() is None and len(pids := workers(process)) == 2: os.kill(rng.choice(pids), signal.SIGKILL)
    process.communicate(timeout=60)                                                             # all of it ends
    finish(start(2, '--resume', str(out), '--quiet'))
    assert same(out, whole)
    assert read_table(out / 'metrics.csv', 'step').drop(columns='seconds').equals(read_table(whole / 'metrics.csv', 'step').drop(columns='seconds'))


def test_ctrl_c_stops_all_after_the_same_update_and_the_run_goes_on(whole, tmp_path):
    out = tmp_path / 'run'
    process = start(2, *SMALL, '--out', str(out))
    until(process, lambda: (out / 'checkpoint' / 'healthy.safetensors').exists())
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert read_json(out / 'config.json')['run']['finished']['status'] == 'interrupted'
    finish(start(2, '--resume', str(out), '--quiet'))
    assert same(out, whole)


def test_another_number_of_processes_takes_over_all_chains_and_says_so(whole, tmp_path):
    out = tmp_path / 'run'
    shutil.copytree(whole, out)
    before = load_file(out / 'checkpoint' / 'state.safetensors')
    assert 'goes on as that of 1 times cpu, not as before' in finish(start(1, '--resume', str(out), '--steps', '121', '--quiet'))
    after = load_file(out / 'checkpoint' / 'state.safetensors')
    kept = sum((after['chains'][i::2] == before[name]).flatten(1).all(1).sum() for i, name in enumerate(('chains', 'process1.chains')))
    assert len(after['chains']) == 64 and kept >= 64 - 16                                       # an update moves 16 of them
    assert read_json(out / 'config.json')['run']['processes'] == 1


@pytest.mark.parametrize('model', ['bigan', 'guided-cebm'])
def test_every_model_is_trained_by_two_processes(tmp_path, model):
    out = tmp_path / 'run'
    finish(start(2, '--model', model, '--data', 'digits', '--preset', 'smoke', '--steps', '12', '--out', str(out), '--quiet', '--validate-every', '0'))
    assert read_json(out / 'config.json')['run']['finished']['status'] == 'complete'


def test_all_see_a_divergence_at_the_same_update_and_go_back_together(tmp_path):
    out, wild = tmp_path / 'run', ['--optimiser.learning-rate', '0.03', '--optimiser.grad-clip', 'none', '--sampler.steps', '3']
    text = finish(start(2, '--data', 'digits', '--preset', 'smoke', '--steps', '200', *wild, '--validate-every', '0', '--quiet', '--out', str(out)))
    record = read_json(out / 'config.json')['run']
    assert text.count('Rollback 1') == 1 and record['rollbacks'] and record['finished']['status'] == 'complete'
