"""EVBMF and Tucker-2 of VGG-sized layers against the textbook way, side by side in one run.

Textbook EVBMF takes the full singular value decomposition of the unfolding, as the public ports do; textbook
HOOI takes one of each unfolding in each sweep, as general tensor libraries do.
"""

import math

import numpy as np
import pytest
import scipy.linalg
from scipy.optimize import minimize_scalar

from lib.compression.tucker import tucker2
from lib.compression.vbmf import evbmf


def textbook_evbmf(v: np.ndarray) -> int:
    """Nakajima et al. as in the public ports: thin decomposition with vectors, one bounded search."""
    short, long = v.shape
    alpha = short / long
    tau = 2.5129 * math.sqrt(alpha)
    x_bar = (1 + tau) * (1 + alpha / tau)
    _, s, _ = scipy.linalg.svd(v, full_matrices=False)

    def objective(variance):
        x = s**2 / (long * variance)
        z1, z2 = x[x > x_bar], x[x <= x_bar]
        t = 0.5 * (z1 - (1 + alpha) + np.sqrt((z1 - (1 + alpha)) ** 2 - 4 * alpha))
        return (
            (z2 - np.log(z2)).sum()
            + (z1 - t).sum()
            + np.log((t + 1) / z1).sum()
            + alpha * np.log(t / alpha + 1).sum()
        )

    most = min(math.ceil(short / (1 + alpha)) - 1, short) - 1
    low = max(s[most + 1] ** 2 / (long * x_bar), (s[most + 1 :] ** 2).mean() / long)
    high = (s**2).sum() / (short * long)
    variance = minimize_scalar(objective, bounds=(low, high), method="bounded", options={"xatol": 1e-9}).x
    return int((s > math.sqrt(long * variance * x_bar)).sum())


def textbook_hooi(kernel: np.ndarray, input_rank: int, output_rank: int, sweeps: int) -> float:
    """HOOI by singular value decompositions of whole unfoldings; returns the relative error."""
    outputs, inputs = kernel.shape[:2]

    def leading(matrix, rank):
        return scipy.linalg.svd(matrix, full_matrices=False)[0][:, :rank]

    u4 = leading(kernel.reshape(outputs, -1), output_rank)
    u3 = leading(kernel.transpose(1, 0, 2, 3).reshape(inputs, -1), input_rank)
    for _ in range(sweeps):
        projected = np.einsum("tsij,sr->trij", kernel, u3, optimize=True)
        u4 = leading(projected.reshape(outputs, -1), output_rank)
        projected = np.einsum("tsij,tq->qsij", kernel, u4, optimize=True)
        u3 = leading(projected.transpose(1, 0, 2, 3).reshape(inputs, -1), input_rank)
    core = np.einsum("tsij,sr,tq->qrij", kernel, u3, u4, optimize=True)
    return math.sqrt(1 - (np.linalg.norm(core) / np.linalg.norm(kernel)) ** 2)


@pytest.mark.benchmark
def test_evbmf_of_a_vgg_layer_is_twice_as_fast(takes):
    random = np.random.default_rng(0)
    matrix = random.standard_normal((512, 40)) @ random.standard_normal((40, 4608))
    matrix += 2 * random.standard_normal((512, 4608))
    assert evbmf(matrix).rank == textbook_evbmf(matrix) == 40
    takes(0.5, lambda: evbmf(matrix), lambda: textbook_evbmf(matrix), what="EVBMF of 512 x 4608", rounds=3)


@pytest.mark.benchmark
def test_tucker_of_a_vgg_layer_is_twice_as_fast(takes):
    kernel = np.random.default_rng(0).standard_normal((512, 512, 3, 3))

    def ours():
        return tucker2(kernel, 150, 144, sweeps=2, tolerance=0).relative_error

    def theirs():
        return textbook_hooi(kernel, 150, 144, 2)

    assert ours() == pytest.approx(theirs(), abs=1e-9)
    takes(0.5, ours, theirs, what="Tucker-2 of 512 x 512 x 3 x 3, two sweeps", rounds=2)
