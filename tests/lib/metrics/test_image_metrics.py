"""Measures of pictures against torchmetrics, scipy, closed forms and the code of LPIPS's authors."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from lib.data.dataset import DataUnavailable
from lib.data.photographs import PHOTOGRAPHS
from lib.data.weights import ALEXNET, LPIPS_ALEX, LPIPS_VGG, VGG16
from lib.metrics.images import (
    LPIPS,
    FrechetDistance,
    frechet_distance,
    mean_squared_error,
    part_colour_accuracy,
    part_colours,
    psnr,
    ssim,
)

NETWORKS = {"alex": (ALEXNET, LPIPS_ALEX), "vgg": (VGG16, LPIPS_VGG)}


def noisy(seed, *shape, amount=0.2):
    draw = torch.Generator().manual_seed(seed)
    image = torch.rand(*shape, generator=draw) * 2 - 1
    return image, (image + amount * torch.randn(*shape, generator=draw)).clamp(-1, 1)


def loaded(network):
    try:
        return LPIPS(network, *(part.load("data") for part in NETWORKS[network]))
    except DataUnavailable as error:
        pytest.skip(str(error))


def crop(name, top, left, side=64):
    try:
        pixels = np.array(PHOTOGRAPHS.load("data")[name])[top : top + side, left : left + side]
    except DataUnavailable as error:
        pytest.skip(str(error))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1


@pytest.mark.parametrize(("span", "height", "width"), [(2.0, 16, 16), (1.0, 11, 40), (255.0, 33, 12)])
def test_psnr_and_ssim_are_torchmetrics(span, height, width):
    image, target = ((x + 1) * span / 2 for x in noisy(0, 3, 3, height, width))
    for k in range(3):
        one, other = image[k : k + 1], target[k : k + 1]
        expected = peak_signal_noise_ratio(one, other, data_range=(0.0, span))
        torch.testing.assert_close(psnr(image, target, span=span)[k], expected)
        _, everywhere = structural_similarity_index_measure(
            one, other, data_range=span, sigma=1.5, return_full_image=True
        )
        expected = everywhere[..., 5:-5, 5:-5].mean()  # elsewhere it mirrors the picture at its edges
        torch.testing.assert_close(ssim(image, target, span=span)[k], expected, atol=2e-5, rtol=0)


def test_psnr_and_ssim_of_what_is_known():
    image, _ = noisy(1, 2, 3, 20, 20)
    assert psnr(image, image).isinf().all() and torch.allclose(ssim(image, image), torch.ones(2))
    assert torch.allclose(psnr(image, image + 0.2), torch.tensor(20.0))  # 10 log10(4 / 0.04)
    flat = torch.zeros(1, 1, 11, 11, dtype=torch.float64)
    c1 = (0.01 * 2) ** 2  # of two flat pictures: the luminance term alone
    expected = (2 * 0.3 * 0.5 + c1) / (0.3**2 + 0.5**2 + c1)
    assert float(ssim(flat + 0.3, flat + 0.5)) == pytest.approx(expected, rel=1e-9)


def test_error_in_a_region():
    image = torch.zeros(2, 3, 4, 4)
    target = image.clone()
    target[0, :, 0] = 2.0  # four of sixteen pixels
    region = torch.zeros(2, 4, 4, dtype=torch.bool)
    region[:, :2] = True
    assert mean_squared_error(image, target).tolist() == [1.0, 0.0]
    assert mean_squared_error(image, target, region).tolist() == [2.0, 0.0]
    region[1] = False
    with pytest.raises(ValueError, match="the region of picture 1 is empty"):
        mean_squared_error(image, target, region)
    with pytest.raises(ValueError, match=r"bool \(2, 4, 4\)"):
        mean_squared_error(image, target, region[:1])


CROPS = [("chelsea", 104, 186), ("coffee", 100, 180), ("astronaut", 60, 180)]
# Computed once by the authors' package (lpips 0.1.4, its own code) on the same convolutions.
PUBLISHED = {"alex": [0.1082979, 0.5737385, 0.4974623], "vgg": [0.2713543, 0.6800541, 0.6214407]}


@pytest.mark.parametrize("network", NETWORKS)
def test_lpips_is_that_of_its_authors(network):
    measure = loaded(network)
    image = crop("chelsea", 100, 180)
    targets = torch.cat([crop(*place) for place in CROPS])
    found = measure(image.expand_as(targets), targets)
    np.testing.assert_allclose(found, PUBLISHED[network], rtol=2e-5)
    np.testing.assert_allclose(measure(targets, image.expand_as(targets)), found, rtol=1e-5)
    assert measure(image, image).item() == 0
    features = measure.features(targets)
    torch.testing.assert_close(measure(image.expand_as(targets), features), found, rtol=0, atol=0)
    with pytest.raises(ValueError, match="pictures of another shape"):
        measure(image, features)


def test_lpips_has_a_gradient_for_the_picture_alone():
    """Also where features are all 0, whose length has none."""
    measure = loaded("alex")
    image, target = (x.double() for x in noisy(2, 2, 3, 40, 40))
    measure = measure.double()
    flat = torch.zeros(1, 3, 40, 40, dtype=torch.float64, requires_grad=True)
    measure(flat, target[:1]).sum().backward()
    assert flat.grad.isfinite().all() and flat.grad.abs().sum() > 0
    image.requires_grad_()
    measure(image, target).sum().backward()
    assert not any(parameter.requires_grad for parameter in measure.parameters())
    step = torch.randn(image.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        sides = [measure(image + sign * 1e-7 * step, target).sum() for sign in (1, -1)]
    torch.testing.assert_close((image.grad * step).sum(), (sides[0] - sides[1]) / 2e-7, rtol=1e-3, atol=0)


def test_lpips_refuses_other_weights_and_pictures():
    measure = loaded("alex")
    with pytest.raises(ValueError, match="one of alex, vgg, got 'squeeze'"):
        LPIPS("squeeze", {}, {})
    for backbone, heads in ((ALEXNET, LPIPS_VGG), (VGG16, LPIPS_ALEX)):
        with pytest.raises(ValueError, match=r"not the weights of LPIPS \(alex\)"):
            LPIPS("alex", backbone.load("data"), heads.load("data"))
    for shape in ((1, 1, 64, 64), (1, 3, 16, 64), (3, 64, 64)):
        with pytest.raises(ValueError, match=r"N, (3|C), H, W"):
            measure(torch.zeros(shape), torch.zeros(shape))


def test_frechet_distance_is_that_of_scipys_root():
    draw = torch.Generator().manual_seed(0)
    first = torch.randn(200, 6, generator=draw) @ torch.randn(6, 6, generator=draw) + 1
    second = torch.randn(150, 6, generator=draw) @ torch.randn(6, 6, generator=draw)
    a, b = (np.cov(x.double().numpy(), rowvar=False) for x in (first, second))
    means = (first.double().mean(0) - second.double().mean(0)).square().sum().item()
    expected = means + np.trace(a + b - 2 * scipy.linalg.sqrtm(a @ b).real)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(second, first) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(first, first + 2) == pytest.approx(6 * 4, rel=1e-6)  # equal covariances


def test_frechet_distance_of_fewer_pictures_than_features():
    draw = torch.Generator().manual_seed(1)
    first, second = (torch.randn(9, 30, generator=draw, dtype=torch.float64) for _ in range(2))
    a, b = (np.cov(x.numpy(), rowvar=False) for x in (first, second))
    values = np.linalg.eigvals(a @ b).real.clip(0)
    expected = float((first.mean(0) - second.mean(0)).square().sum()) + np.trace(a + b)
    assert frechet_distance(first, second) == pytest.approx(expected - 2 * np.sqrt(values).sum(), rel=1e-6)


def test_frechet_distance_names_its_network():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    distance = FrechetDistance(network, "a random convolution", batch_size=7)
    assert distance.label == "Fréchet distance (a random convolution)"
    images, others = noisy(3, 20, 3, 8, 8, amount=0.5)
    assert distance(images, images) == pytest.approx(0, abs=1e-9), "no dropout while it is measured"
    assert distance(images, others) > 0
    assert torch.equal(distance.features(images), distance.features(images.split(6)))
    assert network.training
    for name in ("FID", "", "fid-like"):
        with pytest.raises(ValueError, match="name the network"):
            FrechetDistance(network, name)
    for bad in (torch.zeros(1, 3), torch.zeros(4, 2), torch.full((4, 3), math.nan)):
        with pytest.raises(ValueError, match="expected"):
            frechet_distance(torch.zeros(5, 3), bad)


def test_colours_of_parts():
    """Three pictures: the asked-for colour, another one, and a part of two pixels, which is not seen."""
    palette = torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    images = torch.zeros(3, 3, 4, 4)
    region = torch.zeros(3, 4, 4, dtype=torch.bool)
    region[:2, 1:3], region[2, 0, :2] = True, True
    images[0, :, 1:3] = torch.tensor([0.7, -0.9, -0.2])[:, None, None]
    images[1, :, 1] = torch.tensor([-1.0, 1, -1])[:, None]
    images[1, :, 2] = torch.tensor([-1.0, -1, 0.5])[:, None]
    number, mean = part_colours(images, region, palette)
    assert number.tolist() == [0, 1, -1]
    torch.testing.assert_close(mean[1], torch.tensor([-1.0, 0.0, -0.25]))
    right = part_colour_accuracy(images, region, palette, torch.tensor([0, 2, 1]))
    assert right[:2].tolist() == [1.0, 0.0] and right[2].isnan()
    assert part_colours(images, region, palette, fewest=2)[0][2] >= 0
    with pytest.raises(ValueError, match="numbers below 3"):
        part_colour_accuracy(images, region, palette, torch.tensor([0, 3, 1]))
    with pytest.raises(ValueError, match="regions"):
        part_colours(images, region.float(), palette)
    with pytest.raises(ValueError, match="palette"):
        part_colours(images, region, palette[:, :2])


@pytest.mark.parametrize("measure", [mean_squared_error, psnr, ssim])
def test_what_cannot_be_compared_is_refused(measure):
    image = torch.zeros(1, 3, 16, 16)
    for other in (torch.zeros(1, 3, 16, 15), torch.zeros(2, 3, 16, 16)):
        with pytest.raises(ValueError, match="of one shape"):
            measure(image, other)
    with pytest.raises(ValueError, match="floating-point"):
        measure(image.byte(), image.byte())
    if measure is not mean_squared_error:
        with pytest.raises(ValueError, match="span"):
            measure(image, image, span=0.0)
    if measure is ssim:
        with pytest.raises(ValueError, match="11 × 11"):
            ssim(image[..., :10], image[..., :10])
