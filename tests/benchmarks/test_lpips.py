"""LPIPS as a loss, against its published layout: two forward passes, and heads that are convolutions."""

import pytest
import torch
import torch.nn.functional as F

from lib.data.dataset import DataUnavailable
from lib.data.weights import ALEXNET, LPIPS_ALEX
from lib.metrics.images import LPIPS


@pytest.fixture
def measure():
    try:
        return LPIPS("alex", ALEXNET.load("data"), LPIPS_ALEX.load("data"))
    except DataUnavailable as error:
        pytest.skip(str(error))


def straightforward(measure, image, target):
    total = 0.0
    layers = []
    for x in (image, target):
        x, found = (x - measure.shift) / measure.scale, []
        for block in measure.blocks:
            x = block(x)
            found.append(x)
        layers.append(found)
    for number, (one, other) in enumerate(zip(*layers, strict=True)):
        one, other = (x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10) for x in (one, other))
        head = getattr(measure, f"head{number}")
        total = total + F.conv2d((one - other).square(), head).mean((1, 2, 3))
    return total


@pytest.mark.benchmark
def test_a_target_that_stays_the_same_is_looked_at_once(measure, takes):
    """As a projection by optimisation asks for it: distance and gradient, many times, to one target."""
    draw = torch.Generator().manual_seed(0)
    image, target = (torch.rand(8, 3, 64, 64, generator=draw) * 2 - 1 for _ in range(2))
    image.requires_grad_()
    features = measure.features(target)
    ours, theirs = measure(image, features), straightforward(measure, image, target)
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad(one.sum(), image)[0] for one in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-8)
    takes(
        0.9,
        lambda: measure(image, features).sum().backward(),
        lambda: straightforward(measure, image, target).sum().backward(),
        what="LPIPS of a fixed target / published layout",
    )
