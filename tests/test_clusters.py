"""Sweeps on a Ray cluster of three nodes and on Slurm: nodes and drivers that are killed, and the same numbers as on one machine."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cebm_nb.runs import train
from cebm_nb.sweep import read_grid
from cebm_nb.workers import is_trained

BIN, HERE = Path(sys.executable).parent, Path(__file__).parent
SEEDS = int(os.environ.get('SEEDS', 1))                                    # two runs each; 6 for the whole check
GRID = f'''out: sweep
parts: [neighbours]
grids:
- {{data: digits, model: [cebm, vae], preset: smoke, seed: {list(range(SEEDS))}, steps: 400, save_every: 0.3, validate_every: 0, options: {{latent_dim: 16}}}}
'''


pytestmark = pytest.mark.skipif(not os.environ.get('CLUSTER_TESTS'), reason='minutes; run them with: make clusters')


def sweep(folder, *words, **variables):
    return subprocess.Popen([BIN / 'cebm', 'sweep', 'grid.yaml', *map(str, words)], cwd=folder, env=os.environ | variables, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True, start_new_session=True)


def begun(folder): return sorted(folder.glob('sweep/*/checkpoint/state.safetensors'))


def until(process, ready, seconds=180):
    end = time.monotonic() + seconds
    while not ready():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, 'it took too long'
        time.sleep(0.1)


def check_done(folder, text):
    "Every run of the grid is there once, complete, and equal to one that was never interrupted."
    rows = read_grid(folder / 'grid.yaml').rows
    assert f'{len(rows)} of {len(rows)} runs are done' in text, text
    torch.set_num_threads(1)
    for row in rows:
        run = folder / 'sweep' / row.name
        assert is_trained(run) and (run / 'eval.json').is_file()
        steps = [int(line.split(',')[0]) for line in (run / 'metrics.csv').read_text().splitlines()[1:]]
        assert steps == list(range(1, 401, 10))                            # no update twice
    for row in rows[:1] + rows[-1:]:
        d = row.document
        alone = train(d['model'], d['data'], 'smoke', folder / f'alone-{row.name}', d['seed'], 400, options=d['options'], validate_every=0, progress=False, device='cpu')
        ours, theirs = (load_file(path / 'model.safetensors') for path in (alone.folder, folder / 'sweep' / row.name))
        assert all(torch.equal(ours[k], theirs[k]) for k in ours | theirs), row.name


def test_a_ray_cluster_that_loses_a_node_and_its_driver(tmp_path):
    cluster_utils = pytest.importorskip('ray.cluster_utils', reason='ray is not installed')
    (tmp_path / 'grid.yaml').write_text(GRID)
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=dict(num_cpus=0, include_dashboard=False))
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        about = dict(RAY_ADDRESS=cluster.address, OMP_NUM_THREADS='1')
        driver = sweep(tmp_path, '--on', 'ray', '--jobs', 3, **about)
        until(driver, lambda: len(begun(tmp_path)) >= SEEDS)
        cluster.remove_node(nodes[0], allow_graceful=False)                # what it did goes on elsewhere
        until(driver, lambda: len(begun(tmp_path)) >= 2 * SEEDS - SEEDS // 2)
        os.killpg(driver.pid, signal.SIGKILL)
        driver.communicate()
        cluster.add_node(num_cpus=1)
        again = sweep(tmp_path, '--on', 'ray', '--jobs', 3, **about)
        text = again.communicate(timeout=600)[0]
        assert again.returncode == 0, text
        check_done(tmp_path, text)
    finally:
        for node in cluster.list_all_nodes(): cluster.remove_node(node, allow_graceful=False)                # at once
        cluster.shutdown()


@pytest.fixture
def slurm(tmp_path_factory):
    if os.geteuid(): pytest.skip('setting Slurm up needs root')
    if not shutil.which('slurmctld') and not os.environ.get('INSTALL_SLURM'): pytest.skip('Slurm is not installed; INSTALL_SLURM=1 installs it on Debian')
    folder = tmp_path_factory.mktemp('slurm')
    done = subprocess.run(['bash', HERE / 'slurm.sh', 'start', folder], capture_output=True, text=True)
    if done.returncode: pytest.skip(f'Slurm could not be started: {done.stderr[-300:]}')
    yield dict(SLURM_CONF=str(folder / 'slurm.conf'), OMP_NUM_THREADS='1')
    subprocess.run(['bash', HERE / 'slurm.sh', 'stop', folder])


def test_slurm_takes_a_grid_fails_a_row_requeues_a_job_and_gives_all_back(tmp_path, slurm):
    (tmp_path / 'grid.yaml').write_text(GRID + '- {data: digits, model: vae, preset: smoke, steps: 9, tag: impossible, settings: {batch_size: 1500}}\n')
    driver = sweep(tmp_path, '--on', 'slurm', '--jobs', 2, **slurm)
    until(driver, lambda: begun(tmp_path))
    def jobs(): return subprocess.run(['squeue', '-h', '-t', 'R', '-o', '%i'], env=os.environ | slurm, capture_output=True, text=True, check=True).stdout.split()
    until(driver, jobs)
    subprocess.run(['scontrol', 'requeue', jobs()[0]], env=os.environ | slurm, check=True)
    until(driver, lambda: len(begun(tmp_path)) >= 2)
    driver.kill()                                                          # its jobs stay in the queue
    driver.communicate()
    again = sweep(tmp_path, '--on', 'slurm', '--jobs', 2, **slurm)
    text = again.communicate(timeout=600)[0]
    assert again.returncode == 1 and 'FAILED digits-vae-s0-impossible: cebm train: batch_size must be at most 1437' in text, text
    (tmp_path / 'grid.yaml').write_text(GRID)
    text = sweep(tmp_path, '--jobs', 2).communicate(timeout=300)[0]        # nothing is left to do, here either
    check_done(tmp_path, text)
    assert list((tmp_path / 'sweep-slurm').iterdir()) and 'Next: cebm eval' in (tmp_path / 'sweep' / 'logs' / 'digits-cebm-s0.log').read_text()


def test_a_sweep_whose_folder_is_a_url_lives_there(tmp_path):
    (tmp_path / 'grid.yaml').write_text(GRID.replace('out: sweep', f'out: file://{tmp_path}/far/sweep').replace('steps: 400', 'steps: 30'))
    text = sweep(tmp_path, '--jobs', 2).communicate(timeout=300)[0]
    assert '2 of 2 runs are done' in text and (tmp_path / 'far/sweep/report/report.html').is_file(), text
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / 'far').rglob('model.safetensors')}
    shutil.rmtree(tmp_path / 'runs')                                       # another machine
    text = sweep(tmp_path, '--jobs', 2).communicate(timeout=300)[0]
    assert text.startswith('2 of 2 runs are done') and len(before) == 2, text
    assert all(is_trained(tmp_path / 'runs/sweep' / p.parent.name) for p in before)
