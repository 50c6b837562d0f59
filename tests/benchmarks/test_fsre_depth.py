"""FSRE-Depth's triplet loss and attention against the straightforward ones, side by side, at published sizes.

The straightforward triplet loss, below, copies the features once for each place of the window
(`unfold`), as published; the straightforward attention runs one layer after the other. Feature maps are those
of 192×640 pixels at the three levels of each, batch 1 or 2, one thread. Last, the reprojection errors of
neighbours as they are, which depend on no scale, against computing them at each.
"""

from itertools import accumulate

import pytest
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from lib.models.depth.cross_task_attention import CrossTaskAttention
from lib.models.depth.semantic_losses import nearest_labels, triplet_loss

TRIPLET = ((3, 128), (2, 64), (1, 32))  # level, channels
ATTENTION = ((256, 12, 40), (128, 24, 80), (64, 48, 160))  # channels, rows, columns


def unfolded_triplet_loss(features, labels, window=5, margin=0.3):
    """Σ of levels, each with a copy of its features for each place of the window."""
    total = 0
    for level, x in features.items():
        radius, area = window // 2, window**2
        x = F.normalize(x, dim=1)
        batch, channels, height, width = x.shape
        small = nearest_labels(labels, (height, width))
        near = F.unfold(F.pad(x, (radius,) * 4), window).view(batch, channels, area, height, width)
        tags = F.unfold(F.pad(small[:, None].to(x.dtype), (radius,) * 4, value=-1), window)
        positive = tags.view(batch, area, height, width) == small[:, None]
        distance = (2 - 2 * (near * x[:, :, None]).sum(1)).clamp_min(1e-9).sqrt()
        counts = positive.sum(1), area - positive.sum(1)
        boundary = (counts[0] >= window - 1) & (counts[1] >= window - 1)
        means = [
            (distance * of).sum(1) / count.clamp_min(1)
            for of, count in zip((positive, ~positive), counts, strict=True)
        ]
        total = total + (means[0] - means[1] + margin).clamp_min(0)[boundary].mean() / 2**level
    return total


def triplet_inputs(batch, dtype=torch.float32, shrink=1):
    draw = torch.Generator().manual_seed(0)
    rows, columns = 192 // shrink, 640 // shrink
    features = {
        level: torch.randn(batch, channels, rows >> level, columns >> level, generator=draw).to(dtype)
        for level, channels in TRIPLET
    }
    coarse = torch.randint(5, (batch, 1, 6, 20), generator=draw)
    labels = F.interpolate(coarse.float(), (rows, columns))[:, 0].long()
    return {level: x.requires_grad_() for level, x in features.items()}, labels


def triplet_step(loss, features, labels):
    def step():
        value = loss(features, labels)
        gradients = torch.autograd.grad(value, list(features.values()))
        return value.detach(), gradients

    return step


def attention_step(merged, dtype=torch.float32, batch=2, sizes=ATTENTION):
    blocks, inputs = [], []
    draw = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    for channels, rows, columns in sizes:
        blocks.append(CrossTaskAttention(channels, merged=merged).to(dtype))
        pair = torch.randn(2, batch, channels, rows, columns, generator=draw).to(dtype)
        inputs.append([x.requires_grad_() for x in pair.unbind(0)])

    def step():
        found = []
        for block, (own, other) in zip(blocks, inputs, strict=True):
            read = block._read_merged(own, other) if merged else block._read(own, other)
            weights = [
                value for layer in (block.query, block.key, block.value) for value in layer.parameters()
            ]
            wanted = [own, other, block.project.weight, *weights]
            found += [read.detach(), *torch.autograd.grad(read.square().mean(), wanted)]
        return found

    return step


def peak_tensor_bytes(step) -> int:
    """The most bytes that a step holds in tensors at once, beyond its inputs."""
    step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as log:
        step()
    events = [event for event in log.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


@pytest.mark.benchmark
@pytest.mark.parametrize("dtype, close", [(torch.float64, 1e-9), (torch.float32, 2e-3)])
def test_the_triplet_loss_equals_the_unfolded_one(dtype, close):
    """In float32, √(2 − 2 cos) of a pixel and itself is rounding, up to 3.5e-4."""
    given = triplet_inputs(1, dtype, shrink=2)
    ours, theirs = triplet_step(triplet_loss, *given)(), triplet_step(unfolded_triplet_loss, *given)()
    torch.testing.assert_close(ours[0], theirs[0], rtol=close, atol=0)
    for found, expected in zip(ours[1], theirs[1], strict=True):
        assert float((found - expected).abs().max()) <= close * float(expected.abs().max())


@pytest.mark.benchmark
def test_the_triplet_loss_takes_half_the_time(takes):
    given = triplet_inputs(1)
    ours, theirs = triplet_step(triplet_loss, *given), triplet_step(unfolded_triplet_loss, *given)
    ours(), theirs()
    takes(1 / 2, ours, theirs, what="triplet loss at 192×640, forward and backward", rounds=3)


@pytest.mark.benchmark
def test_the_triplet_loss_takes_a_third_of_the_memory(record_property):
    given = triplet_inputs(1)
    ours, theirs = (
        peak_tensor_bytes(triplet_step(loss, *given)) for loss in (triplet_loss, unfolded_triplet_loss)
    )
    record_property("ratio", theirs / ours)
    print(f"\nmemory: {ours / 1e6:.0f} MB against {theirs / 1e6:.0f} MB, {theirs / ours:.1f}x")
    assert theirs >= 3 * ours


@pytest.mark.benchmark
@pytest.mark.parametrize("dtype, close", [(torch.float64, 1e-9), (torch.float32, 1e-3)])
def test_the_attention_equals_that_of_single_layers(dtype, close):
    for ours, theirs in zip(*(attention_step(merged, dtype, 1)() for merged in (True, False)), strict=True):
        assert float((ours - theirs).abs().max()) <= close * float(theirs.abs().max())


@pytest.mark.benchmark
def test_the_attention_takes_half_the_time(takes):
    ours, theirs = (attention_step(merged) for merged in (True, False))
    ours(), theirs()
    takes(1 / 2, ours, theirs, what="what six blocks read, forward and backward", rounds=3)


@pytest.mark.benchmark
def test_the_attention_takes_a_third_of_the_memory(record_property):
    """At the finest of its levels; at the coarsest the weights are most of it."""
    ours, theirs = (
        peak_tensor_bytes(attention_step(merged, batch=2, sizes=ATTENTION[2:])) for merged in (True, False)
    )
    record_property("ratio", theirs / ours)
    print(f"\nmemory: {ours / 1e6:.0f} MB against {theirs / 1e6:.0f} MB, {theirs / ours:.1f}x")
    assert theirs >= 3 * ours
