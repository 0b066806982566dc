"""Which tensors of other formats K-quants and iq4_xs hold unchanged: by arithmetic on scales, never by names."""

import numpy as np
import pytest
import torch

import qformats
from qformats import QuantizedTensor
from qformats.errors import NotExactError
from qformats.interfaces import Answer
from qformats_gguf.superblocks.layout import IQ4, LAYOUTS

SYMMETRIC = ("q6_k", "q3_k")
ROWS, COLUMNS = 5, 512


def _rng():
    return np.random.default_rng(77)


def _kept(quantized, format):
    """The tensor in another format, packed; fails unless every value is the same."""
    packer = qformats.packer(format)
    held = packer.represent(quantized)
    packer.grid.validate(held)
    packed = packer.pack(held)
    assert torch.equal(packed.dequantize(), quantized.dequantize())
    return packed


def _tensor(codes, scale, zero=0, minimum=None, codebook=None):
    """A tensor with blocks of 16 or 32."""
    codes, scale = torch.from_numpy(codes.astype(np.uint8)), torch.from_numpy(scale.astype(np.float32))
    width = codes.shape[1] // scale.shape[1]
    low = None if minimum is None else torch.from_numpy(minimum.astype(np.float32))
    return QuantizedTensor(codes, scale, (1, width), zero_point=zero, minimum=low, codebook=codebook)


def _halves(shape):
    return _rng().uniform(1e-3, 0.1, shape).astype(np.float16).astype(np.float32)


def _products(kind, signed):
    """Scales of every sub-block as the type has them: a float16 per 256 columns times whole numbers."""
    count = COLUMNS // kind.sub
    wholes = _rng().integers(kind.lowest if signed else 1, kind.highest + 1, (ROWS, count))
    return _halves((ROWS, COLUMNS // 256)).repeat(kind.scales, 1) * wholes


@pytest.mark.parametrize("name", SYMMETRIC)
def test_products_are_found_under_other_scales(name):
    """The same values written with steps that are fractions and multiples of those that the type has."""
    kind = LAYOUTS[name]
    top = 1 << (kind.bits - 1)
    scale = _products(kind, signed=True)
    level = _rng().integers(-top, top, (ROWS, COLUMNS))
    whole = _tensor(level + top, scale, zero=top)
    _kept(whole, f"gguf:{name}")
    # Every second level, under half of it as many codes and twice the scale.
    even = level // 2 * 2
    _kept(_tensor(even // 2 + top, 2 * scale, zero=top), f"gguf:{name}")
    # Few levels under a scale that the type does not have: twice its product, three steps apart.
    few = level.clip(-1, 1)
    _kept(_tensor(few * 3 + 128, scale * 2.0, zero=128), f"gguf:{name}")


def test_scales_that_only_fractions_have_in_common():
    """7/3, 11/2 and so on of a float16: sub-blocks of few levels are divided until one float16 serves all."""
    unit = np.float32(2.0**-9)
    steps = np.array([7, 11, 13, 127, 3, 64, 1, 90, 2, 5, 9, 10, 25, 33, 8, 121]) * unit
    level = _rng().integers(-1, 2, (1, 256))
    codes = level + 8
    for divided in (steps, steps * 3):
        _kept(_tensor(codes, divided[None], zero=8), "gguf:q6_k")


def test_uncommon_scales_are_refused():
    quantized = qformats.packer("gguf:q4_0").encode_reference(
        torch.randn(8, 512, generator=torch.Generator().manual_seed(1))
    )
    for name in ("q6_k", "q4_k", "q5_k"):
        with pytest.raises(NotExactError, match="whole multiples of one float16"):
            qformats.packer(f"gguf:{name}").represent(quantized.unpack())
        answer, reason = qformats.packer(f"gguf:{name}").foresee(quantized.packer, (8, 512))
        assert answer is Answer.DATA
        assert "whole multiples of one float16" in reason
    with pytest.raises(NotExactError, match="but there are only 8"):
        qformats.packer("gguf:q3_k").represent(quantized.unpack())


@pytest.mark.parametrize("name", ["q6_k", "q4_k", "q5_k"])
def test_one_scale_per_row_is_kept_always(name):
    """As GLM's int4 has it."""
    source = qformats.packer("glm:int4")
    packed = source.encode_reference(torch.randn(8, 512, generator=torch.Generator().manual_seed(2)))
    _kept(packed.unpack(), f"gguf:{name}")
    answer, _ = qformats.packer(f"gguf:{name}").foresee(source, (8, 512))
    assert answer is (Answer.ALWAYS if name == "q6_k" else Answer.DATA)


@pytest.mark.parametrize("name", ["q4_k", "q5_k"])
def test_minima_are_common_multiples_too(name):
    """q4_1 whose scales and minima are multiples of a float16; of both signs, and with codes left over."""
    rng = _rng()
    codes = rng.integers(0, 16, (ROWS, COLUMNS))
    shape = (ROWS, COLUMNS // 32)
    unit = np.float32(3 * 2.0**-10)
    scale, low = unit * rng.integers(1, 64, shape), -unit * rng.integers(0, 64, shape) * 5
    packed = _kept(_tensor(codes, scale, minimum=low), f"gguf:{name}")
    assert packed.format == f"gguf:{name}"
    # Around a zero point: minima are 7 or 8 steps below, of at most 63.
    small = unit * rng.integers(1, 8, shape)
    _kept(_tensor(codes, small * rng.choice([-1, 1], shape), zero=8), f"gguf:{name}")
    # Only levels 4 to 9: the minimum may be lower by whole steps.
    _kept(_tensor(codes.clip(4, 9), small, zero=8), f"gguf:{name}")
    _kept(_tensor(codes, scale, zero=8), f"gguf:{name}")
    # Minima of 8 steps and of 7, of up to 63 units each, have no common measure that small; q5_k has codes to spare.
    signed = _tensor(codes, scale * rng.choice([-1, 1], shape), zero=8)
    if name == "q5_k":
        _kept(signed, "gguf:q5_k")
        return
    with pytest.raises(NotExactError, match="whole multiples of one float16"):
        qformats.packer("gguf:q4_k").represent(signed)
    constant = codes * (rng.random(shape).repeat(32, 1) < 0.5)
    _kept(_tensor(constant, scale, minimum=low), f"gguf:{name}")


def test_tables_of_the_same_levels():
    """iq4_nl goes into iq4_xs where its scales are multiples of one float16; back where they are float16 numbers."""
    rng = _rng()
    table = torch.tensor(IQ4, dtype=torch.float32)
    codes = rng.integers(0, 16, (ROWS, COLUMNS))
    scale = np.float32(5 * 2.0**-12) * rng.integers(-32, 32, (ROWS, COLUMNS // 32))
    packed = _kept(_tensor(codes, scale, codebook=table), "gguf:iq4_xs")
    _kept(packed.unpack(), "gguf:iq4_nl")
    odd = _halves((ROWS, COLUMNS // 32))
    with pytest.raises(NotExactError, match="whole multiples of one float16"):
        qformats.packer("gguf:iq4_xs").represent(_tensor(codes, odd, codebook=table))


@pytest.mark.parametrize(("source", "target"), [("q4_k", "q5_k"), ("q4_k", "q4_k"), ("q6_k", "q6_k")])
def test_stored_scales_go_along(source, target):
    """q5_k takes q4_k's scales as they are stored; the same format gives the same bytes."""
    weight = torch.randn(6, 512, generator=torch.Generator().manual_seed(3))
    before = qformats.packer(f"gguf:{source}").encode_reference(weight)
    after = _kept(before.unpack(), f"gguf:{target}")
    if source == target:
        assert torch.equal(after.fields["blocks"], before.fields["blocks"])
    else:
        # d, dmin and the twelve bytes of six-bit numbers.
        first = [each.fields["blocks"].view(12, -1)[:, :16] for each in (before, after)]
        assert torch.equal(*first)


def test_files_between_types(tmp_path):
    """An export says which tensors kept their values, and copies what has the type already."""
    target, again, wider = (tmp_path / name for name in ("a.gguf", "b.gguf", "c.gguf"))
    qformats.export("demo", target, format="gguf:q4_k", pure=True)
    report = qformats.export(target, again, format="gguf:q4_k", pure=True)
    assert {tensor.action for tensor in report.tensors} == {"copied"}
    assert again.read_bytes() == target.read_bytes()
    report = qformats.export(target, wider, format="gguf:q5_k", pure=True, require_exact=True)
    moved = [tensor for tensor in report.tensors if tensor.action != "copied"]
    assert len(moved) == 30
    assert all(tensor.exact and tensor.action == "transcoded" for tensor in moved)
