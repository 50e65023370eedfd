"""Whoever brings her own data, network, sampler or loss, through the public face alone; and what must not go wrong without a word."""
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from commands import SMALL, call, start
from torch import nn

import cebm_nb as cn
from cebm_nb.data import load_images

rng = np.random.default_rng(0)
QUICK = dict(preset='smoke', progress=False, validate_every=0)


def arrays(n=200, side=8, **options): return cn.ImageData.from_arrays(rng.integers(0, 256, (n, side, side), np.uint8), rng.integers(0, 3, n), **options)
def contents(part): return {image.numpy().tobytes() for image in part.images}


# Own data, network, sampler and loss

OWN = '''
import sys
import numpy as np, torch
from torch import nn
import cebm_nb as cn
pixels = np.random.default_rng(0).integers(0, 256, (300, 8, 8), np.uint8)
data = cn.ImageData.from_arrays(pixels, np.arange(300) % 3, name='mine')
def network():
    torch.manual_seed(0)
    return cn.CEBM(nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.SiLU(), nn.Linear(32, 16)), cn.Prior(cn.families.Gaussian(8)), in_shape=(1, 8, 8))
def walk(energy, x, generator=None):
    for _ in range(3): x = x - torch.autograd.grad(energy(x.requires_grad_()).sum(), x)[0] + 0.01 * torch.empty_like(x).normal_(generator=generator)
    return x.detach()
def logistic(data, samples, counted): return nn.functional.softplus(data).mean() + nn.functional.softplus(-samples[counted]).mean()
own = dict(sampler=walk, objective=logistic)
out, steps = sys.argv[1], int(sys.argv[2])
if len(sys.argv) > 3: cn.resume(out, network(), data, steps=steps, progress=False, **own)
else: cn.train(network(), data, preset='smoke', out=out, steps=steps, save_every=0.05, validate_every=100, progress=False, **own)
'''


def test_own_everything_trained_killed_resumed_loaded_encoded_and_evaluated(tmp_path):
    (tmp_path / 'own.py').write_text(OWN)
    def run(*words): return subprocess.run([sys.executable, 'own.py', *words], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert run('whole', '400').returncode == 0
    process = subprocess.Popen([sys.executable, 'own.py', 'killed', '400'], cwd=tmp_path)
    state, deadline = tmp_path / 'killed' / 'checkpoint' / 'previous.safetensors', time.monotonic() + 120
    while not state.exists() and process.poll() is None and time.monotonic() < deadline: time.sleep(0.01)
    process.kill(); process.wait()
    assert process.returncode == -signal.SIGKILL
    done = run('killed', '400', 'resume')
    assert done.returncode == 0, done.stderr
    first, second = (load_file(tmp_path / name / 'checkpoint' / 'state.safetensors') for name in ('whole', 'killed'))
    assert first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)
    space = {}
    exec(OWN.split('out, steps')[0], space)
    model = cn.load_model(tmp_path / 'whole', model=space['network']())
    assert model.encode(space['data'].test.to_float()).shape == (len(space['data'].test), 8)
    result = cn.evaluate(model, space['data'], parts=['few-label', 'neighbours', 'ood'], labels=(1,), draws=2)
    assert result['few_label'] and result['neighbours'] and result['ood']
    own, network = space['own'], space['network']()
    for missing, word in ((dict(), 'sampler walk .* objective logistic'), (own | dict(sampler=print), 'sampler walk, got print'), (own, 'pass model='), (own | dict(model=network), 'pass data=')):
        with pytest.raises(cn.UserError, match=word): cn.resume(tmp_path / 'whole', **missing)
    status, _, err = call(tmp_path, 'eval', 'whole')
    assert status == 2 and 'model of your own' in err and len(err.splitlines()) == 1


def test_layouts_are_one_set_of_images():
    grey, colour = rng.integers(0, 256, (30, 8, 9), np.uint8), rng.integers(0, 256, (30, 8, 9, 3), np.uint8)
    one = cn.ImageData.from_arrays(grey)
    for other in (grey[..., None], grey[:, None], torch.from_numpy(grey), [Image.fromarray(g) for g in grey], torch.utils.data.TensorDataset(torch.from_numpy(grey), torch.zeros(30))):
        made = cn.ImageData.from_arrays(other)
        assert contents(made.train) == contents(one.train) and made.in_shape == (1, 8, 9)
    assert cn.ImageData.from_arrays(grey / 255., value_range=(0, 1)).fingerprint == cn.ImageData.from_arrays(grey.astype(int), value_range=(0, 255)).fingerprint == one.fingerprint
    assert cn.ImageData.from_arrays(colour).fingerprint == cn.ImageData.from_arrays(colour.transpose(0, 3, 1, 2)).fingerprint


def test_npz_in_the_layout_of_medmnist(tmp_path):
    parts = {f'{part}_{what}': rng.integers(0, 256, (n, 28, 28, 3), np.uint8) if what == 'images' else rng.integers(0, 4, (n, 1)) for part, n in (('train', 40), ('val', 10), ('test', 20)) for what in ('images', 'labels')}
    np.savez(tmp_path / 'blood.npz', **parts)
    data = cn.load_data(f'npz:{tmp_path}/blood.npz')
    assert {name: len(part) for name, part in data.parts.items()} == dict(train=40, valid=10, test=20) and np.array_equal(data.test.labels, parts['test_labels'][:, 0])
    assert cn.load_data(f'npz:{tmp_path}/blood.npz', image_size=14).in_shape == (3, 14, 14)
    np.savez(tmp_path / 'first.npz', **{key: v.transpose(0, 3, 1, 2) if v.ndim == 4 else v for key, v in parts.items()})
    for size in (None, 14): assert torch.equal(cn.load_data(f'npz:{tmp_path}/first.npz', image_size=size).test.images, cn.load_data(f'npz:{tmp_path}/blood.npz', image_size=size).test.images)
    np.savez(tmp_path / 'rows.npz', train_images=rng.random((20, 5)))
    with pytest.raises(cn.UserError, match='image_size'): cn.load_data(f'npz:{tmp_path}/rows.npz', image_size=14)
    np.savez(tmp_path / 'other.npz', x=parts['train_images'])
    (tmp_path / 'text.npz').write_text('no')
    np.savez(tmp_path / 'objects.npz', train_images=np.array([dict()], dtype=object))
    for name, word in (('other', 'train_images'), ('text', 'cannot be read'), ('objects', 'cannot be read')):
        with pytest.raises(cn.UserError, match=word): cn.load_data(f'npz:{tmp_path}/{name}.npz')


def test_vectors_train_and_are_evaluated(tmp_path):
    x = rng.normal(size=(300, 3)) + np.repeat([[0., 0, 0], [3, 3, 3]], 150, 0)
    data = cn.ImageData.from_arrays(x, np.repeat([0, 1], 150), name='points')
    for model in ('cebm', 'gmm-cebm', 'igebm'):
        run = cn.train(model, data, out=tmp_path / model, steps=20, options=dict(latent_dim=4), **QUICK)
        result = cn.evaluate(run, data, labels=(1,), draws=2)
        assert result['few_label'] and result['neighbours'] and [s for s in result['skipped'] if 'for images' in s]


def test_a_model_knows_the_parts_of_the_data():
    data = arrays(300).hold_out()
    assert data.name == 'own/validation' and not contents(data.train) & contents(data.valid) and not contents(data.test) & contents(data.valid)
    found = cn.evaluate(cn.create_model('cebm', (1, 8, 8), latent_dim=4), data, parts=['few-label'], labels=(1,), draws=1)
    assert found['on'] == 'valid' and found['test_images'] == len(data.valid)


def test_names_registered_by_a_file_work_in_commands(tmp_path):
    (tmp_path / 'mine.py').write_text("""
import numpy as np, torch
from torch import nn
import cebm_nb as cn
@cn.DATA_SETS.register('noise')
def noise(root, download): return cn.ImageData.from_arrays(np.random.default_rng(0).integers(0, 256, (99, 8, 8), np.uint8), np.arange(99) % 2, name='noise')
@cn.ENCODERS.register('tiny')
def tiny(in_shape, out_features): return nn.Sequential(nn.Flatten(), nn.Linear(64, out_features))
@cn.SAMPLERS.register('still')
def still(settings): return lambda energy, x0, generator=None: x0
class Halves(cn.families.Gaussian): pass
cn.FAMILIES['halves'] = Halves
cn.MODELS['own-cebm'] = cn.ModelKind(lambda in_shape, latent_dim: cn.CEBM(tiny(in_shape, 2 * latent_dim), cn.Prior(Halves(latent_dim)), in_shape))
""")
    words = ['--use', 'mine.py', '--data', 'noise', '--preset', 'smoke', '--steps', 6, '--validate-every', 0, '--quiet']
    for name, more in (('a', ['--encoder', 'tiny', '--sampler.name', 'still', '--family', 'halves']), ('b', ['--model', 'own-cebm', '--latent-dim', 3])):
        status, _, err = call(tmp_path, 'train', *words, *more, '--out', name)
        assert status == 0, err
        status, out, err = call(tmp_path, 'eval', '--use', 'mine.py', name, '--only', 'few-label', '--labels', '1', '--draws', 2)
        assert status == 0, err
    text = ' '.join(call(tmp_path, 'train', '--use', 'mine.py', '--help')[1].split())
    assert 'tiny' in text and 'noise' in text and 'own-cebm' in text and 'halves' in text
    status, _, err = call(tmp_path, 'eval', 'a')
    assert status == 2 and len(err.splitlines()) == 1


# Data known by more than their name

def folder_of(path, n, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (n, 8, 8), np.uint8)
    for i in range(n):
        (path / 'ab'[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[i]).save(path / 'ab'[i % 2] / f'{i:03}.png')


def test_a_run_goes_on_with_its_images_at_another_place(tmp_path):
    folder_of(tmp_path / 'photos', 100)
    straight = cn.train('cebm', f'folder:{tmp_path}/photos', out=tmp_path / 'straight', steps=9, options=dict(latent_dim=4), **QUICK)
    cn.train('cebm', f'folder:{tmp_path}/photos', out=tmp_path / 'run', steps=5, options=dict(latent_dim=4), **QUICK)
    (tmp_path / 'photos').rename(tmp_path / 'archive')
    folder_of(tmp_path / 'others', 100, seed=1)
    for words, told in ((), '--data'), (['--data', 'folder:others'], 'not those of the run'):
        status, _, err = call(tmp_path, 'train', '--resume', 'run', '--steps', 9, *words)
        assert status == 2 and told in err and len(err.splitlines()) == 1
    status, out, err = call(tmp_path, 'train', '--resume', 'run', '--steps', 9, '--data', 'folder:archive', '--quiet')
    assert status == 0 and 'Next: cebm eval run --data folder:archive' in out, err
    assert call(tmp_path, 'eval', 'run', '--data', 'folder:archive', '--only', 'clusters')[0] == 0
    assert json.loads((tmp_path / 'run' / 'eval.json').read_text())['data'] == f'folder:{tmp_path}/photos'
    for a, b in zip(straight.model.parameters(), cn.load_model(tmp_path / 'run').parameters()): assert torch.equal(a, b)


def test_a_folder_that_grows_keeps_its_split_and_is_noticed(tmp_path):
    folder_of(tmp_path / 'photos', 100)
    data = cn.load_data(f'folder:{tmp_path}/photos')
    run = cn.train('cebm', f'folder:{tmp_path}/photos', out=tmp_path / 'run', steps=5, options=dict(latent_dim=4), **QUICK)
    cn.evaluate(run, data, parts=['neighbours'], folder=run.folder)
    Image.fromarray(np.full((8, 8), 7, np.uint8)).save(tmp_path / 'photos' / 'a' / '0000.png')            # the first of all, so that positions move
    grown = cn.load_data(f'folder:{tmp_path}/photos')
    assert not contents(data.train) & contents(grown.test) and not contents(data.test) & contents(grown.train)
    for words in (['train', '--resume', 'run', '--steps', 9], ['eval', 'run', '--only', 'few-label']):
        status, _, err = call(tmp_path, *words)
        assert status == 2 and 'not those of the run' in err and len(err.splitlines()) == 1
    result = cn.evaluate(run, grown, parts=['few-label'], labels=(1,), draws=1, folder=run.folder)            # in Python, said on purpose
    assert not result['neighbours'] and json.loads((run.folder / 'eval-before.json').read_text())['neighbours']
    status, _, err = call(tmp_path, 'report', 'run')
    assert status == 2 and 'other images' in err


def test_data_with_a_name_that_is_taken_are_not_mistaken(tmp_path):
    run = cn.train('cebm', arrays(name='digits'), out=tmp_path / 'run', steps=5, options=dict(latent_dim=4), **QUICK)
    with pytest.raises(cn.UserError, match='not those of the run'): cn.resume(run.folder, steps=9, progress=False)


# Scale, types and shapes

def test_a_batch_on_another_scale_is_told():
    model, x = cn.load_model('cebm-mnist-5k'), cn.load_data('mnist-5k').test.to_float(slice(50))
    with pytest.warns(UserWarning, match=r'scale with 2 \* x - 1'): model.energy((x + 1) / 2)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        expected = model.energy(x)
        assert torch.equal(model.energy(x.double().numpy()), expected) and torch.equal(model.energy(x.double()), expected)
    for wrong, word in ((x * 127.5 + 127.5, 'scale bytes'), (x[0], 'shape'), (Image.new('L', (28, 28)), 'from_arrays'), ((x * 127).byte(), 'uint8')):
        for method in (model.energy, model.encode, model.posterior, cn.load_model('vae-fashion-mnist').elbo):
            with pytest.raises(cn.UserError, match=word): method(wrong)


def test_an_energy_that_is_not_one_number_an_image_is_refused(tmp_path):
    class Column(nn.Module):
        def __init__(self): super().__init__(); self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
        def energy(self, x): return self.net(x)
    with pytest.raises(cn.UserError, match='one number for each input'): cn.train(Column(), arrays(), out=tmp_path / 'run', **QUICK)
    made = cn.create_model('cebm', (1, 8, 8))
    for model, word in ((made.half(), 'model.float'), (made.double(), 'model.float'), (nn.Linear(2, 2), 'no energy')):
        with pytest.raises(cn.UserError, match=word): cn.train(model, arrays(), out=tmp_path / 'run', **QUICK)
    assert not (tmp_path / 'run').exists()


def test_a_subclass_with_its_own_statistics_stays_coherent():
    class Sharper(cn.CEBM):
        def suff_stats(self, x): return 3 * super().suff_stats(x)
    made = cn.create_model('gmm-cebm', (1, 8, 8), latent_dim=5, components=3).double()
    model, x, z = Sharper(made.encoder, made.prior), torch.rand(6, 1, 8, 8).double() * 2 - 1, torch.randn(6, 5).double()
    assert (model.energy(x) - made.energy(x)).abs().min() > 1e-3
    assert torch.allclose(model.log_joint(x, z), model.posterior(x).log_prob(z) - model.energy(x), rtol=1e-9)


# Pixels and folders

def test_transparency_orientation_and_depth(tmp_path):
    def read(name): return cn.load_data(f'folder:{tmp_path}/{name}').parts
    for i, name in enumerate(('alpha', 'exif', 'deep')): (tmp_path / name).mkdir()
    ink = np.zeros((8, 8), np.uint8); ink[0] = 255
    for i in range(4):
        Image.fromarray(np.stack([np.full((8, 8), 10 * i, np.uint8), ink], -1)).save(tmp_path / 'alpha' / f'{i}.png')  # dark ink where it is opaque
        lying = Image.fromarray(np.tile(np.arange(8, dtype=np.uint8) * 10 + i, (8, 1)))
        exif = lying.getexif(); exif[0x0112] = 6                                                                    # turn it by a quarter
        lying.save(tmp_path / 'exif' / f'{i}.png', exif=exif)
        Image.fromarray((np.arange(64, dtype=np.uint16).reshape(8, 8) + i) * 60).save(tmp_path / 'deep' / f'{i}.png')  # twelve bits
    for part in read('alpha').values(): assert (part.images[:, :, 0] <= 30).all() and (part.images[:, :, 1:] == 255).all()
    for part in read('exif').values(): assert (part.images[:, 0].diff(dim=2) == 0).all() and (part.images[:, 0, 1:].int() - part.images[:, 0, :-1].int() == 10).all()
    assert max(part.images.max() for part in read('deep').values()) > 240


def test_what_is_read_of_a_folder_and_what_is_passed_over(tmp_path):
    folder_of(tmp_path / 'photos', 20)
    for place in ('.ipynb_checkpoints', '@eaDir', '__MACOSX', 'a/nested'):
        (tmp_path / 'photos' / place).mkdir()
        Image.new('L', (8, 8)).save(tmp_path / 'photos' / place / 'x.png')
    (tmp_path / 'photos' / 'b' / 'notes.txt').write_text('')
    data = cn.load_data(f'folder:{tmp_path}/photos')
    assert data.class_names == ['a', 'b'] and len(data.train) + len(data.test) == 20
    assert {(p.name, why) for p, why in data.skipped} == {('.ipynb_checkpoints', 'hidden'), ('@eaDir', 'hidden'), ('__MACOSX', 'hidden'), ('nested', 'a folder within a class'), ('notes.txt', 'not an image')}
    assert '3 (hidden)' in data.note and len(data.note.splitlines()) == 1
    for parts in (('train', 'val'), ('Train', 'Test'), ('training', 'validation', 'test')):
        for i, part in enumerate(parts): folder_of(tmp_path / parts[-1] / part / 'x' if False else tmp_path / '-'.join(parts) / part, 12, seed=i)
        data = cn.load_data(f'folder:{tmp_path}/{"-".join(parts)}')
        assert data.class_names == ['a', 'b'] and (data.valid is not None) == ('val' in parts or 'validation' in parts)
    for part in ('Train', 'Test'):
        (tmp_path / 'plain' / part).mkdir(parents=True)
        for i in range(6): Image.new('L', (8, 8), 20 * i).save(tmp_path / 'plain' / part / f'{i}.png')
    data = cn.load_data(f'folder:{tmp_path}/plain')
    assert data.class_names is None and len(data.train) == len(data.test) == 6
    (tmp_path / 'plain' / 'extra').mkdir()
    (tmp_path / 'plain' / 'readme.txt').write_text('')
    assert {(p.name, why) for p, why in cn.load_data(f'folder:{tmp_path}/plain').skipped} == {('extra', 'beside the parts'), ('readme.txt', 'not an image')}
    (tmp_path / 'plain' / 'testing').mkdir()
    with pytest.raises(cn.UserError, match='one folder for each part'): cn.load_data(f'folder:{tmp_path}/plain')


def test_all_parts_of_a_data_set_have_one_white(tmp_path):
    def deep(values): return [Image.fromarray(np.full((8, 8), v, np.uint16)) for v in values]
    parts = dict(train=deep([900, 2999, *range(100, 120)]), test=deep([900, 800, *range(40, 60)]))
    for part, images in parts.items():
        (tmp_path / 'deep' / part).mkdir(parents=True)
        for i, image in enumerate(images): image.save(tmp_path / 'deep' / part / f'{i:02d}.png')
    for data in (cn.load_data(f'folder:{tmp_path}/deep'), cn.ImageData.from_arrays(parts['train'], test=parts['test'])):
        assert data.train.images[0].unique().tolist() == data.test.images[0].unique().tolist() == [56]  # 900 of 4,095
    mixed = cn.ImageData.from_arrays([parts['train'][0], np.full((8, 8), 2999, np.uint16), *parts['train'][2:]])
    assert {56} in [set(image.unique().tolist()) for part in mixed.parts.values() for image in part.images]
    with pytest.warns(UserWarning, match='1,023 is taken for white'): load_images(f'folder:{tmp_path}/deep/test', (1, 8, 8))


def test_labels_are_words_or_numbers_however_they_come():
    images, words = rng.integers(0, 256, (20, 8, 8), np.uint8), ['cat', 'dog'] * 10
    for labels in (words, np.array(words, object), pd.Series(words), pd.Categorical(words)):
        assert cn.ImageData.from_arrays(images, labels).class_names == ['cat', 'dog']
    pairs = torch.utils.data.StackDataset(torch.from_numpy(images), words)
    assert cn.ImageData.from_arrays(pairs).class_names == ['cat', 'dog']
    with pytest.raises(cn.UserError, match='whole number'): cn.ImageData.from_arrays(torch.utils.data.StackDataset(torch.from_numpy(images), [0.5] * 20))
    holed = rng.uniform(-1, 1, (20, 8, 8))
    holed[3, 0, 0] = np.nan
    with pytest.raises(cn.UserError, match='1 values are not'): cn.ImageData.from_arrays(holed)


def test_images_that_bomb_are_one_line(tmp_path):
    (tmp_path / 'bomb').mkdir()
    Image.new('1', (14000, 14000)).save(tmp_path / 'bomb' / '1.png')
    with pytest.raises(cn.UserError, match='too large') as caught: cn.load_data(f'folder:{tmp_path}/bomb')
    assert len(str(caught.value).splitlines()) == 1


def test_one_class_trains_past_its_validation_and_goes_on(tmp_path):
    for i in range(40):
        (tmp_path / 'photos' / 'only').mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(tmp_path / 'photos' / 'only' / f'{i}.png')
    options = dict(options=dict(latent_dim=4), preset='smoke', progress=False)
    run = cn.train('cebm', f'folder:{tmp_path}/photos', out=tmp_path / 'run', steps=10, validate_every=5, **options)
    assert cn.resume(run.folder, steps=20, progress=False).config['run']['finished']['updates'] == 20
    assert cn.evaluate(run, cn.load_data(f'folder:{tmp_path}/photos'), parts=['few-label'])['skipped'] == [f'few-label: folder:{tmp_path}/photos has a single class']


# Threads, homes, devices, and runs that were not trained

def test_seeds_mean_what_they_say_in_threads(tmp_path):
    data, made = arrays(), {}
    def work(model, seed): made[model, seed] = cn.train(model, data, out=tmp_path / f'{model}-{seed}', seed=seed, steps=20, options=dict(latent_dim=4), precision='float32', device='cpu', **QUICK).model.state_dict()
    threads = [threading.Thread(target=work, args=(model, seed)) for model in ('cebm', 'bigan') for seed in (0, 1)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    for (model, seed), together in made.items():
        alone = cn.train(model, data, out=tmp_path / f'{model}-{seed}-alone', seed=seed, steps=20, options=dict(latent_dim=4), precision='float32', device='cpu', **QUICK).model.state_dict()
        assert all(torch.equal(alone[k], together[k]) for k in alone), (model, seed)


def test_digits_need_no_home(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k not in ('HOME', 'XDG_CACHE_HOME', 'MPLCONFIGDIR')}
    for words, home in ((['train', *SMALL, '--steps', 5, '--out', 'run', '--quiet'], {}), (['eval', 'run', '--only', 'samples'], dict(HOME='/proc'))):
        process = start(tmp_path, *words, env=environment | home)
        _, err = process.communicate(timeout=200)
        assert process.returncode == 0, err


def test_a_run_of_another_device_says_so_and_goes_on_where_it_is_told(tmp_path):
    if torch.cuda.is_available(): pytest.skip('here is a GPU')
    run = cn.train('cebm', 'digits', out=tmp_path / 'run', steps=5, options=dict(latent_dim=4), **QUICK)
    config = json.loads((run.folder / 'config.json').read_text())
    (run.folder / 'config.json').write_text(json.dumps(config | dict(device='cuda')))
    status, _, err = call(tmp_path, 'train', '--resume', 'run', '--steps', 9)
    assert status == 2 and 'not available' in err
    assert call(tmp_path, 'train', '--resume', 'run', '--steps', 9, '--device', 'cpu', '--quiet')[0] == 0


def test_a_run_that_was_not_trained_is_told_by_its_evaluation(tmp_path):
    status, _, err = call(tmp_path, 'train', *SMALL, '--steps', 50, '--optimiser.learning-rate', 1e30, '--rollbacks', 1, '--out', 'run', '--quiet')
    assert status == 1 and 'rollbacks are used up' in err
    status, out, err = call(tmp_path, 'eval', 'run', '--only', 'few-label', '--labels', '1', '--draws', 2)
    assert status == 0 and 'NOT TRAINED TO ITS END' in out and 'diverged' in out, err


def test_wrong_things_for_data_name_what_to_call():
    class Table:  # as the package `datasets` has them
        column_names = ['image', 'label']
    for wrong, word in ((np.zeros((5, 8, 8)), 'ImageData.from_arrays'), (torch.utils.data.DataLoader([1]), 'loader.dataset'), (Table(), r"from_arrays\(ds\['image'\]"), (None, 'NoneType')):
        with pytest.raises(cn.UserError, match=word): cn.train('cebm', wrong)


def test_an_estimator_is_given_what_it_was_fitted_to():
    images = rng.integers(0, 256, (60, 8, 8), np.uint8)
    for fitted, other in ((images, images / 255), (images / 255, images), (images / 255, images / 127.5 - 1), (images / 16., images / 255)):
        model = cn.CEBMTransformer(latent_dim=4, steps=3, preset='smoke').fit(fitted)
        assert np.array_equal(model.transform(fitted), model.transform(fitted.astype(float)))
        assert len(model.transform(np.zeros((2, 8, 8)))) == 2  # black on either scale
        with pytest.raises(cn.UserError, match='range of values of fit'): model.transform(other)
    counts = rng.integers(0, 17, (60, 8, 8)).astype(float)
    for X, row in ((counts, counts[:1] > 15), (counts, counts[:1].astype(np.uint8) // 9), ((counts - counts.mean()) / counts.std(), rng.normal(size=(2, 8, 8)))):  # dark, few, and noise
        assert len(cn.CEBMTransformer(latent_dim=4, steps=3, preset='smoke').fit(X).transform(row)) == len(row)


def test_estimators_refuse_what_cannot_be_before_they_train():
    rows = rng.normal(size=(60, 4))
    assert cn.CEBMTransformer(latent_dim=np.int64(3), steps=np.int64(2), preset='smoke').fit_transform(rows).shape == (60, 3)  # as a search gives them
    wrong = [(cn.CEBMOutlierDetector, more) for more in (dict(contamination='auto'), dict(image_shape=64), dict(options='x'), dict(settings='x'), dict(random_state=-1), dict(random_state=2**40))]
    for kind, more in wrong + [(cn.CEBMClusterer, dict(n_clusters=k)) for k in (0, -1, 2.5, 61)]:
        with pytest.raises(cn.UserError, match=next(iter(more))): kind(latent_dim=3, steps=10**6, **more).fit(rows)


def test_a_model_is_the_one_that_is_meant(tmp_path):
    data, options = cn.load_data('digits'), dict(steps=2, **QUICK)
    changed = cn.create_model('cebm', data.in_shape, latent_dim=4)
    changed.encoder.net[1] = nn.Tanh()
    with pytest.raises(cn.UserError, match='changed since create_model'): cn.train(changed, data, out=tmp_path / 'no', **options)
    with pytest.raises(FileNotFoundError, match='no run folder'): cn.load_model('typo', which='best')
    assert cn.train(cn.CEBM(nn.Sequential(nn.Flatten(), nn.Linear(64, 8)), cn.Prior(cn.families.Gaussian(4))), data, out=tmp_path / 'own', **options).config['model'] == 'CEBM'  # without in_shape
    for name, more in (('cebm-mnist-5k', dict(model=changed)), ('cebm-mnist-5k', dict(which='best'))):
        with pytest.raises(cn.UserError, match='for run folders'): cn.load_model(name, **more)
    def mine(data, samples, counted): return data.mean() - samples.mean() + .01 * (data**2 + samples**2).mean()
    def other(*energies): return mine(*energies)
    run = cn.train('cebm', data, out=tmp_path / 'run', objective=mine, options=dict(latent_dim=4), **options)
    with pytest.raises(cn.UserError, match='with the objective mine, got other'): cn.resume(run.folder, objective=other, steps=4, progress=False)
    with pytest.raises(cn.UserError, match='callbacks'): cn.resume(run.folder, objective=mine, callbacks=print)
    with pytest.raises(cn.UserError, match='callbacks'): cn.train('cebm', data, out=tmp_path / 'no', callbacks=print, **options)
    assert not (tmp_path / 'no').exists()


def test_encoders_that_know_no_shape_serve_under_a_name(tmp_path):
    @cn.ENCODERS.register('shapeless')
    def shapeless(in_shape, out_features): return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(in_shape)), out_features))
    try:
        for model in ('cebm', 'gmm-cebm', 'igebm', 'guided-cebm', 'vae', 'bigan'):
            assert len(cn.train(model, 'digits', out=tmp_path / model, steps=2, options=dict(encoder='shapeless', latent_dim=4), **QUICK).metrics)
    finally: del cn.ENCODERS['shapeless']


def test_labels_and_ranges_have_one_reading():
    x, y = rng.integers(0, 256, (40, 8, 8), np.uint8), np.arange(40) % 2
    assert cn.ImageData.from_arrays(x, np.array([b'cat', b'dog'])[y]).class_names == ['cat', 'dog']
    assert cn.ImageData.from_arrays(x, y, class_names=np.array(['a', 'b'])).class_names == ['a', 'b']
    assert len(cn.ImageData.from_arrays(x, torch.tensor(y * 1., requires_grad=True)).train.labels.unique()) == 2
    for images, more in ((x * 1., dict(value_range=(0, math.inf))), (x * 1., dict(value_range=(0, 255), test=x / 255.)), (x // 128, {})):
        with pytest.raises(cn.UserError, match='range'): cn.ImageData.from_arrays(images, **more)
    assert cn.ImageData.from_arrays(x // 128, value_range=(0, 1)).train.images.max() == 255


def test_one_feature_trains_past_its_validation(tmp_path):
    run = cn.train('cebm', cn.ImageData.from_arrays(rng.normal(size=(200, 1)).astype(np.float32)), out=tmp_path / 'run', steps=6, preset='smoke', validate_every=3, progress=False)
    assert run.config['run']['finished']['status'] == 'complete'


def test_rows_that_are_all_the_same_are_told():
    with pytest.raises(cn.UserError, match='must differ'): cn.CEBMOutlierDetector(latent_dim=3, steps=3).fit(np.ones((50, 4)))


def test_a_folder_below_home(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    run = cn.train('vae', 'digits', out='~/runs/one', steps=2, **QUICK)
    assert run.folder == tmp_path / 'runs' / 'one' and len(cn.load_run('~/runs/one').metrics) and not (tmp_path / '~').exists()
    assert cn.resume('~/runs/one', steps=3, progress=False).config['run']['finished']['updates'] == 3


@pytest.mark.parametrize('pixels', [np.uint8, np.int64])
def test_pictures_are_floats(pixels):
    with pytest.raises(cn.UserError, match='floats in'): cn.plots.plot_images(torch.from_numpy(rng.integers(0, 256, (4, 1, 8, 8)).astype(pixels)))
