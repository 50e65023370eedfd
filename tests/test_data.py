"""Loaders on miniature files in the true formats, and on folders that are wrong in every way."""
import gzip
import hashlib
import os
import pickle
import struct
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

import cebm_nb.data as data_module
from cebm_nb.data import ImageSet, data_folder, load_data, load_images
from cebm_nb.detection import outlier_sets, real_ood_sets, ood_names
from cebm_nb.settings import UserError
from cebm_nb.zoo import create_model

rng = np.random.default_rng(0)


def idx(array): return b'\0\0\x08' + bytes([array.ndim]) + struct.pack(f'>{array.ndim}i', *array.shape) + array.astype(np.uint8).tobytes()


def mnist_files(folder, opener=open, suffix=''):
    folder.mkdir(parents=True)
    parts = {}
    for part, n in (('train', 12), ('t10k', 5)):
        images, labels = rng.integers(0, 256, (n, 28, 28)), rng.integers(0, 10, n)
        for kind, array in (('images-idx3', images), ('labels-idx1', labels)):
            with opener(folder / f'{part}-{kind}-ubyte{suffix}', 'wb') as f: f.write(idx(array))
        parts[part] = images, labels
    return parts


def same(part, images, labels):
    assert np.array_equal(part.images.numpy().squeeze(), images.squeeze())
    assert part.labels.tolist() == list(labels)


@pytest.mark.parametrize('name, folder', [('mnist', 'MNIST'), ('fashion-mnist', 'FashionMNIST')])
def test_idx_files_in_the_data_folder(tmp_path, monkeypatch, name, folder):
    monkeypatch.setattr(data_module, 'debian_fashion_mnist', tmp_path / 'absent')
    parts = mnist_files(tmp_path / folder / 'raw')
    data = load_data(name, root=tmp_path)
    same(data.train, *parts['train'])
    same(data.test, *parts['t10k'])


def test_fashion_mnist_where_debian_puts_it(tmp_path, monkeypatch):
    parts = mnist_files(tmp_path / 'deb', gzip.open, '.gz')
    monkeypatch.setattr(data_module, 'debian_fashion_mnist', tmp_path / 'deb')
    data = load_data('fashion-mnist')
    same(data.train, *parts['train'])
    same(data.test, *parts['t10k'])
    cut = tmp_path / 'deb' / 'train-images-idx3-ubyte.gz'
    cut.write_bytes(gzip.compress(gzip.decompress(cut.read_bytes())[:-100]))
    with pytest.raises(ValueError, match='cut short'): load_data('fashion-mnist')


def md5(path): return hashlib.md5(path.read_bytes()).hexdigest()


def test_cifar10_batches(tmp_path, monkeypatch):
    folder = tmp_path / 'cifar-10-batches-py'
    folder.mkdir()
    pixels, labels = {}, {}
    for batch in ['data_batch_1', 'data_batch_2', 'test_batch']:
        pixels[batch], labels[batch] = rng.integers(0, 256, (4, 3072), dtype=np.uint8), rng.integers(0, 10, 4).tolist()
        (folder / batch).write_bytes(pickle.dumps({'data': pixels[batch], 'labels': labels[batch]}))
    (folder / 'batches.meta').write_bytes(pickle.dumps({'label_names': [f'c{i}' for i in range(10)]}))
    monkeypatch.setattr(datasets.CIFAR10, 'train_list', [[b, md5(folder / b)] for b in ('data_batch_1', 'data_batch_2')])
    monkeypatch.setattr(datasets.CIFAR10, 'test_list', [['test_batch', md5(folder / 'test_batch')]])
    monkeypatch.setattr(datasets.CIFAR10, 'meta', {'filename': 'batches.meta', 'key': 'label_names', 'md5': md5(folder / 'batches.meta')})
    data = load_data('cifar10', root=tmp_path)
    assert data.in_shape == (3, 32, 32) and data.class_names == [f'c{i}' for i in range(10)]
    same(data.train, np.concatenate([pixels['data_batch_1'], pixels['data_batch_2']]).reshape(8, 3, 32, 32), labels['data_batch_1'] + labels['data_batch_2'])
    same(data.test, pixels['test_batch'].reshape(4, 3, 32, 32), labels['test_batch'])


def test_svhn_with_and_without_extra(tmp_path, monkeypatch):
    folder = tmp_path / 'svhn'
    folder.mkdir()
    parts, files = {}, {}
    for part, n in (('train', 6), ('test', 3), ('extra', 9)):
        x, y = rng.integers(0, 256, (32, 32, 3, n), dtype=np.uint8), rng.integers(1, 11, n)
        savemat(folder / f'{part}_32x32.mat', {'X': x, 'y': y[:, None].astype(np.uint8)})
        parts[part] = x.transpose(3, 2, 0, 1), y % 10  # the files call zero ten
        files[part] = ['unused', f'{part}_32x32.mat', md5(folder / f'{part}_32x32.mat')]
    monkeypatch.setattr(datasets.SVHN, 'split_list', files)
    plain, extra = load_data('svhn', root=tmp_path), load_data('svhn-extra', root=tmp_path)
    same(plain.train, *parts['train'])
    same(plain.test, *parts['test'])
    same(extra.train, np.concatenate([parts['train'][0], parts['extra'][0]]), [*parts['train'][1], *parts['extra'][1]])
    assert len(extra.test) == 3


def test_emnist_digits_stand_upright(tmp_path):
    raw = tmp_path / 'EMNIST' / 'raw'
    raw.mkdir(parents=True)
    parts = {}
    for part, n in (('train', 6), ('test', 3)):
        images, labels = rng.integers(0, 256, (n, 28, 28)), rng.integers(0, 10, n)
        (raw / f'emnist-digits-{part}-images-idx3-ubyte').write_bytes(idx(images.transpose(0, 2, 1)))  # columns first, as in the true files
        (raw / f'emnist-digits-{part}-labels-idx1-ubyte').write_bytes(idx(labels))
        parts[part] = images, labels
    data = load_data('emnist-digits', root=tmp_path)
    same(data.train, *parts['train'])
    same(data.test, *parts['test'])


def test_dtd_is_cropped_and_scaled(tmp_path):
    folder = tmp_path / 'dtd' / 'dtd'
    (folder / 'labels').mkdir(parents=True)
    for part, sizes in (('train', [(64, 64), (96, 64)]), ('test', [(40, 80)])):
        lines = []
        for i, size in enumerate(sizes):
            place = folder / 'images' / f'kind{i}' / f'kind{i}_{part}.png'
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.new('RGB', size, (10 * i, 20, 30)).save(place)
            lines.append(f'kind{i}/{place.name}')
        (folder / 'labels' / f'{part}1.txt').write_text('\n'.join(lines))
    data = load_data('dtd', root=tmp_path)
    assert data.in_shape == (3, 32, 32) and data.train.labels.tolist() == [0, 1]
    assert data.train.images[1, :, 5, 5].tolist() == [10, 20, 30]

    digits = load_data('digits-m')  # to which textures are OOD, as soon as their files are there
    assert ood_names(digits) == ['cifar10', 'svhn', 'dtd']
    sets = real_ood_sets(digits, root=tmp_path)
    assert list(sets) == ['dtd'] and torch.equal(sets['dtd'].images, data.test.images)
    assert 'dtd' in outlier_sets(digits, most=4, root=tmp_path) and 'svhn' not in outlier_sets(digits, most=4, root=tmp_path)


@pytest.mark.parametrize('name', ['mnist', 'emnist-digits', 'cifar10', 'svhn', 'dtd'])
def test_nothing_is_fetched_where_that_is_forbidden(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=f'{name} is not in'): load_data(name, root=tmp_path, download=False)


def test_no_network_says_what_to_do(tmp_path):
    dead = dict(os.environ, http_proxy='http://127.0.0.1:9', https_proxy='http://127.0.0.1:9', no_proxy='')
    code = f"from cebm_nb.data import load_data; load_data('cifar10', root={str(tmp_path)!r})"
    done = subprocess.run([sys.executable, '-c', code], env=dead, capture_output=True, text=True, timeout=300)
    assert done.stderr.splitlines()[-1].startswith('ConnectionError: cifar10 could not be downloaded')
    assert 'copy its folder' in done.stderr.splitlines()[-1]


def picture(path, size=(16, 16), mode='L', value=100):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == 'L' else (value, 0, 255 - value)).save(path)


def test_folder_without_classes_and_with_a_split(tmp_path):
    for i in range(10): picture(tmp_path / 'flat' / f'{i}.png', value=i)
    flat = load_data(f'folder:{tmp_path}/flat')
    assert flat.train.labels is None and flat.class_names is None and len(flat.train) + len(flat.test) == 10 and flat.in_shape == (1, 16, 16)
    for part, n in (('train', 4), ('test', 2)):
        for c in 'ab':
            for i in range(n): picture(tmp_path / 'split' / part / c / f'{i}.png', mode='RGB')
    split = load_data(f'folder:{tmp_path}/split')
    assert (len(split.train), len(split.test), split.in_shape, split.class_names) == (8, 4, (3, 16, 16), ['a', 'b'])
    assert split.train.images[0, :, 0, 0].tolist() == [100, 0, 155]


def test_bad_folders(tmp_path):
    def refused(folder, word, **options):
        with pytest.raises((ValueError, OSError), match=word) as caught: load_data(f'folder:{folder}', **options)
        assert len(str(caught.value).splitlines()) == 1
    refused(tmp_path / 'missing', 'no folder')
    (tmp_path / 'empty').mkdir()
    refused(tmp_path / 'empty', 'no images')
    picture(tmp_path / 'mixed' / '1.png'), picture(tmp_path / 'mixed' / '2.png', size=(20, 16), value=30)
    refused(tmp_path / 'mixed', 'image_size')
    assert load_data(f'folder:{tmp_path}/mixed', image_size=8).in_shape == (1, 8, 8)
    picture(tmp_path / 'broken' / '1.png'), picture(tmp_path / 'broken' / '2.png', size=(200, 200))
    whole = (tmp_path / 'broken' / '2.png').read_bytes()
    (tmp_path / 'broken' / '2.png').write_bytes(whole[:len(whole) // 2])
    refused(tmp_path / 'broken', '2.png cannot be read')
    for i in range(2): picture(tmp_path / 'large' / f'{i}.png', size=(100, 100), value=i)
    with pytest.raises(UserError, match='from 8 to 64.*--image-size'): create_model('cebm', load_data(f'folder:{tmp_path}/large').in_shape)
    picture(tmp_path / 'both' / '1.png'), picture(tmp_path / 'both' / 'a' / '1.png')
    refused(tmp_path / 'both', 'both images')
    picture(tmp_path / 'single' / '1.png')
    refused(tmp_path / 'single', 'at least 2 different')


@pytest.mark.parametrize('values, word', [
    (np.full((2, 8, 8), 255.), r'value_range=\(0, 255\)'), (np.full((2, 8, 8), np.nan), 'finite'), (np.full((2, 8, 8), -np.inf), 'finite'),
    (np.zeros((0, 8, 8), np.uint8), 'empty'), (np.zeros((2, 8, 8, 2), np.uint8), 'channels'), (np.zeros((2, 8, 8), np.int32), 'int32'), (np.zeros((2, 8, 8), bool), 'bool'), (np.zeros((2, 2, 8, 8, 8), np.uint8), 'vectors')])
def test_bad_arrays(values, word):
    with pytest.raises(ValueError, match=word): ImageSet.from_array(values)


def test_serving_ranges():
    images = ImageSet(torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16))
    assert images.to_float().min() == -1 and images.to_float().max() == 1
    assert torch.equal(ImageSet.from_array(images.to_float()).images, images.images)


def real_file(name):  # in the data folder, or in shared/data beside the checkout; or None
    places = data_folder(), Path(__file__).resolve().parents[2] / 'shared' / 'data'
    return next((place / name for place in places if (place / name).is_file()), None)


@pytest.mark.skipif(not real_file('cifar10-jpeg.tar.xz'), reason='cifar10-jpeg.tar.xz is not here')
def test_cifar10_as_jpeg_files(tmp_path):
    with pytest.raises(FileNotFoundError, match='it is not downloaded'): load_data('cifar10-jpeg', root=tmp_path)
    wanted, taken = {}, 0
    with tarfile.open(real_file('cifar10-jpeg.tar.xz'), 'r|xz') as archive:
        for member in archive:
            part = Path(member.name).parent
            if not member.isfile() or wanted.get(part, 0) == 4: continue
            path = tmp_path / 'cifar10-jpeg' / member.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(archive.extractfile(member).read())
            wanted[part], taken = wanted.get(part, 0) + 1, taken + 1
            if taken == 80: break
    data = load_data('cifar10-jpeg', root=tmp_path)
    assert (data.name, data.in_shape, len(data.train), len(data.test)) == ('cifar10-jpeg', (3, 32, 32), 40, 40)
    assert data.class_names == ['airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck']
    assert 'cifar10' not in ood_names(data) and data.train.labels.bincount().tolist() == [4] * 10


@pytest.mark.skipif(not real_file('emnist-letters-test.npz') or not real_file('dtd-10-of-47-classes.npz'), reason='letters or textures are not here')
def test_letters_and_textures_are_sets_to_detect():
    letters = load_images(f'npz:{real_file("emnist-letters-test.npz")}', (1, 28, 28))
    textures = load_images(f'npz:{real_file("dtd-10-of-47-classes.npz")}', (3, 32, 32))
    assert (len(letters), len(textures)) == (20_800, 1_200)
    assert torch.equal(letters.images[:, 0], torch.from_numpy(np.load(real_file('emnist-letters-test.npz'))['test_images']))


def test_an_npz_file_of_fractions_is_told_by_its_name(tmp_path):
    np.savez(tmp_path / 'fractions.npz', train_images=np.random.default_rng(0).random((20, 8, 8)))
    with pytest.raises(UserError, match='fractions.npz.*bytes, or floats'): load_data(f'npz:{tmp_path}/fractions.npz')
