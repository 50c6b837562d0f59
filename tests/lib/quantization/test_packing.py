"""Packed codes come back exactly, in as many bytes as the formula says."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lib.quantization.packing import PLANES, pack, pack_mask, packed_bytes, unpack, unpack_mask


@given(bits=st.integers(1, 8), count=st.integers(0, 200), seed=st.integers(0, 2**16))
def test_round_trip_and_size(bits, count, seed):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (count,), generator=generator, dtype=torch.uint8)
    packed = pack(codes, bits)
    assert packed.nbytes == packed_bytes(count, bits) == bits * -(-count // 8)
    assert torch.equal(unpack(packed, count), codes)


@pytest.mark.parametrize("bits", range(1, 9))
def test_packing_uses_every_bit(bits):
    """All 2^(8 bits) groups of eight codes have packed forms of their own: here every pair of planes."""
    codes = torch.zeros(8, PLANES * bits, dtype=torch.uint8)
    for plane in range(PLANES):
        for bit in range(bits):
            codes[plane, plane * bits + bit] = 1 << bit
    columns = pack(codes, bits).T.tolist()  # the bytes that each single bit sets
    assert sorted(columns) == sorted(
        [(1 << i) if byte == j else 0 for byte in range(bits)] for j in range(bits) for i in range(8)
    )


LAYOUT = {  # as in the module's docstring: highest bit of a byte first; digit = plane
    1: ["73516240"],
    2: ["66224400", "77335511"],
    3: ["33444000", "73555111", "77666222"],
    4: ["44440000", "55551111", "66662222", "77773333"],
}


@pytest.mark.parametrize("bits", LAYOUT)
def test_the_layout_is_the_documented_one(bits):
    for plane in range(PLANES):
        codes = torch.zeros(PLANES, 1, dtype=torch.uint8)
        codes[plane] = 2**bits - 1
        expected = [int("".join(str(int(c == str(plane))) for c in byte), 2) for byte in LAYOUT[bits]]
        assert pack(codes, bits)[:, 0].tolist() == expected


def test_masks_are_one_bit_as_numpy_packs_them():
    mask = torch.rand(24, 50) < 0.3
    packed = pack_mask(mask)
    assert packed.nbytes == mask.numel() / 8
    assert torch.equal(unpack_mask(packed, (24, 50)), mask)
    planes = mask.flatten().view(PLANES, -1)[[7, 3, 5, 1, 6, 2, 4, 0]].numpy()
    assert np.array_equal(packed[0].numpy(), np.packbits(planes, axis=0)[0])


def test_other_layouts_are_packed_in_the_order_of_flatten():
    codes = torch.randint(0, 8, (6, 10), dtype=torch.uint8).T
    assert torch.equal(unpack(pack(codes, 3), 60), codes.flatten())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pack(torch.tensor([8], dtype=torch.uint8), 3), "codes of 3 bits are in 0..7, got 8"),
        (lambda: pack(torch.tensor([1]), 3), "codes are uint8, got torch.int64"),
        (lambda: pack(torch.tensor([1], dtype=torch.uint8), 0), "bits must be in 1..8, got 0"),
        (lambda: pack(torch.tensor([1], dtype=torch.uint8), 9), "bits must be in 1..8, got 9"),
        (lambda: packed_bytes(-1, 3), "cannot be negative"),
        (lambda: packed_bytes(8, True), "bits must be in 1..8, got True"),
        (
            lambda: unpack(torch.zeros(3, 2, dtype=torch.uint8), 8),
            r"\(bits, 1\), got torch.uint8 \(3, 2\)",
        ),
        (lambda: unpack(torch.zeros(3, 1), 8), "got torch.float32"),
        (lambda: pack_mask(torch.zeros(3)), "a mask is boolean"),
    ],
)
def test_bad_input_is_refused_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
