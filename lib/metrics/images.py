"""How alike two pictures are: PSNR, SSIM, LPIPS, error in a region, colours of parts, Fréchet distances.

Pictures are (N, 3, H, W) of one range, [-1, 1] unless said otherwise. Each measure is one number a picture,
but for the Fréchet distance, which compares two sets. That is named by the network whose features it is of,
and is no FID: FID is of Inception's features, which no package carries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.inspection import evaluating

#: Of the two networks that LPIPS is published for here: kernel, stride, padding of each convolution, or a
#: pooling (kernel, stride); features are taken where a block ends.
_BLOCKS = {
    "alex": (
        ((11, 4, 2),),
        ((3, 2), (5, 1, 2)),
        ((3, 2), (3, 1, 1)),
        ((3, 1, 1),),
        ((3, 1, 1),),
    ),
    "vgg": (
        ((3, 1, 1),) * 2,
        ((2, 2), *((3, 1, 1),) * 2),
        ((2, 2), *((3, 1, 1),) * 3),
        ((2, 2), *((3, 1, 1),) * 3),
        ((2, 2), *((3, 1, 1),) * 3),
    ),
}


def mean_squared_error(image: Tensor, target: Tensor, region: Tensor | None = None) -> Tensor:
    """Mean squared difference of each picture, (N,).

    Parameters
    ----------
    image, target : (N, C, H, W)
    region : (N, H, W) bool, optional
        The pixels that count.

    Raises
    ------
    ValueError
        Shapes differ, or the region of a picture is empty.
    """
    _check(image, target)
    squares = (image - target).square().mean(1)
    if region is None:
        return squares.mean((1, 2))
    if region.shape != squares.shape or region.dtype != torch.bool:
        raise ValueError(
            f"region must be bool {tuple(squares.shape)}, got {region.dtype} {tuple(region.shape)}"
        )
    pixels = region.sum((1, 2))
    if (pixels == 0).any():
        raise ValueError(f"the region of picture {int((pixels == 0).nonzero()[0])} is empty")
    return (squares * region).sum((1, 2)) / pixels


def psnr(image: Tensor, target: Tensor, *, span: float = 2.0) -> Tensor:
    """Peak signal-to-noise ratio of each picture, 10 log₁₀(span² / MSE), in dB, (N,); inf where both agree.

    Parameters
    ----------
    image, target : (N, C, H, W)
    span : float
        From black to white.

    Raises
    ------
    ValueError
        Shapes differ, or span is not above 0.
    """
    if not span > 0:
        raise ValueError(f"span must be above 0, got {span}")
    return 10 * torch.log10(span**2 / mean_squared_error(image, target))


def ssim(image: Tensor, target: Tensor, *, span: float = 2.0) -> Tensor:
    """Structural similarity of each picture, (N,), in -1…1; 1 where both agree.

    Wang et al., Image Quality Assessment: from Error Visibility to Structural Similarity, 2004: a Gaussian
    window of 11 × 11 pixels with σ = 1.5, K₁ = 0.01, K₂ = 0.03, the mean over channels and over all places
    where the window is inside the picture.

    Parameters
    ----------
    image, target : (N, C, H, W)
        At least 11 pixels high and wide.
    span : float
        From black to white.

    Raises
    ------
    ValueError
        Shapes differ, the pictures are too small, or span is not above 0.
    """
    _check(image, target)
    if min(image.shape[-2:]) < 11 or not span > 0:
        raise ValueError(f"expected at least 11 × 11 pixels and span > 0, got {tuple(image.shape)}, {span}")
    offsets = torch.arange(-5, 6, dtype=image.dtype, device=image.device)
    window = torch.exp(-offsets.square() / (2 * 1.5**2))
    window = window / window.sum()

    def blurred(x: Tensor) -> Tensor:
        rows = F.conv2d(x.flatten(0, 1)[:, None], window.view(1, 1, -1, 1))
        return F.conv2d(rows, window.view(1, 1, 1, -1)).view(
            *x.shape[:2], *(side - 10 for side in x.shape[2:])
        )

    mean, target_mean = blurred(image), blurred(target)
    variance = blurred(image * image) - mean.square()
    target_variance = blurred(target * target) - target_mean.square()
    covariance = blurred(image * target) - mean * target_mean
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    luminance = (2 * mean * target_mean + c1) / (mean.square() + target_mean.square() + c1)
    structure = (2 * covariance + c2) / (variance + target_variance + c2)
    return (luminance * structure).mean((1, 2, 3))


class LPIPS(nn.Module):
    """Learned perceptual distance, version 0.1, of Zhang et al., CVPR 2018; lower is more alike.

    Features of an ImageNet network, of unit length in each place, are subtracted; squared differences are
    weighted by the published heads, averaged over places and added over five layers. No weight is trained and
    there is no dropout, so that gradients reach the pictures alone. Cost: a forward pass of the network for
    each picture; a target that needs no gradient has no backward pass, one that was seen before no forward
    pass.

    Parameters
    ----------
    network : {"alex", "vgg"}
    backbone : mapping
        Its convolutions under torchvision's names, `lib.data.weights.ALEXNET` or `VGG16`.
    heads : mapping
        `lib.data.weights.LPIPS_ALEX` or `LPIPS_VGG`.

    Raises
    ------
    ValueError
        There is no such network, or the weights are not its own.
    """

    def __init__(self, network: str, backbone: Mapping[str, Tensor], heads: Mapping[str, Tensor]) -> None:
        super().__init__()
        if network not in _BLOCKS:
            raise ValueError(f"network must be one of {', '.join(_BLOCKS)}, got {network!r}")
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))
        names = sorted(backbone, key=lambda name: int(name.split(".")[1]))
        weights = iter([backbone[name] for name in names if name.endswith("weight")])
        biases = iter([backbone[name] for name in names if name.endswith("bias")])
        self.blocks = nn.ModuleList()
        try:
            for number, block in enumerate(_BLOCKS[network]):
                layers: list[nn.Module] = []
                for layer in block:
                    if len(layer) == 2:
                        layers.append(nn.MaxPool2d(*layer))
                        continue
                    layers += [_convolution(next(weights), next(biases), layer), nn.ReLU()]
                self.blocks.append(nn.Sequential(*layers))
                head = heads[f"lin{number}.model.1.weight"]
                self.register_buffer(f"head{number}", head.reshape(1, layers[-2].out_channels, 1, 1))
        except (StopIteration, KeyError, RuntimeError) as error:
            raise ValueError(f"these are not the weights of LPIPS ({network})") from error
        self.requires_grad_(False)

    def forward(self, image: Tensor, target: Tensor | Sequence[Tensor]) -> Tensor:
        """Distance of each picture to its target, (N,).

        Parameters
        ----------
        image : (N, 3, H, W) in [-1, 1]
        target : the same, or its `features`
            Of a target that stays the same, they save a forward pass.

        Raises
        ------
        ValueError
            Shapes differ, or as `features`.
        """
        if isinstance(target, Tensor):
            _check(image, target)
            target = self.features(target)
        features = self.features(image)
        if [one.shape for one in features] != [one.shape for one in target]:
            raise ValueError("the target's features are of pictures of another shape")
        distance = 0.0
        for number, (one, other) in enumerate(zip(features, target, strict=True)):
            head = getattr(self, f"head{number}")
            distance = distance + ((one - other).square() * head).sum(1).mean((1, 2))
        return distance

    def features(self, image: Tensor) -> list[Tensor]:
        """Features of each layer, of unit length in each place.

        Parameters
        ----------
        image : (N, 3, H, W) in [-1, 1]

        Raises
        ------
        ValueError
            Pictures are not red, green, blue, or too small for five layers.
        """
        if image.dim() != 4 or image.shape[1] != 3 or min(image.shape[-2:]) < 32:
            raise ValueError(f"expected (N, 3, H, W) of at least 32 × 32 pixels, got {tuple(image.shape)}")
        features, x = [], (image - self.shift) / self.scale
        for block in self.blocks:
            x = block(x)
            features.append(x / _length(x))
        return features


def _convolution(weight: Tensor, bias: Tensor, shape: tuple[int, int, int]) -> nn.Conv2d:
    kernel, stride, padding = shape
    layer = nn.Conv2d(weight.shape[1], weight.shape[0], kernel, stride=stride, padding=padding)
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer


def _length(features: Tensor) -> Tensor:
    # The root of 0 has no gradient: where all features are 0, they are left alone.
    squares = features.square().sum(1, keepdim=True)
    return torch.where(squares > 0, squares, 1).sqrt() * (squares > 0) + 1e-10


def part_colours(
    images: Tensor, regions: Tensor, palette: Tensor, *, fewest: int = 3
) -> tuple[Tensor, Tensor]:
    """Which colour of a palette a part of each picture has.

    That is the one nearest to the mean colour of the part's pixels.

    Parameters
    ----------
    images : (N, 3, H, W)
    regions : (N, H, W) bool
        Where the part is; lines are best left out.
    palette : (K, 3)
        In the range of the images.
    fewest : int
        Pixels that a part must have to be seen, at least 1.

    Returns
    -------
    number : (N,) int64
        In the palette; -1 where the part is not seen.
    mean : (N, 3)
        Mean colour; NaN where there is no pixel.

    Raises
    ------
    ValueError
        Shapes do not fit, or fewest is below 1.
    """
    expected = (len(images), *images.shape[-2:])
    if images.dim() != 4 or images.shape[1] != 3 or regions.shape != expected or regions.dtype != torch.bool:
        raise ValueError(
            f"expected images (N, 3, H, W) and regions (N, H, W) bool, got {tuple(images.shape)} and "
            f"{regions.dtype} {tuple(regions.shape)}"
        )
    if palette.dim() != 2 or palette.shape[1] != 3 or len(palette) == 0 or fewest < 1:
        raise ValueError(f"expected a palette (K, 3) and fewest >= 1, got {tuple(palette.shape)}, {fewest}")
    pixels = regions.sum((1, 2))
    mean = (images * regions[:, None]).sum((2, 3)) / pixels[:, None]
    nearest = torch.cdist(mean.nan_to_num(), palette.to(mean.dtype)).argmin(1)
    return torch.where(pixels >= fewest, nearest, -1), mean


def part_colour_accuracy(
    images: Tensor, regions: Tensor, palette: Tensor, target: Tensor, *, fewest: int = 3
) -> Tensor:
    """Whether a part of each picture has the colour that was asked for, (N,): 1, 0, or NaN if it is not seen.

    Parameters and errors as of `part_colours`; `target` (N,) are numbers of colours in the palette.
    """
    if target.shape != images.shape[:1] or ((target < 0) | (target >= len(palette))).any():
        raise ValueError(f"target must be ({len(images)},) numbers below {len(palette)}")
    number, _ = part_colours(images, regions, palette, fewest=fewest)
    return torch.where(number < 0, torch.nan, (number == target).to(palette.dtype))


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Fréchet distance of two sets of features, each taken as a normal distribution.

    ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2 (Σ₁Σ₂)^½), with covariances over n − 1, in float64. O(n d² + d³).

    Parameters
    ----------
    first, second : (n, d), (m, d)
        Features, at least two a set. With fewer than d of them the covariance has no full rank, and the
        distance is biased upwards.

    Raises
    ------
    ValueError
        Shapes do not fit, or a feature is not finite.
    """
    if first.dim() != 2 or second.dim() != 2 or first.shape[1] != second.shape[1]:
        raise ValueError(f"expected (n, d) and (m, d), got {tuple(first.shape)} and {tuple(second.shape)}")
    if min(len(first), len(second)) < 2 or not (first.isfinite().all() and second.isfinite().all()):
        raise ValueError("expected at least two finite features a set")
    first, second = first.double(), second.double()
    centred = [one - one.mean(0) for one in (first, second)]
    # The eigenvalues of Σ₁Σ₂ are the squared singular values of A₂A₁ᵀ, where Σ = AᵀA: no root of a matrix.
    a, b = (_factor(one / (len(one) - 1) ** 0.5) for one in centred)
    root = torch.linalg.svdvals(b @ a.T).sum()
    means = (first.mean(0) - second.mean(0)).square().sum()
    return max(0.0, float(means + a.square().sum() + b.square().sum() - 2 * root))


def _factor(a: Tensor) -> Tensor:
    """The smallest A with the same AᵀA."""
    return a if len(a) <= a.shape[1] else torch.linalg.qr(a, mode="r").R


class FrechetDistance:
    """Fréchet distance of two sets of pictures in the features of a network that it is named by.

    Parameters
    ----------
    network : module or function
        From pictures (n, C, H, W), as it wants them, to features (n, d).
    name : str
        What the network is, such as ``MobileNet-v2``.
    batch_size : int
        Pictures at a time.

    Attributes
    ----------
    label : str
        For tables: ``Fréchet distance (MobileNet-v2)``.

    Raises
    ------
    ValueError
        The name is empty, or FID.
    """

    def __init__(
        self, network: nn.Module | Callable[[Tensor], Tensor], name: str, *, batch_size: int = 50
    ) -> None:
        if not name.strip() or "fid" in name.lower().replace("-", " ").split():
            raise ValueError(f"name the network whose features these are, not {name!r}")
        self.network, self.batch_size = network, batch_size
        self.label = f"Fréchet distance ({name})"

    def features(self, images: Tensor | Iterable[Tensor]) -> Tensor:
        """Features (N, d) of pictures (N, C, H, W), or of batches of them, on the CPU."""
        batches = images.split(self.batch_size) if isinstance(images, Tensor) else images
        module = self.network if isinstance(self.network, nn.Module) else nn.Identity()
        with evaluating(module), torch.no_grad():
            return torch.cat([self.network(batch).cpu() for batch in batches])

    def __call__(self, first: Tensor | Iterable[Tensor], second: Tensor | Iterable[Tensor]) -> float:
        """The distance of two sets; errors as of `frechet_distance`."""
        return frechet_distance(self.features(first), self.features(second))


def _check(image: Tensor, target: Tensor) -> None:
    if image.dim() != 4 or image.shape != target.shape or not image.numel() or image.is_complex():
        raise ValueError(
            f"two (N, C, H, W) of one shape are compared, got {tuple(image.shape)} and {tuple(target.shape)}"
        )
    if not (image.is_floating_point() and target.is_floating_point()):
        raise ValueError(f"pictures must be floating-point, got {image.dtype} and {target.dtype}")
