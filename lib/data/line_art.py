"""Line art from pictures, as Tag2Pix's authors make it, and lines that fade.

After the authors' code (github.com/blandocs/Tag2Pix, commit 733d729, MIT). They draw lines in three ways:

* XDoG (Winnemöller et al., 2012), which needs no network: `xdog`.
* sketchKeras, a network of others (github.com/lllyasviel/sketchKeras): what it gets (`high_pass`) and what
  becomes of what it gives (`sketch`) stand here, the network is the caller's.
* Sketch simplification (Simo-Serra et al.), which they do not ship for its licence; it is not here either.

XDoG thickens lines where something dark meets something bright, so that its lines tell something of the
colours: judge a colouring by tags that are *not* the picture's, on clean lines.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from lib.data.own_photographs import open_photograph

#: Ranges of XDoG's σ and k in the authors' preparation of data.
SIGMAS, FACTORS = (0.35, 0.45), (2.0, 3.0)


def xdog(
    grey: np.ndarray,
    *,
    sigma: float = 0.4,
    k: float = 2.5,
    gamma: float = 0.95,
    epsilon: float = -0.5,
    phi: float = 1e9,
) -> np.ndarray:
    """Black lines on white by an extended difference of Gaussians d = (G_σ − γ G_kσ) / 255.

    White where d < ε or d ≥ 0; otherwise 255 (1 + tanh(φ d)), which with the authors' φ is black. They let
    twice 255 overflow to 254 where d > 0; here white is 255.

    Parameters
    ----------
    grey : (H, W)
        0…255.
    sigma, k
        Standard deviations of the Gaussians are σ and kσ, in pixels.
    gamma, epsilon, phi
        As above.

    Returns
    -------
    (H, W) uint8

    Raises
    ------
    ValueError
        It is no grey picture of values in 0…255, or a parameter is out of range.
    """
    grey = _checked(grey)
    if not (sigma > 0 and k > 1 and phi > 0):
        raise ValueError(f"sigma and phi must be above 0 and k above 1, got {sigma}, {phi} and {k}")
    difference = (gaussian_filter(grey, sigma) - gamma * gaussian_filter(grey, sigma * k)) / 255
    lines = 255 * np.minimum(1 + np.tanh(phi * difference), 1)
    return np.where(difference < epsilon, 255, lines).astype(np.uint8)


def random_xdog(grey: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """`xdog` with σ and k drawn as the authors draw them, uniformly from `SIGMAS` and `FACTORS`."""
    return xdog(grey, sigma=random.uniform(*SIGMAS), k=random.uniform(*FACTORS))


def high_pass(picture: np.ndarray, size: int = 512) -> np.ndarray:
    """What sketchKeras gets: each channel minus its Gaussian blur (σ = 3) over 128, over the largest of all.

    Parameters
    ----------
    picture : (H, W, 3)
        0…255; the authors' order of channels is blue, green, red.
    size : int
        Zeros are added below and on the right up to so many pixels.

    Returns
    -------
    (size, size, 3) float64
        At most 1; zero for a picture of one colour.

    Raises
    ------
    ValueError
        It is no picture of three channels in 0…255, or larger than ``size``.
    """
    picture = _checked(picture, channels=3)
    height, width = picture.shape[:2]
    if max(height, width) > size:
        raise ValueError(f"a picture of {height} × {width} pixels is larger than {size}")
    detail = (picture - gaussian_filter(picture, (3, 3, 0))) / 128
    largest = detail.max()
    detail = detail / largest if largest > 1e-9 else np.zeros_like(detail)
    return np.pad(detail, [(0, size - height), (0, size - width), (0, 0)])


def sketch(
    picture: np.ndarray,
    network: Callable[[np.ndarray], np.ndarray],
    *,
    size: int = 512,
    threshold: float = 0.1,
) -> np.ndarray:
    """Line art by sketchKeras: the largest of its channels, weak lines left out, mid greys darkened.

    Parameters
    ----------
    picture
        As for `high_pass`.
    network : callable
        From (size, size, 3), as of `high_pass`, to the strength of lines in 0…1, of the same shape.
    size : int
    threshold : float
        Below it there is no line.

    Returns
    -------
    (H, W) uint8

    Raises
    ------
    ValueError
        As `high_pass`; or the network gives another shape.
    """
    height, width = np.shape(picture)[:2]
    strength = network(high_pass(picture, size))
    if np.shape(strength) != (size, size, 3):
        raise ValueError(f"the network must give {(size, size, 3)}, got {np.shape(strength)}")
    strength = np.clip(np.max(strength, axis=2)[:height, :width], 0, 1)
    return darkened(255 * (1 - np.where(strength < threshold, 0, strength)))


def darkened(values: np.ndarray) -> np.ndarray:
    """255^(1 − 1.4) v^1.4, truncated to bytes: black and white stay, greys between darken."""
    exact = 255 ** (1 - 1.4) * _checked(values, grey=False) ** 1.4
    return np.minimum(exact + 1e-9, 255).astype(np.uint8)


def read_line_art(path: Path, size: int, *, extract: bool = False) -> np.ndarray:
    """Somebody's own line art, or lines of somebody's picture, as the authors' program scales it.

    Whatever the file is (grey, colours, 16 bits, transparent, turned by its camera), it is read as people see
    it, on white, and scaled to a square; its proportions are not kept.

    Parameters
    ----------
    path : Path
    size : int
        In pixels.
    extract : bool
        It is a coloured picture, of which `xdog` draws the lines, rather than line art.

    Returns
    -------
    (size, size) float32
        0…1, white is 1.

    Raises
    ------
    DataUnavailable
        It is no whole image.
    ValueError
        The size is below 1.
    """
    if size < 1:
        raise ValueError(f"size is a number of pixels, got {size}")
    picture = open_photograph(path).convert("L")
    if extract:
        picture = Image.fromarray(xdog(np.asarray(picture)))
    return np.asarray(picture.resize((size, size), Image.Resampling.LANCZOS), np.float32) / 255


def faded(lines: np.ndarray, *, brightness: float, contrast: float = 1.0) -> np.ndarray:
    """Line art with another brightness, then contrast about its own mean: the authors' jitter.

    No training here uses it (`lib.data.danbooru.LineArtPairs` mirrors only).

    Parameters
    ----------
    lines : array
        0…1, white is 1, of one picture.
    brightness, contrast : float
        Factors, at least 0; the authors' ranges are 0.8…1.2 and, when lines are to fade, 1…7.

    Returns
    -------
    array of the same shape, 0…1

    Raises
    ------
    ValueError
        A factor is below 0.
    """
    if not (brightness >= 0 and contrast >= 0):
        raise ValueError(f"brightness and contrast must be 0 or more, got {brightness} and {contrast}")
    brighter = np.clip(lines * brightness, 0, 1)
    mean = brighter.mean()
    return np.clip(mean + contrast * (brighter - mean), 0, 1)


def inscribed(angle: float) -> float:
    """Side of the largest centred square without borders in a unit square turned by an angle, in degrees.

    Of the authors' rotation, which no training here uses.

    Raises
    ------
    ValueError
        The angle is beyond a right one.
    """
    if not abs(angle) <= 90:
        raise ValueError(f"angles are from -90 to 90 degrees, got {angle}")
    radians = np.deg2rad(abs(angle))
    return float(1 / (np.cos(radians) + np.sin(radians)))


def _checked(picture: np.ndarray, channels: int = 0, *, grey: bool = True) -> np.ndarray:
    picture = np.asarray(picture)
    shaped = not grey or (picture.ndim == 3 and picture.shape[2] == 3 if channels else picture.ndim == 2)
    if not shaped or picture.size == 0:
        expected = "(H, W, 3)" if channels else "(H, W)"
        raise ValueError(f"a picture {expected} is wanted, got {picture.shape}")
    picture = picture.astype(np.float64)
    if not (picture.min() >= 0 and picture.max() <= 255):
        raise ValueError(f"values must be in 0..255, got {picture.min():g}..{picture.max():g}")
    return picture
