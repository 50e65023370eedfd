"""A run folder tells the truth or is refused: what howto/trust says, line by line."""
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import BIN, call
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from PIL import Image
from safetensors.torch import load_file, save_file

import cebm_nb as cn
from cebm_nb.processes import Group
from cebm_nb.report import pack_model, read_run, write_report
from cebm_nb.runs import Checkpoints
from cebm_nb.storage import OlderState, checksum, load_weights, save_weights
from cebm_nb.sweep import read_grid

HERE = Path(__file__).parent
QUICK = dict(preset='smoke', progress=False, validate_every=5, options=dict(latent_dim=4))


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    run = cn.train('cebm', 'digits', out=tmp_path_factory.mktemp('trained') / 'run', steps=12, **QUICK)
    cn.evaluate(run, cn.load_data('digits'), parts=['few-label', 'neighbours'], labels=(1,), draws=1, folder=run.folder)
    return run.folder


@pytest.fixture
def run(trained, tmp_path):
    shutil.copytree(trained, tmp_path / 'run')
    return tmp_path / 'run'


def edit(path, **changes): path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# Every number belongs to the weights and data that it names

class Folder(RuleBasedStateMachine):
    "Any sequence of training, kills, resumes, evaluations and reports."

    @initialize()
    def begin(self):
        import tempfile
        self.place = tempfile.TemporaryDirectory()
        self.folder, self.data = Path(self.place.name) / 'run', cn.load_data('digits')
        cn.train('cebm', self.data, out=self.folder, steps=7, save_every=0, **QUICK)           # saved at each update, so that a kill can be between two saves of a resumed run

    @rule(more=st.integers(1, 8))
    def resume(self, more): cn.resume(self.folder, data=self.data, steps=self.saved()[1]['step'] + more, progress=False)

    @rule(more=st.integers(1, 8), at=st.integers(1, 8))
    def kill(self, more, at):
        class Kill(BaseException): pass
        start = self.saved()[1]['step']
        def now(trainer, used):
            if trainer.step >= start + at: raise Kill
        try: cn.resume(self.folder, data=self.data, steps=start + more, progress=False, callbacks=(now,))
        except Kill: pass

    @rule(which=st.sampled_from(['last', 'best']), parts=st.sampled_from([['few-label'], ['neighbours'], ['few-label', 'neighbours']]))
    def evaluate(self, which, parts):
        if which == 'best' and not (self.folder / 'best.safetensors').exists(): return
        cn.evaluate(cn.load_run(self.folder, which), self.data, parts=parts, labels=(1,), draws=1, folder=self.place_of(which))

    @rule(which=st.sampled_from(['last', 'best']))
    def report(self, which):
        try: shown = read_run(self.place_of(which))
        except (cn.UserError, FileNotFoundError): return
        fresh = cn.evaluate(cn.load_run(self.folder, which), self.data, parts=['few-label', 'neighbours'], labels=(1,), draws=1)
        for part in ('few_label', 'neighbours'): assert shown.result[part] in ([], fresh[part])
        assert not shown.finished or which == 'best' or shown.finished['updates'] == self.saved()[1]['step']
        write_report([self.place_of(which)], Path(self.place.name) / 'page', pictures=False)

    @invariant()
    def it_can_be_loaded_and_says_how_it_ended(self):
        ended = cn.load_run(self.folder).config['run']['finished']
        assert ended is None or ended['updates'] == self.saved()[1]['step']

    @invariant()
    def measurements_are_of_the_way_so_far(self):
        step, notes = self.saved()[1]['step'], Checkpoints(self.folder / 'checkpoint').newest()[1]['notes']
        assert all(row['step'] <= step for row in notes.get('health', []))
        if (self.folder / 'health.csv').exists(): assert len((self.folder / 'health.csv').read_text().splitlines()) == 1 + len(notes['health'])

    def saved(self): return load_weights(self.folder / 'model.safetensors')
    def place_of(self, which): return self.folder / 'best' if which == 'best' else self.folder
    def teardown(self): self.place.cleanup()


Folder.TestCase.settings = settings(max_examples=int(os.environ.get('CEBM_FUZZ', 300)) // 30, stateful_step_count=8, deadline=None, derandomize=True, database=None)
TestAnySequence = Folder.TestCase


def test_an_evaluation_of_other_weights_is_not_shown(run, tmp_path):
    cn.resume(run, steps=20, progress=False)
    for use in (lambda: write_report([run], tmp_path / 'page'), lambda: pack_model(run, tmp_path / 'packed.safetensors', 'none')):
        with pytest.raises(cn.UserError, match='of other weights than the run has; evaluate again'): use()
    assert not (tmp_path / 'page').exists() and not (tmp_path / 'packed.safetensors').exists()


@pytest.mark.parametrize('changes, word', [
    (dict(seed=5), 'seed is 5, it was 0'), (dict(data='mnist-5k'), 'data is'), (dict(options=dict(latent_dim=5)), 'options is'),
    (lambda c: c['settings']['sampler'].update(steps=4), 'settings is'), (lambda c: c['run'].update(data='0' * 16), 'was changed since'),
    (lambda c: c['run']['finished'].update(updates=3000), 'speaks of update 3000')])
def test_a_changed_configuration_is_refused_by_every_command(run, changes, word):
    config = json.loads((run / 'config.json').read_text())
    changes(config) if callable(changes) else config.update(changes)
    (run / 'config.json').write_text(json.dumps(config))
    for words in (['eval', 'run', '--only', 'neighbours'], ['sample', 'run'], ['report', 'run'], ['train', '--resume', 'run', '--steps', 13]):
        if words[0] == 'train' and 'speaks' in word: continue  # it goes on from its checkpoint and writes the truth
        status, _, err = call(run.parent, *words)
        assert status == 2 and len(err.splitlines()) == 1 and word in err, (words, err)


def test_a_resumed_run_that_is_killed_has_not_ended(run):
    class Kill(BaseException): pass
    def kill(trainer, used):
        if trainer.step == 15: raise Kill
    edit(run / 'config.json', save_every=0.)
    with pytest.raises(Kill): cn.resume(run, steps=20, progress=False, callbacks=(kill,))
    assert load_weights(run / 'model.safetensors')[1]['step'] == 15
    status, out, err = call(run.parent, 'eval', 'run', '--only', 'neighbours')
    assert status == 0 and 'NOT TRAINED TO ITS END' in out, err


def test_a_run_that_diverged_without_rollbacks_speaks_of_the_model_it_left(tmp_path):
    from cebm_nb.trainer import DivergenceError
    def astray(trainer, used):
        if trainer.step == 9: raise DivergenceError('sent astray')
    with pytest.raises(DivergenceError): cn.train('cebm', 'digits', out=tmp_path / 'run', steps=20, rollbacks=0, callbacks=(astray,), **QUICK)
    assert cn.load_run(tmp_path / 'run').config['run']['finished'] | dict(seconds=0) == dict(status='diverged', updates=0, seconds=0)


def test_weights_of_another_run_are_refused(run, tmp_path):
    other = cn.train('cebm', 'digits', out=tmp_path / 'other', steps=12, seed=1, **QUICK).folder
    for name in ('model.safetensors', 'best.safetensors'): shutil.copy(other / name, run / name)
    for which in ('last', 'best'):
        with pytest.raises(cn.UserError, match='was changed since its weights were made'): cn.load_run(run, which)
    tensors = load_file(other / 'model.safetensors')
    save_file(tensors, run / 'model.safetensors')
    with pytest.raises(cn.UserError, match='not those of a run'): cn.load_run(run)


def test_chains_of_an_older_checkpoint_are_told(run):
    path = run / 'checkpoint' / 'state.safetensors'
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.warns(OlderState, match='state.safetensors is damaged.*previous.safetensors, update 0'): cn.load_run(run).chains
    status, out, err = call(run.parent, 'sample', 'run', '--n', 2, '--steps', 1)
    assert status == 0 and 'previous.safetensors, update 0' in err and len(err.splitlines()) == 1
    status, out, err = call(run.parent, 'eval', 'run', '--only', 'samples')
    assert status == 0 and 'previous.safetensors, update 0' in out + err


def test_a_checkpoint_is_never_missing_while_it_is_saved(run):
    checkpoints, ended, read = Checkpoints(run / 'checkpoint'), threading.Event(), 0
    tensors, record, *_ = checkpoints.newest()
    trainer = type('Trainer', (), dict(group=Group(), state=lambda self: (tensors, record)))()
    def write():
        while not ended.is_set(): checkpoints.save(trainer)
    writer = threading.Thread(target=write)
    writer.start()
    try:
        while read < 1000:
            _, _, path, wrong = checkpoints.newest()
            assert path.name == 'state.safetensors' and not wrong
            read += 1
    finally: ended.set(); writer.join()


def test_the_same_run_has_the_same_bytes(trained, tmp_path):
    status, _, err = call(tmp_path, *'train --data digits --preset smoke --latent-dim 4 --validate-every 5 --steps 12 --quiet --out again'.split())
    assert status == 0, err
    for name in ('model.safetensors', 'best.safetensors', 'health.csv'): assert (trained / name).read_bytes() == (tmp_path / 'again' / name).read_bytes(), name


def test_second_derivatives_of_the_fast_energy_are_an_error():
    from cebm_nb.fast import FrozenEnergy
    x = torch.zeros(2, 1, 8, 8, requires_grad=True)
    energy = FrozenEnergy(cn.create_model('cebm', (1, 8, 8)), 'float32')
    with pytest.raises(RuntimeError, match='no second derivatives'): torch.autograd.grad(energy(x).sum(), x, create_graph=True)
    assert torch.autograd.grad(energy(x).sum(), x)[0].abs().max() > 0


# Outside the folder

LINKS = ['.eval.json.part', '.config.json.part', '.run.lock', '.eval.lock', 'eval.json', 'figures', 'figures/ood.png', 'checkpoint', 'checkpoint/state.safetensors', 'model.safetensors', 'health.csv', 'config.json', 'best']


@pytest.mark.parametrize('name', LINKS)
def test_links_in_a_run_folder_are_refused_and_not_followed(run, tmp_path, name):
    secret, path = tmp_path / 'secret', run / name
    if path.is_dir(): path.rename(secret)
    elif path.exists(): path.parent.mkdir(exist_ok=True); path.rename(secret)
    elif name == 'best': secret.mkdir()
    else: secret.write_text('mine')
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(secret)
    def contents(): return {p: p.read_bytes() for p in [secret, *secret.rglob('*')] if p.is_file()}
    before = contents()
    for words in (['eval', 'run', '--only', 'neighbours'], ['sample', 'run', '--n', 2], ['report', 'run', '--out', 'page'], ['train', '--resume', 'run', '--steps', 13]):
        status, _, err = call(tmp_path, *words)
        assert status == 2 and len(err.splitlines()) == 1 and 'is a link' in err, (words, err)
    assert contents() == before and not (tmp_path / 'page').exists()


def test_devices_and_pipes_are_refused(run):
    os.mkfifo(run / 'metrics.txt')
    with pytest.raises(cn.UserError, match='is a link or a device'): cn.load_run(run)


def test_a_new_run_does_not_follow_a_link_that_waits_for_it(tmp_path):
    (tmp_path / 'secret').write_text('mine')
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / '.run.lock').symlink_to(tmp_path / 'secret')
    with pytest.raises(cn.UserError, match='is a link'): cn.train('cebm', 'digits', out=tmp_path / 'run', steps=3, **QUICK)
    assert (tmp_path / 'secret').read_text() == 'mine'


# Words in reports and on the terminal

HOSTILE = '![t](https://example.org/x.png)<img src=x onerror=alert(1)>\n# Heading\n[a](b) `c` \x1b[31m'


def test_what_a_report_repeats_is_text(run, tmp_path):
    config = json.loads((run / 'config.json').read_text())
    config['run']['versions'] |= dict(machine=HOSTILE, commit=HOSTILE)
    (run / 'config.json').write_text(json.dumps(config))
    result = json.loads((run / 'eval.json').read_text())
    result['skipped'] = [HOSTILE]
    for r in [*result['few_label'], *result['neighbours']]: r['representation'] = r['representation'] if r['representation'] in ('pixel', 'HOG') else HOSTILE
    (run / 'eval.json').write_text(json.dumps(result))
    (run / 'figures').mkdir(exist_ok=True)
    shutil.copy(next(iter((HERE.parent / 'nbs' / 'images').glob('*.png'))), run / 'figures' / 'eval_samples_](x) ![y](https:.png')
    status, _, err = call(tmp_path, 'report', 'run', '--out', 'page', '--title', HOSTILE)
    assert status == 0, err
    page, text = (tmp_path / 'page' / 'report.html').read_text(), (tmp_path / 'page' / 'report.md').read_text()
    sources = [piece.split('"')[0] for piece in page.split('src="')[1:]]
    assert sources and all(source.startswith('data:image/png;base64,') for source in sources)
    assert 'onerror=alert(1)&gt;' in page and '<img src=x' not in page and '\x1b' not in page + text
    assert all(piece.startswith('"#part-') for piece in page.split('href=')[1:])  # the contents of the page, no other links
    assert page.count('<h1>') == 1 and not any(line.startswith('# Heading') for line in text.splitlines())


def test_class_names_are_text_in_figures(tmp_path):
    for name in (r'$\frac$', '$x^$', 'a\nb', 'x' * 200):
        for i in range(12):
            (tmp_path / 'photos' / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.random.default_rng(i).integers(0, 256, (8, 8), np.uint8)).save(tmp_path / 'photos' / name / f'{i}.png')
    data = cn.load_data(f'folder:{tmp_path}/photos')
    cn.evaluate(cn.create_model('cebm', (1, 8, 8), latent_dim=4), data, parts=['neighbours', 'few-label'], labels=(1,), draws=1, folder=tmp_path / 'out')
    assert (tmp_path / 'out' / 'figures' / 'confusion.png').is_file()


def test_pictures_that_are_none_stay_out(run, tmp_path):
    result = json.loads((run / 'eval.json').read_text())
    result['samples'] = [dict(representation='cebm', images='x', number=None, frechet=None, kernel=None, rhat=None, ess=None, draws=None)]
    (run / 'eval.json').write_text(json.dumps(result))
    for content in (b'<svg onload="alert(1)">', b'\x89PNG\r\n\x1a\n' + bytes(2**24)):
        (run / 'figures').mkdir(exist_ok=True)
        (run / 'figures' / 'chain_trajectory.png').write_bytes(content)
        with pytest.raises(cn.UserError, match='no PNG of at most'): write_report([run], tmp_path / 'page')


# Grids, configurations, hunger

def test_a_sweep_whose_folder_has_braces(tmp_path):
    (tmp_path / 'grid.yaml').write_text('out: "a{b}"\nparts: [neighbours]\ngrids: [{data: digits, preset: smoke, steps: 3, options: {latent_dim: 4}}]\n')
    status, out, err = call(tmp_path, 'sweep', 'grid.yaml')
    assert status == 0 and (tmp_path / 'a{b}' / 'report' / 'report.md').is_file(), out + err


@pytest.mark.parametrize('text, word', [
    ('grids: [{data: !!binary ZGlnaXRz}]', 'holds a bytes'), ('grids: [{model: !!python/name:os.system }]', 'constructor'), ('grids: [{device: gpu}]', 'unknown device'),
    ('grids: [{precision: float8}]', 'precision'), ('grids: [{options: {latent_dims: 4}}]', "did you mean 'options.latent_dim'"), (f'grids: [{{seed: {list(range(11_000))}}}]', '10,000 rows'), ('grids: [' + ', '.join(f'{{seed: {list(range(n, n + 2000))}}}' for n in range(0, 12_000, 2000)) + ']', '10,000 rows'),
    ('a: &a [1, 1, 1, 1]\nb: &b [*a, *a, *a, *a]\nc: &c [*b, *b, *b, *b]\nd: &d [*c, *c, *c, *c]\ne: &e [*d, *d, *d, *d]\nf: &f [*e, *e, *e, *e]\ng: &g [*f, *f, *f, *f]\nh: [*g, *g, *g, *g]', 'more than 100,000')])
def test_untrusted_grids(tmp_path, text, word):
    (tmp_path / 'grid.yaml').write_text(text)
    with pytest.raises(cn.UserError, match=word) as caught: read_grid(tmp_path / 'grid.yaml')
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize('options', [dict(components=65536, latent_dim=65536), dict(encoder='residual', encoder_options=dict(blocks=20_000)),
                                     dict(encoder_options=dict(channels=[2**14] * 4)), dict(encoder='mlp', encoder_options=dict(hidden=[10**6] * 3))])
def test_models_beyond_measure_are_refused_before_they_are_made(options, run):
    code = f'''
import json, resource, sys
from pathlib import Path
import cebm_nb as cn
from cebm_nb.storage import load_weights, save_weights
def refused(call):
    try: call()
    except cn.UserError as error: print(error, file=sys.stderr)
    else: raise SystemExit('it was made')
options = {options!r}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
refused(lambda: cn.create_model('gmm-cebm', (1, 8, 8), **options))
path, tensors = Path('model.safetensors'), load_weights('model.safetensors')[0]
save_weights(path, tensors, dict(model=dict(name='gmm-cebm', in_shape=[1, 8, 8], seed=0) | options))
refused(lambda: cn.load_model(path))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
'''
    done = subprocess.run([sys.executable, '-c', code], cwd=run, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 300                                             # MB


def test_weights_that_are_not_numbers_have_diverged(run):
    tensors, record = load_weights(run / 'model.safetensors')
    save_weights(run / 'model.safetensors', {k: v * float('nan') for k, v in tensors.items()}, record)
    for words in (['eval', 'run'], ['sample', 'run']):
        status, _, err = call(run.parent, *words)
        assert status == 2 and 'has diverged' in err and len(err.splitlines()) == 1


def test_settings_that_leave_no_chain_to_learn_from(tmp_path):
    with pytest.raises(cn.UserError, match='leave 0 % of the chains'): cn.train('cebm', 'digits', out=tmp_path / 'no', steps=5, buffer=dict(restart_prob=1., burn_in=2), **QUICK)
    few = cn.train('cebm', 'digits', out=tmp_path / 'few', steps=3, buffer=dict(size=16, restart_prob=0.75, burn_in=2), **QUICK | dict(options=dict(latent_dim=4)))
    result = cn.evaluate(few, cn.load_data('digits'), parts=['samples'])
    assert len(few.chains) < 8 and any('fewer than 8 chains' in line for line in result['skipped']) and result['samples']


@pytest.mark.parametrize('name', ['config.json', 'eval.json'])
def test_a_checkpoint_or_a_file_of_another_form(run, name):
    tensors, record = load_weights(run / 'checkpoint' / 'state.safetensors')
    for wrong in (dict(step=-1), dict(rows=[1]), dict(notes=None), dict(rollbacks=[None]), dict(step='5')):
        save_weights(run / 'checkpoint' / 'state.safetensors', tensors, record | wrong)
        with pytest.raises(cn.UserError, match='is of another run'): cn.resume(run, steps=13, progress=False)


def test_an_evaluation_that_cannot_be_read_is_set_aside_and_made_anew(run):
    (run / 'eval.json').write_text('{"few_label": 3}')
    status, _, err = call(run.parent, 'eval', 'run', '--only', 'neighbours')
    assert status == 0 and json.loads((run / 'eval.json').read_text())['neighbours'] and (run / 'eval-before.json').read_text() == '{"few_label": 3}'


# Everything else

def test_mutations_of_every_text_file():
    done = subprocess.run([sys.executable, HERE / 'fuzz.py', os.environ.get('CEBM_FUZZ', '150')], capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
