"""Embedding tables in 8 and 4 bits: torch's own packing, byte for byte, and its pooled sums."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.quantization.embeddings import pack_rows, pooled_sum, row_bytes, unpack_rows

PREPACK = {
    8: torch.ops.quantized.embedding_bag_byte_prepack,
    4: torch.ops.quantized.embedding_bag_4bit_prepack,
}
UNPACK = {
    8: torch.ops.quantized.embedding_bag_byte_unpack,
    4: torch.ops.quantized.embedding_bag_4bit_unpack,
}
POOL = {
    8: torch.ops.quantized.embedding_bag_byte_rowwise_offsets,
    4: torch.ops.quantized.embedding_bag_4bit_rowwise_offsets,
}


def tables() -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    normal = torch.randn(50, 64, generator=random)
    return {
        "normal": normal,
        "uniform": torch.rand(7, 6, generator=random) * 1e-3,
        "heavy tails": normal**5,
        "rows of one value": torch.arange(-3.0, 4.0)[:, None].repeat(1, 8),
        "zeros": torch.zeros(2, 4),
        "a tiny spread": 1 + 1e-7 * torch.rand(5, 8, generator=random),
    }


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", tables())
def test_packed_as_torch_packs(name, bits):
    table = tables()[name]
    packed = pack_rows(table, bits=bits)
    assert torch.equal(packed, PREPACK[bits](table))
    # torch multiplies and adds with one rounding, we with two
    rounding = 1e-6 * float(table.abs().max()) + 1e-12
    torch.testing.assert_close(unpack_rows(packed, bits=bits), UNPACK[bits](packed), rtol=0, atol=rounding)


def test_a_row_takes_these_bytes():
    assert [row_bytes(64, bits) for bits in (32, 8, 4)] == [256, 72, 36]
    for bits in (8, 4):
        assert pack_rows(torch.randn(3, 64), bits=bits).shape == (3, row_bytes(64, bits))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(1e-3, 1e3), st.floats(-100, 100))
def test_error_is_at_most_half_a_step(seed, spread, shift):
    table = spread * torch.randn(4, 32, generator=torch.Generator().manual_seed(seed)) + shift
    low, high = table.aminmax(dim=1, keepdim=True)
    rounding = 1e-6 * table.abs().amax(1, keepdim=True)
    error = (unpack_rows(pack_rows(table)) - table).abs()
    assert (error <= (high - low) / 510 * (1 + 1e-4) + rounding).all()
    assert (error > (high - low) / 2000).any(), "8 bits do lose something"


@pytest.mark.parametrize("bits", [8, 4])
def test_pooled_sum_is_torchs(bits):
    random = torch.Generator().manual_seed(1)
    packed = pack_rows(torch.randn(100, 32, generator=random), bits=bits)
    indices = torch.randint(100, (60,), generator=random)
    offsets = torch.tensor([0, 10, 10, 33, 60])  # the second bag is empty; torch wants the end too
    theirs = POOL[bits](packed, indices, offsets, False, 0, False, None, None, True)
    torch.testing.assert_close(pooled_sum(packed, indices, offsets[:-1], bits=bits), theirs)
    assert not torch.equal(theirs[2], theirs[3])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pack_rows(torch.randn(2, 4), bits=3), "bits must be 8 or 4"),
        (lambda: pack_rows(torch.randn(2, 5), bits=4), "even"),
        (lambda: pack_rows(torch.full((2, 4), float("nan"))), "finite"),
        (lambda: pack_rows(torch.randn(0, 4)), "float32 table"),
        (lambda: pack_rows(torch.randn(2, 4).double()), "float32 table"),
        (lambda: unpack_rows(torch.randn(2, 12)), "uint8"),
        (lambda: row_bytes(64, 16), "bits must be 8 or 4"),
        (lambda: pooled_sum(pack_rows(torch.randn(2, 4)), torch.tensor([2]), torch.tensor([0])), "indices"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
