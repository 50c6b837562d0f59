"""The relative temporal kernels of MEANTIME: vectors that depend on a pair of events only through their gap.

Source: Cho, Park and Yoo, "MEANTIME", RecSys 2020, and the authors' code, commit a9ca2e7, which fixes what
the text leaves open: the sine and cosine parts of `sin_kernel` are two halves (not interleaved), its
gap is signed, and the unit of time is one second.

Here are the plain values, for figures, oracles and the materialised attention path.
How attention avoids writing them out for every pair is in `lib.models.recommenders.relative_attention`.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Letters of the authors' options: day, position, constant; sinusoid, exponential, logarithm.
ABSOLUTE_KERNELS = ("d", "p", "c")
RELATIVE_KERNELS = ("s", "e", "l")


def kernel_letters(kinds: str, known: tuple[str, ...], what: str) -> tuple[str, ...]:
    """The letters of a dash-separated string, e.g. ``"p-d"``; ``""`` has none.

    Raises
    ------
    ValueError
        For a letter that is not among ``known``.
    """
    letters = tuple(kinds.split("-")) if kinds else ()
    for letter in letters:
        if letter not in known:
            raise ValueError(
                f"{what} kernels are {', '.join(known)}, joined by dashes; got {letter!r} in {kinds!r}"
            )
    return letters


def sin_frequencies(
    hidden_size: int,
    frequency: float = 10_000.0,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Angular frequencies ω_c = f^(−2c/H) of the Sin kernel.

    Parameters
    ----------
    hidden_size
        H, an even number ≥ 2.
    frequency
        f > 1; the longest period is 2π·f^((H−2)/H) units of time.
    dtype, device
        Of the result.

    Returns
    -------
    Tensor of shape (H/2,), in radians per unit of time, from 1 downwards.

    Raises
    ------
    ValueError
        If H is odd or below 2, or f ≤ 1.
    """
    if hidden_size < 2 or hidden_size % 2:
        raise ValueError(f"the Sin kernel needs an even hidden_size of at least 2, got {hidden_size}")
    return _powers(hidden_size, frequency, step=2, dtype=dtype, device=device)


def decay_rates(
    hidden_size: int,
    frequency: float = 10_000.0,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Rates s_c = f^(−c/H) of the Exp and Log kernels.

    Returns
    -------
    Tensor of shape (H,), per unit of time, from 1 downwards.

    Raises
    ------
    ValueError
        If H < 1 or f ≤ 1.
    """
    if hidden_size < 1:
        raise ValueError(f"hidden_size must be at least 1, got {hidden_size}")
    return _powers(hidden_size, frequency, step=1, dtype=dtype, device=device)


def sin_kernel(
    gaps: Tensor, hidden_size: int = 64, frequency: float = 10_000.0, time_unit: float = 1.0
) -> Tensor:
    """Sin kernel: ``[sin(d·ω_0), …, sin(d·ω_{H/2−1}), cos(d·ω_0), …, cos(d·ω_{H/2−1})]`` with d = gap/unit.

    Parameters
    ----------
    gaps
        Signed gaps t_i − t_j, any shape. Subtract stamps as integers: a float32 stamp of 10⁹ s is 64 s
        coarse. Integers are cast to the default float dtype, as the authors do.
    hidden_size
        H, even.
    frequency
        f > 1.
    time_unit
        Length of the unit of time in the stamps' unit, > 0. The authors fix it to 1 (one second).

    Returns
    -------
    Tensor of shape (*gaps.shape, H). In float32 a phase of 10⁶ rad is 0.06 rad coarse, so the fast components
    are noise for gaps beyond some days.
    """
    d = _scaled(gaps, time_unit)
    phase = d[..., None] * sin_frequencies(hidden_size, frequency, dtype=d.dtype, device=d.device)
    return torch.cat([phase.sin(), phase.cos()], dim=-1)


def exp_kernel(
    gaps: Tensor, hidden_size: int = 64, frequency: float = 10_000.0, time_unit: float = 1.0
) -> Tensor:
    """Exp kernel: component c is exp(−|d|·f^(−c/H)), d = gap/unit, c = 0…H−1.

    Parameters and result as `sin_kernel`; symmetric in the sign of the gap, 1 at gap 0.
    """
    d = _scaled(gaps, time_unit).abs()
    return torch.exp(-d[..., None] * decay_rates(hidden_size, frequency, dtype=d.dtype, device=d.device))


def log_kernel(
    gaps: Tensor, hidden_size: int = 64, frequency: float = 10_000.0, time_unit: float = 1.0
) -> Tensor:
    """Log kernel: component c is log(1 + |d|·f^(−c/H)), d = gap/unit, c = 0…H−1.

    Parameters and result as `sin_kernel`; symmetric in the sign of the gap, 0 at gap 0.
    """
    d = _scaled(gaps, time_unit).abs()
    return torch.log1p(d[..., None] * decay_rates(hidden_size, frequency, dtype=d.dtype, device=d.device))


def relative_kernel(letter: str):
    """The kernel function of a letter: ``'s'`` Sin, ``'e'`` Exp, ``'l'`` Log.

    Raises
    ------
    ValueError
        For any other letter.
    """
    try:
        return {"s": sin_kernel, "e": exp_kernel, "l": log_kernel}[letter]
    except KeyError:
        raise ValueError(f"relative kernels are s, e and l, got {letter!r}") from None


def _scaled(gaps: Tensor, time_unit: float) -> Tensor:
    if not time_unit > 0:
        raise ValueError(f"time_unit must be positive, got {time_unit}")
    if not gaps.is_floating_point():
        gaps = gaps.to(torch.get_default_dtype())
    return gaps / time_unit if time_unit != 1 else gaps


def _powers(hidden_size: int, frequency: float, *, step: int, dtype, device) -> Tensor:
    if not frequency > 1:
        raise ValueError(f"frequency must be above 1, got {frequency}")
    exponents = torch.arange(0, hidden_size, step, dtype=dtype, device=device) / hidden_size
    return 1 / frequency**exponents
