"""Modules of a folder as other programs write them, and as nobody should."""

import json

import pytest
import torch

import qformats
from qformats.errors import ConfigError
from qformats.interfaces.family import ModuleFields
from qformats.numbers.dtypes import dtype_name
from qformats_bitsandbytes.family import BitsAndBytes
from qformats_bitsandbytes.quant_state import KEY

NF4, FP4 = KEY + "nf4", KEY + "fp4"


def _fields(variant="nf4", shape=(6, 100)):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return dict(qformats.packer(f"bitsandbytes:{variant}").encode_reference(weight).fields)


def _locate(fields, declared="nf4"):
    def read(name):
        return fields[name].contiguous().flatten().view(torch.uint8).numpy().tobytes()

    stored = {name: (tuple(field.shape), dtype_name(field.dtype)) for name, field in fields.items()}
    packer = qformats.packer(f"bitsandbytes:{declared}")
    return BitsAndBytes().locate(packer, ModuleFields("m", stored, read))


def _state(fields, key=NF4, **changes):
    content = json.loads(bytes(fields[key].numpy())) | changes
    content = {name: value for name, value in content.items() if value != "gone"}
    return {**fields, key: _text(json.dumps(content))}


def _without(fields, name):
    return {key: value for key, value in fields.items() if key != name}


def _text(text):
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


@pytest.mark.parametrize("declared", ["nf4", "int8", "fp4-dq"])
@pytest.mark.parametrize(
    "variant", ["nf4", "fp4", "int8", "nf4-dq", "fp4-dq-bs128", "nf4-bs32-bf16", "fp4-f32"]
)
def test_each_module_tells_its_own_format(variant, declared):
    fields = _fields(variant, (6, 256))
    packer, shape = _locate(fields, declared)
    assert (packer.name, shape) == (f"bitsandbytes:{variant}", (6, 256))
    taken = packer.from_stored(fields, shape)
    for name, field in fields.items():
        assert bytes(taken.fields[name].flatten().view(torch.uint8)) == bytes(
            field.flatten().view(torch.uint8)
        )


def test_plain_modules():
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.int64):
        assert _locate({"weight": torch.zeros(4, 4, dtype=dtype)}) is None


def test_descriptions_of_other_writers():
    """Any order, any spaces, any length; inside qformats it always has the same one."""
    fields = _fields()
    canonical = bytes(fields[NF4].numpy())
    content = json.loads(canonical)
    for text in (
        json.dumps(content),
        json.dumps(dict(reversed(content.items())), indent=3),
        json.dumps(content, separators=(",", ":")),
        " " * 300 + json.dumps(content),
    ):
        changed = {**fields, NF4: _text(text)}
        packer, shape = _locate(changed)
        assert bytes(packer.from_stored(changed, shape).fields[NF4].numpy()) == canonical


def test_int8_without_the_mark_of_its_layout():
    fields = _fields("int8")
    del fields["weight_format"]
    packer, shape = _locate(fields)
    assert packer.from_stored(fields, shape).fields["weight_format"].shape == ()


HOSTILE = {
    "no quant_state": (lambda f: _without(f, NF4), "quant_state"),
    "no absmax": (lambda f: _without(f, "weight.absmax"), "also weight.absmax"),
    "no quant_map": (
        lambda f: _without(f, "weight.quant_map"),
        "also weight.quant_map",
    ),
    "no weight": (lambda f: _without(f, "weight"), "also weight"),
    "codes alone": (lambda f: {"weight": f["weight"]}, "found only u8 codes"),
    "int8 codes alone": (lambda f: {"weight": f["weight"].view(torch.int8)}, "SCB"),
    "two types": (lambda f: {**f, FP4: f[NF4]}, "nf4 and fp4"),
    "another type's name": (lambda f: {FP4 if k == NF4 else k: v for k, v in f.items()}, "quant_type"),
    "absmax too short": (
        lambda f: {**f, "weight.absmax": f["weight.absmax"][:-1]},
        r"absmax.*\(9,\).*\(10,\)",
    ),
    "absmax of another dtype": (lambda f: {**f, "weight.absmax": f["weight.absmax"].half()}, "f16"),
    "absmax in 8 bits": (lambda f: {**f, "weight.absmax": f["weight.absmax"].to(torch.uint8)}, "u8"),
    "extra key": (lambda f: _state(f, surprise=1), "surprise"),
    "missing key": (lambda f: _state(f, shape="gone"), "blocksize.*shape"),
    "block size in words": (lambda f: _state(f, blocksize="64"), "blocksize.*'64'"),
    "true as block size": (lambda f: _state(f, blocksize=True), "blocksize"),
    "block size 16": (lambda f: _state(f, blocksize=16), "blocksize.*16.*one of"),
    "block size of others": (lambda f: _state(f, blocksize=32), r"absmax.*\(10,\).*\(19,\)"),
    "huge shape": (lambda f: _state(f, shape=[1 << 30, 1 << 30]), "weight of m"),
    "huge number": (lambda f: _state(f, shape=[10**4000, 1]), "weight of m|JSON"),
    "negative shape": (lambda f: _state(f, shape=[-6, -100]), "shape"),
    "shape with a fraction": (lambda f: _state(f, shape=[6.0, 100.0]), "shape"),
    "three dimensions": (lambda f: _state(f, shape=[6, 10, 10]), "shape"),
    "no shape": (lambda f: _state(f, shape=None), "shape"),
    "other shape": (lambda f: _state(f, shape=[6, 102]), r"weight of m.*\(300, 1\).*\(306, 1\)"),
    "unknown dtype": (lambda f: _state(f, dtype="float8"), "dtype.*float8"),
    "list as dtype": (lambda f: _state(f, dtype=["float32"]), "dtype"),
    "offset without scales": (
        lambda f: _state(f, nested_blocksize=256, nested_dtype="float32", nested_offset=0.5),
        "nested",
    ),
    "no JSON": (lambda f: {**f, NF4: _text("{'a'")}, "JSON"),
    "no text": (lambda f: {**f, NF4: torch.full((80,), 255, dtype=torch.uint8)}, "JSON"),
    "a list": (lambda f: {**f, NF4: _text("[1]")}, "object"),
    "deep": (lambda f: {**f, NF4: _text("[" * 60000)}, "JSON"),
    "nothing": (lambda f: {**f, NF4: torch.zeros(0, dtype=torch.uint8)}, "1 to"),
    "too much": (lambda f: {**f, NF4: torch.zeros(1 << 20, dtype=torch.uint8)}, "1 to"),
    "a scalar": (lambda f: {**f, NF4: torch.zeros((), dtype=torch.uint8)}, "1 to"),
    "floats": (lambda f: {**f, NF4: torch.zeros(9)}, "1 to"),
    "odd number of codes": (lambda f: {**f, "weight": f["weight"][:-1]}, r"\(299, 1\)"),
    "flat codes": (lambda f: {**f, "weight": f["weight"].flatten()}, r"\(300,\)"),
    "integers of 64 bits": (lambda f: {**f, "weight": f["weight"].long()}, "i64"),
    "short table": (lambda f: {**f, "weight.quant_map": f["weight.quant_map"][:8]}, "quant_map"),
    "parts of int8": (lambda f: {**f, "SCB": torch.ones(6)}, "none besides|SCB"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_modules(case):
    change, message = HOSTILE[case]
    with pytest.raises(ConfigError, match=message):
        _locate(change(_fields()))


NESTED = {
    "no nested_absmax": (
        lambda f: _without(f, "weight.nested_absmax"),
        "nested_absmax",
    ),
    "no nested_quant_map": (
        lambda f: _without(f, "weight.nested_quant_map"),
        "nested_quant_map",
    ),
    "too few": (lambda f: {**f, "weight.nested_absmax": torch.zeros(0)}, "nested_absmax"),
    "plain scales": (lambda f: {**f, "weight.absmax": f["weight.absmax"].float()}, "absmax"),
    "other block": (lambda f: _state(f, nested_blocksize=128), "nested_blocksize"),
    "other dtype": (lambda f: _state(f, nested_dtype="float16"), "nested_dtype"),
    "infinite offset": (lambda f: _state(f, nested_offset=float("inf")), "nested_offset"),
    "huge offset": (lambda f: _state(f, nested_offset=1e39), "nested_offset"),
    "huge whole offset": (lambda f: _state(f, nested_offset=10**400), "nested_offset"),
    "offset in words": (lambda f: _state(f, nested_offset="0.5"), "nested_offset"),
    "no offset": (lambda f: _state(f, nested_offset="gone"), "nested_offset"),
    "nothing nested told": (
        lambda f: _state(f, nested_offset="gone", nested_dtype="gone", nested_blocksize="gone"),
        "nested_offset",
    ),
}


@pytest.mark.parametrize("case", NESTED)
def test_hostile_double_quantization(case):
    change, message = NESTED[case]
    with pytest.raises(ConfigError, match=message):
        _locate(change(_fields("nf4-dq")))


INT8 = {
    "SCB in columns": (lambda f: {**f, "SCB": torch.ones(100)}, r"SCB.*\(100,\).*\(6,\)"),
    "SCB as a matrix": (lambda f: {**f, "SCB": torch.ones(6, 1)}, "SCB"),
    "SCB in halves": (lambda f: {**f, "SCB": torch.ones(6).half()}, "SCB"),
    "no SCB": (lambda f: _without(f, "SCB"), "SCB"),
    "no weight": (lambda f: _without(f, "weight"), "weight"),
    "plain weight": (lambda f: {**f, "weight": f["weight"].float()}, "f32"),
    "flat weight": (lambda f: {**f, "weight": f["weight"].flatten()}, r"\(600,\)"),
    "columns first": (
        lambda f: {**f, "weight_format": torch.ones((), dtype=torch.uint8)},
        "weight_format.*1",
    ),
    "format as a list": (
        lambda f: {**f, "weight_format": torch.zeros(1, dtype=torch.uint8)},
        "weight_format",
    ),
    "parts of nf4": (lambda f: {**f, "weight.absmax": torch.ones(6)}, "absmax"),
}


@pytest.mark.parametrize("case", INT8)
def test_hostile_int8(case):
    change, message = INT8[case]
    with pytest.raises(ConfigError, match=message):
        _locate(change(_fields("int8")))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("variant", "name"),
    [
        ("nf4", "weight.absmax"),
        ("nf4-dq", "weight.nested_absmax"),
        ("nf4-dq", "weight.nested_quant_map"),
        ("int8", "SCB"),
    ],
)
def test_scales_that_are_not_finite(variant, name, bad):
    fields = _fields(variant)
    fields[name] = fields[name].clone()
    fields[name][0] = bad
    packer, shape = _locate(fields)
    with pytest.raises(ConfigError, match=rf"{name}.*1 values that are NaN or infinite"):
        packer.from_stored(fields, shape)


def test_a_table_that_readers_would_not_use():
    fields = _fields()
    packer, shape = _locate(fields)
    with pytest.raises(ConfigError, match=r"quant_map.*table of nf4"):
        packer.from_stored({**fields, "weight.quant_map": fields["weight.quant_map"] * 2}, shape)


def test_the_table_of_scales_is_the_file_s_own():
    """It is not the same on every machine, and bitsandbytes decodes with the one in the file."""
    fields = _fields("nf4-dq", (64, 64))
    fields["weight.nested_quant_map"] = torch.nextafter(fields["weight.nested_quant_map"], torch.ones(256))
    packer, shape = _locate(fields)
    packed = packer.from_stored(fields, shape)
    assert not torch.equal(
        packed.dequantize(), packer.dequantize(packer.from_stored(_fields("nf4-dq", (64, 64)), shape))
    )
    again = packer.pack(packer.unpack(packed))
    assert torch.equal(again.fields["weight.nested_quant_map"], fields["weight.nested_quant_map"])
    assert torch.equal(again.dequantize(), packed.dequantize())
