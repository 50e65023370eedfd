"""The evaluation: against independent computations, on faults, and as real commands over several runs."""
import base64
import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.linalg import sqrtm
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors
from commands import SMALL, call, start
from torch import nn

import cebm_nb as cn
from cebm_nb.data import load_data
from cebm_nb.detection import FeatureDensity, _weighted_figures, detection_figures, detection_record, detection_scores
from cebm_nb.evaluation import evaluate, evaluation_parts, evaluation_tables, part_key
from cebm_nb.zoo import create_model
from cebm_nb.representation import balanced_draw, nearest_neighbours, spread_labels
from cebm_nb.samples import chain_diagnostics, frechet_distance
from cebm_nb.storage import load_weights, save_weights
from cebm_nb.sweep import missing_parts

rng = np.random.default_rng(0)


def test_neighbours_are_those_of_a_tree_search():
    queries, references = rng.normal(size=(50, 5)), rng.normal(size=(400, 5))
    distance, index = NearestNeighbors(n_neighbors=1, algorithm='kd_tree').fit(references).kneighbors(queries)
    found, far = nearest_neighbours(queries, references)
    assert np.array_equal(found, index[:, 0]) and np.allclose(far, distance[:, 0])


def test_neighbours_of_many_images_in_bounded_memory():
    code = '''
import resource, sys
import numpy as np
from cebm_nb.representation import nearest_neighbours
x = np.random.default_rng(0).normal(size=(60_000, 16)).astype(np.float32)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found, _ = nearest_neighbours(x[:10_000] + 1e-3, x)
assert (found == np.arange(10_000)).mean() > 0.99
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
'''
    grown = float(subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout)
    assert grown < 500  # MB; all distances at once would be 2,400


def precision_by_counting(inside, outside):  # the mean, over insiders, of the precision at each one's score
    return np.mean([(inside >= s).sum() / ((inside >= s).sum() + (outside >= s).sum()) for s in inside])


@pytest.mark.parametrize('decimals', [1, 6])  # with many ties and with none
def test_detection_figures_are_those_of_scikit_learn_and_of_counting(decimals):
    inside, outside = rng.normal(1, 1, 300).round(decimals), rng.normal(0, 2, 200).round(decimals)
    truth, scores = [1] * 300 + [0] * 200, np.concatenate([inside, outside])
    auroc, aupr, fpr95 = detection_figures(inside, outside)
    assert auroc == pytest.approx(roc_auc_score(truth, scores)) and aupr == pytest.approx(precision_by_counting(inside, outside))
    assert fpr95 == pytest.approx(min((outside >= t).mean() for t in scores if (inside >= t).mean() >= 0.95))


def test_a_model_against_itself_tells_nothing_apart():
    data, model = load_data('digits'), create_model('cebm', (1, 8, 8), latent_dim=8)
    order = torch.randperm(len(data.test), generator=torch.Generator().manual_seed(0))
    halves = [data.test.subset(order[::2]), data.test.subset(order[1::2])]
    scores = detection_scores(model, data, dict(test=halves[0], other=halves[1]))
    assert {'energy', 'typicality', 'gradient norm', '1-NN distance', 'layer mixture'} <= set(scores)
    for name, sets in scores.items():
        record = detection_record(sets['test'], sets['other'])
        assert record['auroc_low'] < 0.5 < record['auroc_high'], name


def test_a_resampled_image_counts_as_often_as_it_was_drawn():
    inside, outside = rng.normal(1, 1, 40).round(1), rng.normal(0, 1, 30).round(1)
    scores, which = np.concatenate([inside, outside]), np.repeat([True, False], [40, 30])
    times = np.concatenate([np.bincount(rng.integers(0, n, n), minlength=n) for n in (40, 30)])
    repeated, truth = np.repeat(scores, times), np.repeat(which, times)
    auroc, aupr, fpr95 = _weighted_figures(scores, which, times[None].astype(float))[0]
    assert auroc == pytest.approx(roc_auc_score(truth, repeated)) and aupr == pytest.approx(precision_by_counting(repeated[truth], repeated[~truth]))
    assert fpr95 == pytest.approx(min((repeated[~truth] >= t).mean() for t in repeated if (repeated[truth] >= t).mean() >= 0.95 - 1e-12))


def test_effective_sizes_of_chains_that_have_not_converged_are_blank():
    energies = np.random.default_rng(0).normal(size=(50, 100)) + np.arange(50)[:, None]
    found = chain_diagnostics(energies)
    assert found['rhat'] > 1.01 and found['ess'] is None


def test_a_mixture_says_more_than_one_gaussian_where_there_are_two_clouds():
    clouds = np.concatenate([rng.normal(size=(300, 2)) - 4, rng.normal(size=(300, 2)) + 4])
    one, two = FeatureDensity(clouds, 1), FeatureDensity(clouds, 2)
    between = np.zeros((1, 2))
    assert (one(between) > one(clouds).mean()) and (two(between) < np.quantile(two(clouds), 0.01))


def test_features_that_never_vary_say_nothing():
    x, new = rng.normal(size=(400, 3)), rng.normal(size=(50, 3))
    def wide(x): return np.hstack([x, np.ones((len(x), 5)), x[:, :1]]).astype(np.float32)     # constants, and one twice
    plain, more = FeatureDensity(x @ np.diag([2**0.5, 1, 1]), 2)(new @ np.diag([2**0.5, 1, 1])), FeatureDensity(wide(x), 2)(wide(new))
    assert np.allclose(plain, more, atol=0.01)


def test_spreading_is_the_iteration_of_its_paper():
    x = np.concatenate([rng.normal(size=(60, 2)) - 3, rng.normal(size=(60, 2)) + 3])
    y = np.repeat([0, 1], 60)
    order = rng.permutation(120)
    train, test = order[:80], order[80:]
    found, = spread_labels(x[train], y[train], x[test], y[test], (2,), 1)
    keep = np.arange(80)
    points, labels = np.concatenate([x[train][keep], x[test]]), y[train][keep]
    far = np.linalg.norm(points[:, None] - points[None], axis=-1)
    np.fill_diagonal(far, np.inf)
    edges = np.zeros((120, 120))
    for i in range(120): edges[i, far[i].argsort()[:15]] = 1
    edges = np.maximum(edges, edges.T)
    flow = edges / np.sqrt(np.outer(edges.sum(0), edges.sum(0)))
    given = np.zeros((120, 2))
    pick = balanced_draw(labels, 2, 0)
    given[pick, labels[pick]] = 1
    mass = np.linalg.solve(np.eye(120) - 0.99 * flow, 0.01 * given)
    assert (found['predictions'][0] == (mass / mass.sum(0)).argmax(1)[80:]).mean() > 0.95 and found['accuracy_mean'] > 0.95


def test_frechet_distance_is_the_formula_with_a_general_matrix_root():
    a, b = rng.normal(size=(200, 6)) @ rng.normal(size=(6, 6)), rng.normal(size=(150, 6)) @ rng.normal(size=(6, 6)) + 1
    sa, sb = np.cov(a.T), np.cov(b.T)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(sa + sb - 2 * sqrtm(sa @ sb).real)
    assert frechet_distance(a, b) == pytest.approx(expected)


class SometimesNotANumber(nn.Module):
    "An energy that is not a number on images of one grey."
    in_shape = (1, 8, 8)

    def encode(self, x): return x.flatten(1)

    def energy(self, x): return (x.flatten(1) ** 2).sum(1) + 0 / x.flatten(1).var(1)


def test_scores_that_are_not_numbers_are_told_and_the_others_stay():
    result = evaluate(SometimesNotANumber(), load_data('digits'), 'odd', parts=['ood'])
    told = [line for line in result['skipped'] if 'energy of odd on constant' in line]
    assert told and 'are not finite' in told[0]
    done = {(r['score'], r['outside']) for r in result['ood'] if r['representation'] == 'odd'}
    assert ('energy', 'noise') in done and ('energy', 'constant') not in done
    assert all(np.isfinite(v) for r in result['ood'] for v in r.values() if isinstance(v, float))


def test_labels_that_a_class_does_not_have_are_told():
    result = evaluate(create_model('vae', (1, 8, 8), latent_dim=4), load_data('digits'), 'vae', draws=2, labels=(2, 100_000), parts=['few-label'])
    assert {r['labels_per_class'] for r in result['few_label']} == {2} and {r['read_out'] for r in result['few_label']} == {'logistic', 'spreading', 'paper'}
    assert result['skipped'] == ['few-label: 100000 labels per class: a class has fewer']
    assert all(r['seeds'] == [0, 1] for r in result['few_label'])


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp('evaluation')
    for model in ('cebm', 'gmm-cebm', 'vae'):
        status, _, err = call(path, 'train', *SMALL, '--model', model, '--steps', 12, '--out', model, '--quiet')
        assert status == 0, err
    return path


@pytest.fixture(scope='module')
def evaluated(folder):
    status, out, err = call(folder, 'eval', 'cebm', 'gmm-cebm', 'vae', '--draws', 2, '--labels', '1,5,all')
    assert status == 0, err
    return out


def test_everything_for_several_runs_and_a_report(folder, evaluated):
    out = evaluated
    results = {name: json.loads((folder / name / 'eval.json').read_text()) for name in ('cebm', 'gmm-cebm', 'vae')}
    for name, result in results.items():
        assert set(result['made']) == set(evaluation_parts)
        assert all(f'{part}: ' in out for part in evaluation_parts)
        skipped = {line.split(':')[0] for line in result['skipped']}
        assert skipped == {'cebm': set(), 'gmm-cebm': set(), 'vae': {'conditional'}}[name]
        for part in evaluation_parts: assert bool(result[part_key(part)]) == (part not in skipped)
        assert {str(r['labels_per_class']) for r in result['few_label']} == {'1', '5', 'all'}
        assert {r['score'] for r in result['ood'] if r['representation'] == name} == {'typicality', '1-NN distance', 'Mahalanobis', 'latent mixture', 'layer mixture'} | ({'energy', 'gradient norm', 'energy + complexity'} if 'cebm' in name else {'likelihood'})
        assert len({r['score'] for r in result['ood'] if r['chosen']}) == 1
    pixels = [[r for r in result['few_label'] if r['representation'] == 'pixel'] for result in results.values()]
    assert pixels[0] == pixels[1] == pixels[2]

    status, out, err = call(folder, 'report', 'cebm', 'gmm-cebm', 'vae', '--out', 'page')
    assert status == 0, err
    page, text = (folder / 'page' / 'report.html').read_text(), (folder / 'page' / 'report.md').read_text()
    for part in evaluation_parts: assert f'<h3>{part}</h3>' in page
    sources = [piece.split('"')[0] for piece in page.split('src="')[1:]]
    assert sources and all(base64.b64decode(source.removeprefix('data:image/png;base64,'))[1:4] == b'PNG' for source in sources)  # one file, pictures inside
    accuracy = next(r['accuracy_mean'] for r in results['gmm-cebm']['few_label'] if r['representation'] == 'gmm-cebm' and r['labels_per_class'] == 5 and r['read_out'] == 'logistic')
    assert any(line.startswith('| gmm-cebm, logistic |') and f'{100 * accuracy:.1f}' in line for line in text.splitlines())


def test_one_part_leaves_the_others_and_another_data_set_has_its_own_place(folder, evaluated):
    shutil.copytree(folder / 'cebm', folder / 'second')
    before = json.loads((folder / 'second' / 'eval.json').read_text())
    status, out, err = call(folder, 'eval', 'second', '--only', 'neighbours')
    assert status == 0 and 'AUROC' not in out, err
    after = json.loads((folder / 'second' / 'eval.json').read_text())
    assert {k: v for k, v in after.items() if k != 'made'} == {k: v for k, v in before.items() if k != 'made'}
    for i in range(60): picture(folder / 'own' / f'{i}.png')
    status, out, err = call(folder, 'eval', 'second', '--data', 'folder:own', '--only', 'few-label,neighbours,ood')
    assert status == 0 and 'has no labels' in out, err
    own = json.loads((folder / 'second' / 'on-own' / 'eval.json').read_text())
    assert own['few_label'] == [] and len(own['neighbours']) == 5 and own['ood']
    assert json.loads((folder / 'second' / 'eval.json').read_text()) == after


def picture(path):
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(path)


def test_a_run_without_its_chains_is_evaluated_from_noise(folder):
    shutil.copytree(folder / 'cebm', folder / 'bare')
    shutil.rmtree(folder / 'bare' / 'checkpoint')
    status, out, err = call(folder, 'eval', 'bare', '--only', 'samples')
    assert status == 0, err
    found = {r['images'] for r in json.loads((folder / 'bare' / 'eval.json').read_text())['samples'] if r['representation'] == 'cebm'}
    assert found and all('noise' in what for what in found)


def test_chains_that_leave_for_infinity_are_told(folder):
    shutil.copytree(folder / 'cebm', folder / 'wild')
    weights, record = load_weights(folder / 'wild' / 'model.safetensors')
    save_weights(folder / 'wild' / 'model.safetensors', {k: v * 1e6 for k, v in weights.items()}, record)
    status, out, err = call(folder, 'eval', 'wild', '--only', 'samples')
    assert status == 0 and 'samples are not finite' in out, err
    assert all(r['frechet'] is None for r in json.loads((folder / 'wild' / 'eval.json').read_text())['samples'] if 'steps' in r['images'])


def test_an_interrupted_evaluation_keeps_what_it_has(folder):
    shutil.copytree(folder / 'vae', folder / 'cut')
    (folder / 'cut' / 'eval.json').unlink(missing_ok=True)
    process = start(folder, 'eval', 'cut', '--only', 'neighbours,few-label', '--draws', 500)
    deadline = time.monotonic() + 120
    while not (folder / 'cut' / 'eval.json').exists() and time.monotonic() < deadline: time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130 and 'interrupted' in err and 'Traceback' not in err
    result = json.loads((folder / 'cut' / 'eval.json').read_text())
    assert len(result['neighbours']) == 5 and result['few_label'] == []


def test_reports_want_evaluated_runs_that_are_whole(folder):
    shutil.copytree(folder / 'vae', folder / 'plain')
    (folder / 'plain' / 'eval.json').unlink(missing_ok=True)
    status, _, err = call(folder, 'report', 'plain')
    assert status == 2 and 'evaluate it with: cebm eval plain' in err
    (folder / 'plain' / 'eval.json').write_text('{"few_label": [')
    status, _, err = call(folder, 'report', 'plain')
    assert status == 2 and 'damaged' in err and len(err.splitlines()) == 1


def test_runs_of_a_folder_whose_images_differ_are_not_pooled(tmp_path):
    for i in range(60):
        (tmp_path / 'photos' / 'ab'[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (12, 12), np.uint8)).save(tmp_path / 'photos' / 'ab'[i % 2] / f'{i}.png')
    for size, name in ((8, 'best'), (10, 'other')):  # a run may be called best
        assert call(tmp_path, 'train', '--data', 'folder:photos', '--image-size', size, *'--preset smoke --latent_dim 8 --steps 5 --validate-every 0 --quiet --out'.split(), name)[0] == 0
    for words in (['best', 'other'], ['other', '--data', 'folder:photos']):  # the images have the size of the run
        status, _, err = call(tmp_path, 'eval', *words, '--only', 'neighbours', '--no-floors')
        assert status == 0, err
    assert call(tmp_path, 'report', 'best', '--out', 'one')[0] == 0
    assert call(tmp_path, 'report', 'best', 'other', '--out', 'two')[0] == 0
    text = (tmp_path / 'two' / 'report.md').read_text()
    assert text.count('\n## folder:photos, ') == 2 and ', 8x8, ' in text and ', 10x10, ' in text and '2 seeds' not in text
    for budget in (['--steps', 3], ['--epochs', 0.01], ['--minutes', 1e-6]):
        status, _, err = call(tmp_path, 'train', '--resume', 'best', *budget)
        assert status == 2 and 'the run has 5 updates by now' in err, err


@pytest.mark.parametrize('n', [12, 30])
def test_small_data_sets_are_evaluated(n):
    images = load_data('digits').train.subset(slice(n))
    data = replace(load_data('digits'), train=images)
    result = evaluate(create_model('cebm', (1, 8, 8), latent_dim=4), data, draws=2, parts=['few-label', 'neighbours', 'ood', 'clusters', 'map', 'information'])
    assert result['ood'] and result['few_label'] and result['information']


def test_hundreds_of_classes_one_image_and_tiny_images(tmp_path):
    data, model = load_data('digits'), create_model('cebm', (1, 8, 8), latent_dim=4)
    many = cn.ImageData.from_arrays(data.train.images, np.arange(len(data.train)) % 600, data.test.images, np.arange(len(data.test)) % 600)
    for parts in (['neighbours'], ['few-label']): result = evaluate(model, many, parts=parts, labels=(1,), draws=1, folder=tmp_path)
    assert result['neighbours'] and result['few_label'] and 'neighbours: confusion: labels go beyond 100 classes' in result['skipped']
    assert json.loads((tmp_path / 'eval.json').read_text())['neighbours'][0]['agreement'] is not None and not (tmp_path / 'eval-before.json').exists()
    one = evaluate(model, replace(data, test=data.test.subset(slice(1))), parts=['few-label', 'neighbours'], labels=(1,), draws=2, folder=tmp_path / 'one')
    assert one['few_label'] and 'against' not in one['few_label'][-1]
    pair = evaluate(model, replace(data, train=data.train.subset(slice(2))), parts=['ood', 'clusters'])
    assert 'ood: digits has 2 training images, fewer than 10' in pair['skipped'] and pair['clusters']
    tiny = cn.ImageData.from_arrays(data.train.images[:200, 0, :7, :7], data.train.labels[:200])
    run = cn.train(Flat(), tiny, out=tmp_path / 'run', steps=2, preset='smoke', validate_every=0, progress=False)
    assert 'samples: own has images of fewer than 8 x 8 pixels' in evaluate(run, tiny, parts=['samples'])['skipped']


class Flat(nn.Module):  # for 7 x 7 pixels
    def __init__(self):
        super().__init__()
        self.layer, self.p = nn.Linear(49, 8), 3  # an attribute that dropout has too

    def encode(self, x): return self.layer(x.flatten(1))
    def energy(self, x): return self.encode(x).square().sum(1)


def test_images_that_a_run_has_seen_are_no_held_out_ones(tmp_path):
    options = dict(steps=2, preset='smoke', validate_every=0, progress=False, options=dict(latent_dim=4))
    run = cn.train('cebm', 'digits', out=tmp_path / 'run', **options)
    with pytest.raises(cn.UserError, match='has seen the images'): evaluate(run, load_data('digits/validation'), parts=['clusters'])
    assert evaluate(run, load_data('digits/validation'), parts=['clusters'], on='test')['clusters']  # those it has not seen
    chosen = cn.train('cebm', 'digits/validation', out=tmp_path / 'chosen', **options)
    evaluate(chosen, load_data('digits/validation'), parts=['few-label', 'ood'], labels=(1,), draws=1, folder=chosen.folder)
    card = cn.HubModel.from_run(chosen.folder, 'A test.').generate_model_card()
    assert 'validation images' in card.content and 'est accuracy' not in card.content and 'test images' not in card.content and not card.data.eval_results


def test_the_best_model_is_told_from_the_last_and_no_evaluation_is_lost(tmp_path):
    cn.train('cebm', 'digits', out=tmp_path / 'run', steps=30, preset='smoke', validate_every=10, progress=False, options=dict(latent_dim=4))
    best = load_weights(tmp_path / 'run' / 'best.safetensors')[1]['step']
    data = load_data('digits')
    found = evaluate(cn.load_run(tmp_path / 'run', 'best'), data, parts=['samples'], with_floors=False)
    assert found['updates'] == best and found['samples'] and not any('as training left it' in r['images'] for r in found['samples'])  # those chains are the last model's
    run = cn.load_run(tmp_path / 'run')
    assert evaluate(run, data, folder=run.folder, parts=['information'])['updates'] == 30
    for _ in range(2):
        for on in ('train', 'test'):
            with pytest.warns(UserWarning, match='is eval-before.* now'): evaluate(run, data, folder=run.folder, parts=['clusters'], on=on)
    assert len(list(run.folder.glob('eval-before*.json'))) == 4 and json.loads((run.folder / 'eval-before.json').read_text())['information']


def test_untrained_networks_of_two_architectures_are_two_floors():
    data, shared = load_data('digits'), {}
    def untrained(dim):
        model = create_model('cebm', data.in_shape, latent_dim=dim)
        found = evaluate(model, data, 'own', parts=['neighbours'], shared=shared)['neighbours']
        return next(r['confusion'] for r in found if r['representation'] == 'untrained cebm')
    small, large = untrained(4), untrained(32)
    assert small != large and untrained(4) == small


class Constant(nn.Module):
    in_shape = (1, 8, 8)

    def encode(self, x): return torch.ones(len(x), 3)


class Narrow(nn.Module):
    in_shape = (1, 8, 8)

    def encode(self, x): return x.flatten(1).mean(1, keepdim=True)


def test_representations_without_spread_or_of_one_dimension():
    data = load_data('digits')
    assert evaluate(Constant(), data, parts=['map'])['skipped'] == ['map: all images look the same']
    narrow = evaluate(Narrow(), data, parts=['map', 'neighbours', 'clusters'])
    assert {r['representation'] for r in narrow['map']} == {'pixel', 'Narrow'}


def test_a_class_that_only_training_images_have():
    data = load_data('digits')
    few = replace(data, test=data.test.subset(data.test.labels < 2))
    result = evaluate(create_model('cebm', data.in_shape, latent_dim=2), few, 'own', parts=['neighbours'])
    assert {len(r['confusion']) for r in result['neighbours']} == {10}
    table = evaluation_tables(result)['neighbours']
    assert (table['class 5'] == '').all() and (table['class 1'] != '').all()  # no image of it was asked about


def test_images_of_ones_own_are_told_from_the_test_images(folder, tmp_path):
    np.savez(tmp_path / 'turned.npz', test_images=np.rot90(load_digits().images, axes=(1, 2))[:50].astype(np.uint8) * 15)
    for i in range(9): Image.fromarray(np.full((30, 40), 25 * i, np.uint8)).save(tmp_path / f'grey-{i}.png')
    outside = f'npz:{tmp_path}/turned.npz,folder:{tmp_path}'
    status, _, err = call(folder, 'eval', 'cebm', '--only', 'ood', '--outside', outside, '--no-floors')
    assert status == 0, err
    result = json.loads((folder / 'cebm' / 'eval.json').read_text())
    sizes = {r['outside']: r['outside_images'] for r in result['ood']}
    assert sizes.keys() == {'constant', 'noise', 'flipped', 'turned', tmp_path.name} and (sizes['turned'], sizes[tmp_path.name]) == (50, 9)
    assert result['made']['ood']['settings']['outside'] == outside
    assert missing_parts(folder / 'cebm', ['ood'], dict(with_floors=False, outside=outside.split(','))) == []
    assert missing_parts(folder / 'cebm', ['ood'], dict(with_floors=False)) == ['ood']
    for wrong, words in ((f'npz:{tmp_path}/nothing.npz', 'no file'), ('fashion-mnist', 'must hold images of shape (1, 8, 8)'),
                         (f'{outside},npz:{tmp_path}/other/turned.npz', 'same last part'), ('digit', 'did you mean')):
        status, _, err = call(folder, 'eval', 'cebm', '--only', 'ood', '--outside', wrong)
        assert status == 2 and words in err and len(err.splitlines()) == 1, err


def test_a_grid_names_its_own_images(tmp_path):
    np.savez(tmp_path / 'turned.npz', test_images=np.rot90(load_digits().images, axes=(1, 2))[:50].astype(np.uint8) * 15)
    (tmp_path / 'grid.yaml').write_text(f'out: sweep\nparts: [ood]\nfloors: false\noutside: [npz:{tmp_path}/turned.npz]\n'
                                        'grids:\n- {data: digits, model: cebm, preset: smoke, steps: 5, options: {latent_dim: 4}}\n')
    assert call(tmp_path, 'sweep', 'grid.yaml')[0] == 0
    path = tmp_path / 'sweep' / 'digits-cebm-s0' / 'eval.json'
    before = path.read_bytes()
    assert 'turned' in {r['outside'] for r in json.loads(before)['ood']}
    assert call(tmp_path, 'sweep', 'grid.yaml')[0] == 0 and path.read_bytes() == before  # nothing is left to do
