"""Metrics against libraries that others keep: torchmetrics and pytorch-ood."""
import numpy as np
import pytest
import torch
from pytorch_ood.detector import Mahalanobis
from pytorch_ood.metrics import AUROC, FPRAtTPR
from scipy.stats import spearmanr
from torch import nn
from torchmetrics.classification import BinaryAUROC, BinaryAveragePrecision, MulticlassCalibrationError
from torchmetrics.functional.image import structural_similarity_index_measure
from torchmetrics.image import PeakSignalNoiseRatio
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from cebm_nb.conditional import image_quality
from cebm_nb.data import load_data
from cebm_nb.detection import FeatureDensity, detection_figures, detection_scores, outlier_sets
from cebm_nb.models import Pixel
from cebm_nb.representation import calibration_error
from cebm_nb.samples import frechet_distance, kernel_distance

rng = np.random.default_rng(0)


@pytest.mark.parametrize('shift', [0., 1., 3.])
def test_detection_figures(shift):
    inside, outside = rng.normal(shift, 1, 400), rng.normal(0, 1, 250)
    auroc, aupr, fpr95 = detection_figures(inside, outside)
    scores, which = torch.from_numpy(np.concatenate([inside, outside])), torch.tensor([1] * 400 + [0] * 250)
    ranks = scores.argsort().argsort() / len(scores)  # in (0, 1), so that torchmetrics leaves them as they are
    assert auroc == pytest.approx(BinaryAUROC()(ranks, which).item(), abs=1e-5)
    assert aupr == pytest.approx(BinaryAveragePrecision()(ranks, which).item(), abs=1e-5)

    theirs = AUROC().update(-scores, torch.where(which == 1, 1, -1)).compute()['AUROC']
    assert auroc == pytest.approx(theirs, abs=1e-6)
    theirs = FPRAtTPR(0.95).update(scores, torch.where(which == 1, -1, 1)).compute()['FPR95TPR']  # its positives are outside
    assert fpr95 == pytest.approx(theirs, abs=1e-6)


def test_calibration():
    logits, labels = 2 * rng.normal(size=(1000, 7)), rng.integers(0, 7, 1000)
    logits[np.arange(1000), labels] += 1
    chances = torch.softmax(torch.from_numpy(logits), 1)
    theirs = MulticlassCalibrationError(7, n_bins=15, norm='l1')(chances, torch.from_numpy(labels)).item()
    hits = chances.argmax(1).numpy() == labels
    assert calibration_error(chances.numpy(), hits) == pytest.approx(theirs, abs=1e-4)


class Flat(nn.Module):
    num_features = 12

    def forward(self, x): return x.flatten(1).float()


def test_distances_of_samples():
    first, second = rng.normal(size=(300, 12)), rng.normal(0.3, 1.2, size=(200, 12))
    images = [torch.from_numpy(x).view(-1, 3, 2, 2) for x in (first, second)]
    fid = FrechetInceptionDistance(Flat(), input_img_size=(3, 2, 2)).set_dtype(torch.float64)
    kid = KernelInceptionDistance(Flat(), subsets=1, subset_size=200)
    for real, x in zip((True, False), images): fid.update(x, real)
    assert frechet_distance(first, second) == pytest.approx(fid.compute().item(), rel=1e-4)
    for real, x in zip((True, False), images): kid.update(x[:200], real)
    assert kernel_distance(first[:200], second) == pytest.approx(kid.compute()[0].item(), rel=1e-3)


def test_quality_of_images():
    truth = load_data('mnist-5k').test.to_float(slice(20))
    guess = (truth + 0.3 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)
    found = image_quality(guess, truth)
    psnr = np.mean([PeakSignalNoiseRatio(data_range=2.)(g[None], t[None]).item() for g, t in zip(guess, truth)])
    assert found['psnr'][0] == pytest.approx(psnr, abs=1e-3)
    _, everywhere = structural_similarity_index_measure(guess, truth, gaussian_kernel=False, kernel_size=7,
                                                        data_range=2., return_full_image=True)
    inside = everywhere[..., 3:-3, 3:-3].mean().item()  # where the window lies within the image, as in scikit-image
    assert found['ssim'][0] == pytest.approx(inside, abs=2e-3)


def test_one_gaussian_ranks_as_the_mahalanobis_distance():
    features, others = rng.normal(size=(800, 6)) @ rng.normal(size=(6, 6)), 2 * rng.normal(size=(100, 6))
    ours = FeatureDensity(features, components=1)(others)
    theirs = Mahalanobis(None)
    theirs.fit_features(torch.from_numpy(features).float(), torch.zeros(800, dtype=torch.long))
    far = theirs.predict_features(torch.from_numpy(others).float()).numpy()
    assert spearmanr(ours, -far).statistic > 0.999


def test_scores_of_real_images():
    data = load_data('mnist-5k')
    sets = outlier_sets(data, 300)
    scores = detection_scores(Pixel(data.in_shape), data, sets)['1-NN distance']
    for name in set(sets) - {'test'}:
        which = torch.tensor([1] * len(scores['test']) + [-1] * len(scores[name]))
        theirs = AUROC().update(-torch.from_numpy(np.concatenate([scores['test'], scores[name]])), which).compute()
        assert detection_figures(scores['test'], scores[name])[0] == pytest.approx(theirs['AUROC'], abs=1e-6)
