"""Bit packing, against one big integer a row."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qformats.errors import ConfigError, ShapeError
from qformats.numbers.bitpack import WIDTHS, pack_bits, packed_bytes, unpack_bits


def _big_integer(codes, bits):
    """Bytes of a row: the codes are the digits of one number in base ``2**bits``."""
    number = sum(code << (bits * place) for place, code in enumerate(codes))
    return number.to_bytes(-(-len(codes) * bits // 8), "little")


rows = st.sampled_from(WIDTHS).flatmap(
    lambda bits: st.tuples(
        st.just(bits),
        st.integers(0, 40).flatmap(
            lambda count: st.lists(
                st.lists(st.integers(0, 2**bits - 1), min_size=count, max_size=count), min_size=1, max_size=3
            )
        ),
    )
)


@settings(max_examples=300, deadline=None)
@given(rows)
def test_equals_a_big_integer_and_comes_back(case):
    bits, codes = case
    tensor = torch.tensor(codes, dtype=torch.int64).reshape(len(codes), len(codes[0]))
    before = tensor.clone()
    packed = pack_bits(tensor, bits)
    assert packed.dtype == torch.uint8
    assert [bytes(row.tolist()) for row in packed] == [_big_integer(row, bits) for row in codes]
    assert packed.shape[-1] == packed_bytes(len(codes[0]), bits)
    back = unpack_bits(packed, bits, len(codes[0]))
    assert back.dtype == torch.uint8
    assert torch.equal(back.long(), tensor)
    assert torch.equal(tensor, before)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(WIDTHS), st.binary(max_size=60))
def test_any_bytes_unpack_to_what_the_big_integer_holds(bits, data):
    count = len(data) * 8 // bits
    data = data[: packed_bytes(count, bits)]
    number = int.from_bytes(data, "little")
    expected = [(number >> (bits * place)) & (2**bits - 1) for place in range(count)]
    got = unpack_bits(torch.tensor(list(data), dtype=torch.uint8), bits, count)
    assert got.tolist() == expected


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0), (3, 0, 4), (2, 3, 11), (1, 1), (7,)])
def test_shapes(bits, shape):
    codes = torch.randint(0, 1 << bits, shape, generator=torch.Generator().manual_seed(bits))
    packed = pack_bits(codes, bits)
    assert packed.shape == (*shape[:-1], packed_bytes(shape[-1], bits))
    assert torch.equal(unpack_bits(packed, bits, shape[-1]).long(), codes)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_integer_dtypes_and_strides(dtype):
    codes = torch.arange(48).reshape(6, 8).remainder(7).to(dtype)
    assert torch.equal(pack_bits(codes.t(), 3), pack_bits(codes.t().contiguous(), 3))
    packed = pack_bits(codes, 3)
    assert torch.equal(unpack_bits(packed[:, [0, 1, 2]], 3, 8), codes.to(torch.uint8))


@pytest.mark.parametrize("bits", WIDTHS)
def test_codes_that_do_not_fit_are_refused(bits):
    for wrong in (1 << bits, -1):
        codes = torch.zeros(2, 9, dtype=torch.int64)
        codes[1, 8] = wrong
        with pytest.raises(
            ConfigError, match=rf"codes: found .*{wrong}.*; expected \[0, {(1 << bits) - 1}\]"
        ):
            pack_bits(codes, bits)


@pytest.mark.parametrize("bits", [0, 1, 7, 9, 16, -4])
def test_other_widths_are_refused(bits):
    for refused in (
        lambda: pack_bits(torch.zeros(8, dtype=torch.uint8), bits),
        lambda: unpack_bits(torch.zeros(8, dtype=torch.uint8), bits, 8),
    ):
        with pytest.raises(ConfigError, match=rf"bits: found {bits}; expected one of 2, 3, 4, 5, 6, 8"):
            refused()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_codes_that_are_no_integers_are_refused(dtype):
    with pytest.raises(ConfigError, match="dtype of codes"):
        pack_bits(torch.ones(8).to(dtype), 4)


def test_packed_bytes_are_bytes():
    with pytest.raises(ConfigError, match=r"dtype of packed codes.*int32.*uint8"):
        unpack_bits(torch.zeros(3, dtype=torch.int32), 4, 6)


@pytest.mark.parametrize("count", [5, 7, 0, 100])
def test_a_row_of_another_length_is_refused(count):
    with pytest.raises(ShapeError, match=r"packed.*\(2, 5\).*bytes"):
        unpack_bits(torch.zeros(2, 5, dtype=torch.uint8), 6, count)
