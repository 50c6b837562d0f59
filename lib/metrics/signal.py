"""How far an approximation is from a signal."""

from __future__ import annotations

import math

from torch import Tensor


def sqnr(signal: Tensor, approximation: Tensor, *, centred: bool = False) -> float:
    """Signal to quantisation-noise ratio, 10 log₁₀(Σ x² / Σ (x − x̃)²), in dB.

    Parameters
    ----------
    signal, approximation : same shape
        x and x̃.
    centred : bool
        Take the mean of x away from x in the numerator: a large mean makes the ratio look better than it is.

    Returns
    -------
    float
        inf where the two agree everywhere, −inf for an approximation of nothing.

    Raises
    ------
    ValueError
        If the shapes differ, there are no values, or one is not finite.
    """
    if signal.shape != approximation.shape or not signal.numel():
        raise ValueError(
            f"two tensors of one shape are compared, got {tuple(signal.shape)} and "
            f"{tuple(approximation.shape)}"
        )
    signal, approximation = signal.double(), approximation.double()
    noise = (signal - approximation).square().sum().item()
    power = (signal - signal.mean() if centred else signal).square().sum().item()
    if not math.isfinite(noise) or not math.isfinite(power):
        raise ValueError("signal and approximation must be finite")
    if noise == 0:
        return math.inf
    return 10 * math.log10(power / noise) if power else -math.inf
