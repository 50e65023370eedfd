"""Malformed inputs by the thousand: errors meant for users in one line, no hang, no file left behind."""
import gzip
import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from commands import run_lines

import cebm_nb.data
from cebm_nb.cli import base_config, parse, to_document, train_options
from cebm_nb.conjugacy import MixturePrior, Prior
from cebm_nb.data import ImageSet, load_data
from cebm_nb.families import Gaussian
from cebm_nb.runs import Run, resume, train
from cebm_nb.settings import MODELS, Budget, UserError, get_settings, read_document
from cebm_nb.sgld import ReplayBuffer, SGLD
from cebm_nb.storage import load_weights
from cebm_nb.zoo import create_model, load_model
from cebm_nb.sweep import read_grid, row_command

nothing = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


def many(n): return settings(max_examples=n, deadline=None, suppress_health_check=nothing, derandomize=True, database=None)


def told(call, *errors):
    "Run a call; the errors named are welcome, with one line that is not empty, and anything else is a failure. Whether it was accepted."
    try: call()
    except errors or (UserError, OSError) as error:
        assert str(error).strip() and len(str(error).splitlines()) == 1, repr(error)
        return False
    return True


def refused(call, *errors): assert not told(call, *errors)


junk = st.one_of(st.none(), st.booleans(), st.integers(-10, 10), st.integers(-2**70, 2**70), st.floats(), st.text(max_size=8), st.lists(st.integers(-3, 100), max_size=4), st.dictionaries(st.text(max_size=3), st.integers(), max_size=2))
number = st.one_of(st.floats(), st.sampled_from([0., -1., 255., 1e30, float('nan'), float('inf')]))


@st.composite
def tensors(draw, dims=st.integers(0, 5)):
    shape = [draw(st.integers(0, 9)) for _ in range(draw(dims))]
    x = torch.zeros(shape, dtype=draw(st.sampled_from([torch.float32, torch.float64, torch.uint8, torch.int64, torch.bool])))
    return x if not x.is_floating_point() or not x.numel() else x + draw(number)


@many(300)
@given(junk, tensors(), tensors())
def test_families_and_priors(dim, natural, z):
    told(lambda: Gaussian(dim))
    family = Gaussian(3)
    for method in (family.log_normalizer, family.to_natural, family.to_free): told(lambda: method(natural))
    told(lambda: family.suff_stats(z))
    told(lambda: Prior(family, natural))
    told(lambda: MixturePrior(family, natural))


@many(300)
@given(st.one_of(st.sampled_from(list(MODELS)), junk), st.one_of(st.just((1, 8, 8)), st.tuples(st.integers(-1, 70), st.integers(-1, 70)), junk),
       st.one_of(st.integers(-2, 9), junk), st.one_of(st.integers(0, 5), junk), st.one_of(st.none(), st.integers(-2, 9), junk))
def test_models_that_cannot_be(name, in_shape, latent_dim, seed, components):
    if isinstance(latent_dim, int) and latent_dim > 100 or isinstance(components, int) and components > 100: latent_dim, components = 2**40, 2**40  # not large ones that would be made
    try: create_model(name, in_shape, **dict(latent_dim=latent_dim, seed=seed) | ({} if components is None else dict(components=components)))
    except UserError as error: assert str(error).strip() and len(str(error).splitlines()) == 1
    else: assert name in MODELS and isinstance(latent_dim, int) and 1 <= latent_dim <= 100 and isinstance(seed, int) and tuple(in_shape)[0] in (*range(1, 101), 1)


made = {name: create_model(name, (1, 8, 8), latent_dim=4).eval() for name in list(MODELS)}


@many(400)
@given(st.sampled_from(list(MODELS)), tensors(), tensors(st.integers(1, 3)))
def test_images_and_latents_that_do_not_belong(name, x, z):
    model = made[name]
    for method in ('encode', 'posterior', 'responsibilities', 'reconstruct'):
        if not hasattr(model, method): continue
        if x.is_floating_point() and x.shape == (0, 1, 8, 8): continue  # none of a thing is none of its codes
        with pytest.raises(UserError) as caught: getattr(model, method)(x)  # none of these is (B, 1, 8, 8) and on the scale of the model
        assert len(str(caught.value).splitlines()) == 1
    for method in ('decode', 'log_prior'):
        if hasattr(model, method): told(lambda: getattr(model, method)(z))


@pytest.mark.parametrize('name', list(MODELS))
@pytest.mark.parametrize('value, word', [(255., 'scale bytes with'), (float('nan'), 'finite'), (float('-inf'), 'finite')])
def test_images_on_another_scale(name, value, word):
    with pytest.raises(ValueError, match=word): made[name].encode(torch.full((2, 1, 8, 8), value))
    with pytest.raises(ValueError, match='scale bytes with'): made[name].encode(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))


@many(300)
@given(st.sampled_from(['optimiser', 'batch_size', 'sampler', 'max_gap', 'optimiser.average', 'optimiser.cosine', 'rollbacks', 'buffer.size', 'buffer.start', 'buffer.restart_prob', 'buffer.burn_in', 'sampler.steps', 'no_such']), junk, junk, st.sampled_from(['paper', 'cpu', 'smoke', 'x']))
def test_settings_and_budgets(name, value, other, preset):
    if name == 'buffer.size' and isinstance(value, int) and value > 100: value = 2**50  # not one that would just fit
    group, _, last = name.rpartition('.')
    change = {group: {last: value}} if group else {last: value}
    (refused if name == 'no_such' or preset == 'x' else told)(lambda: get_settings(preset, 'cebm', **change))
    told(lambda: Budget(steps=value, minutes=other))
    refused(lambda: train('cebm', 'digits', 'smoke', out='/proc/no', progress=False, **change))  # a folder that cannot be, should the value be a good one


words = st.sampled_from(['data', 'model', 'seed', 'minutes', 'steps', 'epochs', 'tag', 'preset', 'settings', 'options', 'colour', 'data_noise'])
block = st.dictionaries(words, st.one_of(junk, st.sampled_from(['digits', 'cebm', 'paper']), st.lists(st.sampled_from(['digits', 'mnist', 'vae', 'gpt']), max_size=3)), max_size=4)


@many(300)
@given(st.one_of(st.text(max_size=30), st.fixed_dictionaries(dict(grids=st.one_of(junk, st.lists(st.one_of(block, junk), max_size=3))), optional=dict(out=junk, parts=junk, draws=junk, title=junk, colour=junk)).map(json.dumps)))
def test_grids(tmp_path_factory, text):
    path = tmp_path_factory.mktemp('grid') / 'grid.yaml'
    path.write_text(text, encoding='utf-8', errors='replace')
    told(lambda: [(Path(grid.out) / row.name, row_command(row, grid.out)) for grid in [read_grid(path)] for row in grid.rows])
    assert [p.name for p in path.parent.iterdir()] == ['grid.yaml']


@pytest.mark.parametrize('more', [dict(labels=[]), dict(parts=[]), dict(draws=True), dict(vary={1: [4]}), dict(vary={'data': ['nonsense']}), dict(root=5), dict(budget=dict(steps=5)),
                                  dict(settings=dict(optimiser=dict(beta1=1.)))], ids=str)
def test_grids_whose_rows_would_fail_after_training(tmp_path, more):
    of_grid = {k: v for k, v in more.items() if k in ('labels', 'parts', 'draws')}
    (tmp_path / 'grid.yaml').write_text(yaml.safe_dump(of_grid | dict(grids=[dict(data='digits', steps=2) | {k: v for k, v in more.items() if k not in of_grid}])))
    with pytest.raises(UserError): read_grid(tmp_path / 'grid.yaml')


def test_the_command_of_a_row_says_what_the_row_says(tmp_path):
    for options in (dict(encoder_options=dict(channels=[4, 8, 8, 8], hidden=[16], activation='tanh')), dict(encoder='residual', encoder_options=dict(blocks=1)), dict(encoder_options=dict(a='1', b='none', c=None, d=True, e=1e-7)),
                    dict(encoder_options={})):
        (tmp_path / 'grid.yaml').write_text(yaml.safe_dump(dict(grids=[dict(data='digits', steps=2, options=options)])))
        row, = read_grid(tmp_path / 'grid.yaml').rows
        words = shlex.split(row_command(row, 'runs'))[2:]
        config = base_config(words)
        assert read_document(to_document(parse(train_options(config), words, 'cebm train'), config)) == read_document(row.document)


@many(150)
@given(st.one_of(tensors(), st.lists(st.lists(number, max_size=3), max_size=3), st.text(max_size=5), st.lists(st.text(max_size=3), max_size=3)),
       st.one_of(st.none(), tensors(st.integers(0, 2)), st.lists(junk, max_size=3)))
def test_arrays_that_are_no_images(images, labels):
    told(lambda: ImageSet.from_array(images if isinstance(images, torch.Tensor) else np.array(images, dtype=object), labels))


@many(150)
@given(st.binary(max_size=60), st.sampled_from(['png', 'jpg', 'bmp', 'gif', 'txt']), st.booleans(), st.one_of(st.none(), st.integers(-1, 70)))
def test_folders_of_what_are_no_images(tmp_path_factory, content, ending, nested, size):
    folder = tmp_path_factory.mktemp('images')
    (folder / 'a').mkdir()
    for i in range(3): (folder / 'a' / f'{i}.{ending}' if nested else folder / f'{i}.{ending}').write_bytes(content)
    before = sorted(folder.rglob('*'))
    told(lambda: load_data(f'folder:{folder}', image_size=size))
    assert sorted(folder.rglob('*')) == before


@many(150)
@given(st.binary(max_size=40), st.binary(max_size=40), st.booleans(), st.integers(0, 60))
def test_idx_files_that_are_none(tmp_path_factory, head, tail, packed, cut):
    folder = tmp_path_factory.mktemp('idx')
    good = b'\0\0\x08\x01' + (3).to_bytes(4, 'big') + b'abc'
    content = gzip.compress(head + good + tail) if packed else head + tail
    for part in ('train', 't10k'):
        for kind in ('images-idx3', 'labels-idx1'): (folder / f'{part}-{kind}-ubyte.gz').write_bytes(content[:cut] if cut < 50 else content)
    told(lambda: cebm_nb.data._debian(folder))


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    return train('cebm', 'digits', 'smoke', out=tmp_path_factory.mktemp('run') / 'run', steps=12, progress=False, validate_every=0, options=dict(latent_dim=4)).folder


files = ['config.json', 'metrics.csv', 'model.safetensors', 'checkpoint/state.safetensors']


@many(300)
@given(st.sampled_from(files), st.sampled_from(['flip', 'cut', 'insert', 'replace']), st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=20))
def test_run_folders_that_were_damaged(tmp_path_factory, run, name, how, where, content):
    folder = tmp_path_factory.mktemp('damaged') / 'run'
    shutil.copytree(run, folder)
    data = bytearray((folder / name).read_bytes())
    at = int(len(data) * where)
    if how == 'flip': data[at] ^= content[0] or 1
    elif how == 'cut': del data[at:]
    elif how == 'insert': data[at:at] = content
    else: data[at:at + len(content)] = content
    (folder / name).write_bytes(data)
    before = {p: p.read_bytes() for p in folder.rglob('*') if p.is_file()}
    told(lambda: Run.load(folder))
    told(lambda: load_model(folder))
    told(lambda: load_weights(folder / 'checkpoint' / 'state.safetensors'))
    assert {p: p.read_bytes() for p in folder.rglob('*') if p.is_file()} == before
    shutil.rmtree(folder.parent)


@many(200)
@given(st.sampled_from(['model', 'data', 'settings', 'options', 'budget', 'seed', 'device', 'precision', 'image_size', 'run']), junk, st.booleans())
def test_configs_that_say_something_else(tmp_path_factory, run, key, value, inside):
    folder = tmp_path_factory.mktemp('config') / 'run'
    shutil.copytree(run, folder)
    config = json.loads((folder / 'config.json').read_text())
    if inside and isinstance(config[key], dict): config[key][next(iter(config[key]))] = value
    else: config[key] = value
    (folder / 'config.json').write_text(json.dumps(config))
    told(lambda: load_model(folder))
    if key != 'budget': told(lambda: resume(folder, steps=13, progress=False))
    shutil.rmtree(folder.parent)


@many(100)
@given(junk, junk, junk, junk)
def test_kernels_and_buffers(a, b, c, d):
    told(lambda: SGLD(a, b, c, d))
    if not isinstance(a, int) or a < 100: told(lambda: ReplayBuffer(a, (1, 8, 8), b))


word = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=6).map(lambda s: '§' + s)  # no number, no name, no option


def test_command_lines(tmp_path, run):
    lines = []
    options = ['--data', '--model', '--preset', '--steps', '--minutes', '--optimiser.learning-rate', '--device', '--precision', '--resume', '--encoder', '--family', '--save-every', '--config', '--use']

    @many(400)
    @given(st.sampled_from([*(('train', option) for option in options), ('eval', str(run), '--only'), ('eval', str(run), '--labels'), ('eval', str(run), '--draws'), ('eval', str(run), '--data'), ('eval',),
                            ('sample', str(run), '--n'), ('sample', str(run), '--start'), ('sample', str(run), '--out'), ('sample',), ('report',), ('bench', '--only'), ('sweep',), ()]),
           word, st.lists(st.sampled_from(['--steps', '--seed', '-1', '0', 'nan', '--no_such', '--out', 'x', '--quiet', '--latent_dim', 'none']), max_size=2))
    def collect(line, value, more): lines.append([*line[:1], *(['--out', 'none'] if line[:1] == ('train',) and '--resume' not in line else []), *line[1:], value, *more])
    collect()
    before = sorted(tmp_path.rglob('*')), {p: p.read_bytes() for p in run.rglob('*') if p.is_file()}
    for line, (status, err) in zip(lines, run_lines(lines, tmp_path, tmp_path.parent)):
        assert status == 2 and len(err.strip().splitlines()) == 1 and 'internal error' not in err, (line, status, err)
    assert len(lines) >= 390
    assert (sorted(tmp_path.rglob('*')), {p: p.read_bytes() for p in run.rglob('*') if p.is_file()}) == before
