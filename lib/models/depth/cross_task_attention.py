"""Cross-task multi-embedding attention of FSRE-Depth: each of two tasks reads the other's features.

Jung et al., "Fine-grained Semantics-aware Representation Enhancement for Self-supervised Monocular Depth
Estimation", ICCV 2021 (arXiv 2108.08829), as the authors' code has it (github.com/hyBlue/FSRE-Depth, MIT).
The attention is over embeddings at one pixel, not over positions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvElu(nn.Sequential):
    """3×3 convolution with bias over reflected borders, then ELU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        convolution = nn.Conv2d(inputs, outputs, 3, padding=1, padding_mode="reflect")
        super().__init__(convolution, nn.ELU(inplace=True))


class CrossTaskAttention(nn.Module):
    """Refines a task's features x, (B, C, h, w), by those of another, z.

    With H embeddings of ρC channels each, queries from the other task, keys and values from the task itself,

        a_h = ⟨q_h, k_h⟩ / √(HρC),   p = softmax over h of a,   o = BN(W Σ_h p_h v_h),

    and the refined features are a 3×3 convolution with ELU of [x, o], then a 1×1 convolution. There is no
    skip connection. The published scale is the width of all embeddings, not of one; a single embedding is
    weighted by its score itself.

    As ⟨A z, B x⟩ = zᵀ(AᵀB) x and W(V x) = (WV) x, the products of the weights can be taken first: a step then
    needs 2HC² instead of (3H + 1)ρC² products per pixel and keeps 2HC numbers instead of 3HρC,
    for 2H(C + 1)²ρC products once. The numbers are the same up to rounding.

    Parameters
    ----------
    channels
        C.
    embeddings
        H.
    ratio
        ρ.
    merged
        Take the products of the weights first; else one layer after the other as published, which is what
        published numbers of operations count.

    Raises
    ------
    ValueError
        A size is below 1.
    """

    def __init__(self, channels: int, *, embeddings: int = 4, ratio: int = 2, merged: bool = True) -> None:
        super().__init__()
        if min(channels, embeddings, ratio) < 1:
            raise ValueError(
                f"channels, embeddings and ratio must be at least 1, got {channels}, {embeddings}, {ratio}"
            )
        self.embeddings, self.merged = embeddings, merged
        inner = embeddings * ratio * channels
        self.query, self.key, self.value = (nn.Conv2d(channels, inner, 1) for _ in range(3))
        self.project = nn.Conv2d(ratio * channels, channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.fuse = nn.Sequential(ConvElu(2 * channels, channels), nn.Conv2d(channels, channels, 1))

    def forward(self, own: Tensor, other: Tensor) -> Tensor:
        """The refined features, (B, C, h, w), of the task whose are ``own``."""
        read = self._read_merged(own, other) if self.merged else self._read(own, other)
        return self.fuse(torch.cat([own, self.norm(read)], 1))

    def _weights(self, scores: Tensor) -> Tensor:
        """Of the embeddings, (B, H, h, w), from products of queries and keys."""
        scores = scores / self.key.out_channels**0.5
        return scores if self.embeddings == 1 else scores.softmax(1)

    def _read(self, own: Tensor, other: Tensor) -> Tensor:
        query, key, value = (
            layer(x).unflatten(1, (self.embeddings, -1))
            for layer, x in ((self.query, other), (self.key, own), (self.value, own))
        )
        weights = self._weights((query * key).sum(2))
        return self.project((weights[:, :, None] * value).sum(1))

    def _read_merged(self, own: Tensor, other: Tensor) -> Tensor:
        query, key, value = (self._affine(layer) for layer in (self.query, self.key, self.value))
        asked = torch.einsum("hrc, hrd -> hcd", key, query)
        given = torch.einsum("cr, hrd -> hcd", self.project.weight[:, :, 0, 0], value)
        scores = []
        for matrix in asked:  # one embedding after the other: what is not kept is small
            seen = _apply(matrix[:-1], other)
            scores.append((seen * own).sum(1, keepdim=True) + _apply(matrix[-1:], other))
        weights = self._weights(torch.cat(scores, 1))
        return sum(weights[:, h, None] * _apply(matrix, own) for h, matrix in enumerate(given))

    def _affine(self, layer: nn.Conv2d) -> Tensor:
        """Weight and bias of a layer side by side, (H, ρC, C + 1)."""
        matrix = torch.cat([layer.weight[:, :, 0, 0], layer.bias[:, None]], 1)
        return matrix.unflatten(0, (self.embeddings, -1))


def _apply(matrix: Tensor, x: Tensor) -> Tensor:
    """A matrix (D, C + 1), the last column a bias, of each pixel of (B, C, h, w): (B, D, h, w)."""
    return F.conv2d(x, matrix[:, :-1, None, None], matrix[:, -1])
