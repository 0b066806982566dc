"""Round-to-nearest, and what the framework asks of any quantizer."""

import math

import numpy as np
import pytest
import torch

import qformats
from qformats.builtin.rtn import RoundToNearest
from qformats.errors import ConfigError, NonFiniteError, UnknownFormatError
from qformats.interfaces.packer import PackedTensor, Packer
from qformats.interfaces.quantizer import Quantizer
from qformats.interfaces.spec import FieldSpec, FormatSpec
from qformats.numbers.affine import AffineGrid
from qformats.numbers.quantized import QuantizedTensor
from qformats.registry import registry


class Plain(Packer):
    """Codes as bytes: the smallest packer there is."""

    spec = FormatSpec(
        "plain", "x", "", (FieldSpec("codes", ("N", "K"), "u8"), FieldSpec("scale", ("N", "K / 16"), "f16"))
    )
    grid = AffineGrid(4, 16)

    def pack(self, quantized):
        return PackedTensor(
            self, quantized.shape, {"codes": quantized.codes, "scale": quantized.scale.half()}
        )

    def unpack(self, packed):
        return QuantizedTensor(packed.fields["codes"], packed.fields["scale"], (1, 16), zero_point=8)


class Stubborn(Quantizer):
    """Gives whatever it was made with."""

    name = "stubborn"

    def __init__(self, quantized):
        self.quantized = quantized

    def quantize(self, weight, packer, importance=None):
        return self.quantized


@pytest.fixture
def weight():
    return torch.randn(8, 32, generator=torch.Generator().manual_seed(12))


def test_round_to_nearest_is_the_format_s_reference_rule(weight):
    packer = Plain()
    quantized = RoundToNearest().quantize(weight, packer)
    codes, params = packer.grid.reference(weight)
    assert torch.equal(quantized.codes, codes)
    assert torch.equal(quantized.scale, params.scale)
    packed = RoundToNearest().encode(weight, packer)
    assert torch.equal(packer.dequantize(packed), quantized.dequantize())


def test_importance_changes_the_fit_for_the_better(weight):
    packer = Plain()
    importance = torch.linspace(0, 1, 32).pow(8)
    errors = [
        (importance * (q.dequantize() - weight).square()).sum()
        for q in (
            RoundToNearest().quantize(weight, packer, importance),
            RoundToNearest().quantize(weight, packer),
        )
    ]
    assert errors[0] < errors[1] * 0.99


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_widened(weight, dtype):
    packed = RoundToNearest().encode(weight.to(dtype), Plain())
    again = RoundToNearest().encode(weight.to(dtype).float(), Plain())
    assert torch.equal(packed.fields["codes"], again.fields["codes"])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_stops_every_quantizer(weight, bad):
    good = RoundToNearest().quantize(weight, Plain())
    weight[3, 4] = bad
    for quantizer in (RoundToNearest(), Stubborn(good)):
        with pytest.raises(
            NonFiniteError, match=f"1 of 256 values are not finite; the first is {bad} at index 100"
        ):
            quantizer.encode(weight, Plain())


def test_weights_beyond_the_stored_scale_are_not_written(weight):
    weight[2, 20] = 1e6
    for refused in (
        lambda: RoundToNearest().encode(weight, Plain()),
        lambda: RoundToNearest().quantize(weight, Plain()),
        lambda: RoundToNearest().quantize(weight, Plain(), torch.ones(32)),
    ):
        with pytest.raises(
            NonFiniteError, match=r"1 of 16 blocks need a scale beyond f16.*1e\+06 at index 84"
        ):
            refused()


def test_codes_of_a_third_party_s_quantizer_are_checked(weight):
    good = RoundToNearest().quantize(weight, Plain())
    Stubborn(good).encode(weight, Plain())
    for wrong in (
        QuantizedTensor(good.codes + 3, good.scale, (1, 16), zero_point=8),
        QuantizedTensor(good.codes, good.scale, (1, 16), zero_point=7),
        QuantizedTensor(good.codes, good.scale + 1e-6, (1, 16), zero_point=8),
    ):
        with pytest.raises(ConfigError, match=r"codes|zero_point|scale"):
            Stubborn(wrong).encode(weight, Plain())


def test_formats_without_a_grid_are_refused(weight):
    with pytest.raises(ConfigError, match=r"dense:f16.*a quantized format"):
        RoundToNearest().quantize(weight, qformats.packer("dense:f16"))


def test_unknown_quantizers_are_refused_by_name(weight):
    quantizing = [p.name for p in registry().formats() if p.spec.sqnr_floor_db and not p.veto(weight.shape)]
    with pytest.raises(
        UnknownFormatError, match=r"no quantizer 'rtnn'. Did you mean 'rtn'\? Installed: .*rtn"
    ):
        qformats.quantize(weight, quantizing[0], quantizer="rtnn")


def test_a_parameter_is_quantized_and_nonsense_is_named():
    layer = torch.nn.Linear(64, 8)
    assert qformats.quantize(layer.weight, "gguf:q4_0").shape == (8, 64)
    for call, value in (
        (lambda v: qformats.quantize(v, "gguf:q4_0"), np.zeros((8, 64), np.float32)),
        (lambda v: qformats.quantize(v, "gguf:q4_0"), torch.zeros(8, 64, dtype=torch.int32)),
        (lambda v: qformats.pack(v, "gguf:q4_0"), torch.zeros(8, 64)),
        (qformats.unpack, torch.zeros(8, 64)),
        (qformats.dequantize, torch.zeros(8, 64)),
    ):
        with pytest.raises(
            ConfigError, match=r"found .*(float64|float32|int32|Tensor|ndarray)'?; expected a"
        ):
            call(value)
