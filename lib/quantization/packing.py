"""Integer codes of 1 to 8 bits in real bytes, and back.

The codes are laid out in planes: plane j is the j-th eighth of the tensor, and the codes at one place of the
eight planes share their bytes. So eight codes of b bits fill b bytes exactly, and every step of packing works
on long runs of bytes: half of the planes is shifted and put beside the other half, until a byte is full. With
3 bits two codes make six, and the fourth six goes, two bits at a time, beside the other three. The layout
(the digit is the plane; lowest bits of a byte on the right)::

    1 bit    7 3 5 1 6 2 4 0
    2 bits   66 22 44 00   77 33 55 11
    3 bits   33 444 000    73 555 111    77 666 222
    4 bits   4444 0000     5555 1111     6666 2222     7777 3333

Codes of 5, 6 and 7 bits are packed as their low four bits and the rest.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lib.quantization.bits import checked_bits

#: Codes that share their bytes.
PLANES = 8


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that `count` codes of `bits` bits take: ``bits * ceil(count / 8)``."""
    checked_bits(bits)
    if count < 0:
        raise ValueError(f"a number of codes cannot be negative, got {count}")
    return bits * -(-count // PLANES)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack codes.

    Parameters
    ----------
    codes : uint8, (...)
        Values in 0..2^bits - 1, any shape; packed in the order of ``codes.flatten()``.
    bits
        1 to 8.

    Returns
    -------
    uint8, (bits, ceil(n / 8))

    Raises
    ------
    ValueError
        Not uint8, a code that needs more bits, or ``bits`` out of range.
    """
    checked_bits(bits)
    if codes.dtype != torch.uint8:
        raise ValueError(f"codes are uint8, got {codes.dtype}")
    if codes.numel() and int(codes.max()) >> bits:
        raise ValueError(f"codes of {bits} bits are in 0..{2**bits - 1}, got {int(codes.max())}")
    flat = codes.flatten()
    width = -(-flat.numel() // PLANES)
    if missing := PLANES * width - flat.numel():
        flat = F.pad(flat, (0, missing))
    return merge_planes(
        flat.view(PLANES, width), torch.empty(bits, width, dtype=torch.uint8, device=codes.device)
    )


def unpack(packed: Tensor, count: int) -> Tensor:
    """Codes out of what `pack` returned.

    Parameters
    ----------
    packed : uint8, (bits, ceil(count / 8))
    count
        Number of codes.

    Returns
    -------
    uint8, (count,)

    Raises
    ------
    ValueError
        Not what `pack` returns for so many codes.
    """
    width = -(-count // PLANES)
    if packed.dtype != torch.uint8 or packed.dim() != 2 or packed.shape[1] != width:
        raise ValueError(
            f"{count} codes are packed as uint8 of shape (bits, {width}), "
            f"got {packed.dtype} {tuple(packed.shape)}"
        )
    checked_bits(packed.shape[0])
    planes = torch.empty(PLANES, width, dtype=torch.uint8, device=packed.device)
    return split_planes(packed, planes).view(-1)[:count]


def pack_mask(mask: Tensor) -> Tensor:
    """Pack a boolean tensor at one bit per element: uint8 (1, ceil(n / 8))."""
    if mask.dtype != torch.bool:
        raise ValueError(f"a mask is boolean, got {mask.dtype}")
    return pack(mask.view(torch.uint8), 1)


def unpack_mask(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The boolean tensor of `shape` out of what `pack_mask` returned."""
    count = torch.Size(shape).numel()
    return unpack(packed, count).view(torch.bool).view(shape)


def merge_planes(codes: Tensor, out: Tensor) -> Tensor:
    """Pack eight planes of codes into ``out``; the codes are trusted to be in range.

    Parameters
    ----------
    codes : uint8, (8, width)
    out : uint8, (bits, width)
        Written, and returned.
    """
    bits = out.shape[0]
    if bits == 8:
        return out.copy_(codes)
    if bits > 4:  # the low four bits and the others, each by themselves
        merge_planes(codes & 15, out[:4])
        merge_planes(codes >> 4, out[4:])
        return out
    while bits < 4:  # the second half of the planes goes beside the first: 1 to 2 to 4 bits, 3 to 6
        half = codes.shape[0] // 2
        codes = (codes[half:] << bits).bitwise_or_(codes[:half])
        bits *= 2
    if bits == 4:
        torch.bitwise_left_shift(codes[out.shape[0] :], 4, out=out)
        return out.bitwise_or_(codes[: out.shape[0]])
    # Four sixes into three bytes: the fourth goes, two bits at a time, beside the others.
    torch.mul(codes[3], codes.new_tensor([[64], [16], [4]]), out=out)
    return out.bitwise_and_(192).bitwise_or_(codes[:3])


def split_planes(packed: Tensor, out: Tensor) -> Tensor:
    """Unpack into ``out``: the inverse of `merge_planes`.

    Parameters
    ----------
    packed : uint8, (bits, width)
    out : uint8, (8, width)
        Written, and returned.
    """
    bits = packed.shape[0]
    if bits == 8:
        return out.copy_(packed)
    if bits > 4:
        low = split_planes(packed[:4], torch.empty_like(out))
        return split_planes(packed[4:], out).bitwise_left_shift_(4).bitwise_or_(low)
    if bits == 3:
        codes, filled = packed.new_empty(4, packed.shape[1]), 6
        torch.bitwise_and(packed, 63, out=codes[:3])
        fourth = (packed >> 6).mul_(packed.new_tensor([[1], [4], [16]]))
        torch.bitwise_or(fourth[0], fourth[1], out=codes[3]).bitwise_or_(fourth[2])
    else:
        codes, filled = packed, 8
    while filled > bits:
        filled //= 2
        half = codes.shape[0]
        target = out if filled == bits else packed.new_empty(2 * half, packed.shape[1])
        torch.bitwise_and(codes, (1 << filled) - 1, out=target[:half])
        torch.bitwise_right_shift(codes, filled, out=target[half:])
        codes = target
    return out
