"""Packers that contradict themselves are caught while they write, and broken code of plugins is told by name."""

import re

import pytest
import torch

import qformats
from qformats import (
    AffineGrid,
    Family,
    FieldSpec,
    FormatSpec,
    PackedTensor,
    Packer,
    QuantizedTensor,
    Quantizer,
)
from qformats.errors import ConfigError, PluginError
from qformats.registry import registry

FIELDS = (FieldSpec("weight", ("N", "K"), "u8"), FieldSpec("scale", ("N", "K / 32"), "f16"))
FIRST = r"tensor 'model\.layers\.0\.[a-z_.]+weight'"


class Honest(Packer):
    """A byte per code."""

    spec = FormatSpec("odd", "x", "", FIELDS, bits=8, block_size=32)
    grid = AffineGrid(8, 32)

    def pack(self, quantized):
        fields = {"weight": quantized.codes, "scale": quantized.scale.half()}
        return PackedTensor(self, quantized.shape, fields)

    def unpack(self, packed):
        return QuantizedTensor(packed.fields["weight"], packed.fields["scale"], (1, 32), zero_point=128)


class FlipsColumns(Honest):
    def unpack(self, packed):
        codes = packed.fields["weight"].flip(1)
        return QuantizedTensor(codes, packed.fields["scale"], (1, 32), zero_point=128)


class DecodesOtherwise(Honest):
    def dequantize(self, packed):
        return self.unpack(packed).dequantize() * 2


class EncodesOtherwise(Honest):
    def encode_reference(self, dense):
        return super().encode_reference(dense.flip(1))


class Whole(FlipsColumns):
    def row_step(self, shape):
        return 0


class Breaks(Honest):
    def pack(self, quantized):
        return {}["no such key"]


class BreaksReading(Honest):
    def unpack(self, packed):
        raise ZeroDivisionError


@pytest.fixture
def install(monkeypatch):
    """Make the family ``odd`` of one packer known in this process."""

    def make(packer):
        class Odd(Family):
            name = "odd"
            packers = (packer(),)

        family = Odd()
        monkeypatch.setitem(registry()._families, "odd", [family])
        monkeypatch.setitem(registry()._formats, "odd:x", (family, registry().plugins[0]))

    return make


def test_an_honest_packer_writes(install, tmp_path):
    install(Honest)
    qformats.export("demo", tmp_path / "out", format="odd")
    assert qformats.open(tmp_path / "out").read("lm_head.weight").shape == (2048, 256)


@pytest.mark.parametrize(
    ("packer", "told"),
    [
        (FlipsColumns, rf"odd:x: {FIRST} packed and unpacked again: codes: found \d+ of \d+ that differ"),
        (Whole, rf"odd:x: {FIRST} packed and unpacked again: codes: found \d+ of \d+ that differ"),
        (DecodesOtherwise, rf"odd:x: {FIRST} decoded: values: found \d+ of \d+ that differ"),
        (EncodesOtherwise, rf"odd:x: {FIRST} unpacked: codes: found \d+ of \d+ that differ"),
    ],
)
def test_contradictions_are_refused(install, tmp_path, packer, told):
    install(packer)
    with pytest.raises(ConfigError, match=rf"{told}.*report it to its authors"):
        qformats.export("demo", tmp_path / "out", format="odd")
    assert list(tmp_path.iterdir()) == []


def test_an_exception_of_a_packer_names_plugin_format_and_tensor(install, tmp_path):
    install(Breaks)
    with pytest.raises(PluginError) as caught:
        qformats.export("demo", tmp_path / "out", format="odd")
    told = rf"plugin \w+: Breaks\.pack raised KeyError: 'no such key' \(format odd:x, {FIRST}\)\. "
    told += "Report it to the plugin's authors"
    assert re.match(told, str(caught.value))
    assert isinstance(caught.value.__cause__, KeyError)
    assert list(tmp_path.iterdir()) == []


def test_an_exception_while_reading_names_them_too(install, tmp_path):
    install(Honest)
    qformats.export("demo", tmp_path / "out", format="odd")
    install(BreaksReading)
    with pytest.raises(PluginError, match=r"BreaksReading\.unpack raised ZeroDivisionError \(format odd:x"):
        qformats.export(tmp_path / "out", tmp_path / "again", format="gguf:q4_0")


def test_round_trips_on_tensors_tell_it_as_well(install):
    install(Breaks)
    quantized = qformats.quantize(torch.ones(2, 64), "odd")
    with pytest.raises(PluginError, match=r"Breaks\.pack raised KeyError: 'no such key' \(format odd:x\)"):
        qformats.pack(quantized, "odd")


def test_a_quantizer_is_told_its_options(monkeypatch, tmp_path):
    seen = []

    class Tells(Quantizer):
        name = "tells"
        options = (qformats.interfaces.Option("share", "how much"),)

        def quantize(self, weight, packer, importance=None):
            seen.append(dict(self.given))
            return packer.grid.quantize(weight)

    monkeypatch.setitem(registry()._quantizers, "tells", (Tells, registry().plugins[0]))
    qformats.quantize(torch.ones(2, 64), "gguf:q4_0", quantizer="tells", quantizer_options={"share": "3"})
    options = {"share": "4"}
    qformats.export("demo", tmp_path / "o.gguf", format="gguf", quantizer="tells", quantizer_options=options)
    assert seen[0] == {"share": "3"}
    assert seen[1:]
    assert all(given == {"share": "4"} for given in seen[1:])
    with pytest.raises(
        ConfigError, match="option of the quantizer tells: found 'shre'; expected one of share"
    ):
        qformats.quantize(torch.ones(2, 64), "gguf:q4_0", quantizer="tells", quantizer_options={"shre": "1"})


def test_a_quantizer_that_needs_a_model_is_refused_for_a_tensor():
    with pytest.raises(
        ConfigError, match=r"found gptq, which needs a whole model; expected rtn.*qformats\.export"
    ):
        qformats.quantize(torch.ones(2, 64), "gguf:q4_0", quantizer="gptq")
