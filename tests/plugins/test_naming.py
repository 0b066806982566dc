"""Short names of formats: found where only one is meant, suggested where several are, declared by the plugins."""

import pytest
import torch

import qformats
from qformats import Family, FieldSpec, FormatSpec, Packer
from qformats.errors import AmbiguousFormatError, ConfigError, UnknownFormatError
from qformats.interfaces.naming import meanings, nearest
from qformats.registry import registry


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("nf4", "bitsandbytes:nf4"),
        ("NF4-DQ", "bitsandbytes:nf4-dq"),
        ("nf4-bs128", "bitsandbytes:nf4-bs128"),
        ("bnb", "bitsandbytes:nf4"),
        ("bnb:int8", "bitsandbytes:int8"),
        ("q4_0", "gguf:q4_0"),
        ("Q5_1", "gguf:q5_1"),
        ("q8", "gguf:q8_0"),
        ("gguf:q8", "gguf:q8_0"),
        ("GGUF", "gguf:q8_0"),
        ("3bit-1024g", "gptq:3bit-1024g"),
        ("autogptq", "gptq:4bit-128g"),
        ("int3", "gptq:3bit-128g"),
    ],
)
def test_a_name_that_one_format_answers_to(name, format):
    assert qformats.packer(name).name == format


def test_tensors_take_short_names():
    weight = torch.randn(8, 64)
    short, full = (qformats.quantize(weight, name) for name in ("nf4", "bitsandbytes:nf4"))
    assert torch.equal(short.codes, full.codes)
    assert qformats.pack(short, "nf4").format == "bitsandbytes:nf4"


def test_reports_hold_the_full_name(tmp_path):
    report = qformats.export("demo", tmp_path / "out", format="NF4", options={})
    assert report.format == "bitsandbytes:nf4"


@pytest.mark.parametrize(
    ("name", "formats"),
    [
        ("int8", {"bitsandbytes:int8", "glm:int8", "gptq:8bit-128g"}),
        ("int4", {"glm:int4", "gptq:4bit-128g"}),
        ("4bit", {"bitsandbytes:nf4", "gptq:4bit-128g", "mlx:4bit-64g"}),
        ("fp16", {"dense:f16", "gguf:f16"}),
    ],
)
def test_a_name_that_several_families_share_is_not_guessed(name, formats):
    with pytest.raises(AmbiguousFormatError) as caught:
        qformats.packer(name)
    assert set(caught.value.formats) == formats
    for format in formats:
        assert format in str(caught.value)


def test_files_decide_between_families():
    assert registry().meant("f16", ".gguf").name == "gguf:f16"


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("q4km", "gguf:q4_k_m"),
        ("Q4-K-M", "gguf:q4_k_m"),
        ("gguf:q5_k_l", "gguf:q5_k_m"),
        ("exl2", "gptq:4bit-128g"),
        ("ggufs:q4_0", "gguf:q4_0"),
        ("bitsandbits:nf4", "bitsandbytes:nf4"),
        ("gtpq", "gptq:4bit-128g"),
    ],
)
def test_what_nobody_has_is_answered_with_what_can_be_written(name, first):
    with pytest.raises(UnknownFormatError) as caught:
        qformats.packer(name)
    error = caught.value
    assert error.nearest[0] == first
    assert 1 <= len(error.nearest) <= 3
    assert all(registry().packer(each).writable for each in error.nearest)
    assert "qformats formats" in str(error)


def test_what_resembles_nothing_gets_the_families():
    with pytest.raises(
        UnknownFormatError,
        match=r"lists all \d+, of the families awq, bitsandbytes, compressed-tensors, dense, eetq, fp8",
    ):
        qformats.packer("zzzz")


def test_read_only_formats_name_the_nearest_in_size():
    for name in ("gguf:iq3_s", "iq2_xxs"):
        with pytest.raises(ConfigError) as caught:
            qformats.quantize(torch.zeros(1, 256), name)
        assert caught.value.nearest
        assert all(registry().packer(each).writable for each in caught.value.nearest)
        assert caught.value.nearest[0] in str(caught.value)


class Bits(Packer):
    def __init__(self, bits):
        fields = (FieldSpec("codes", ("N", f"K * {bits} / 8"), "u8"),)
        self.spec = FormatSpec("third", f"w{bits}", f"{bits} bits", fields, bits=bits)
        self.grid = qformats.AffineGrid(bits, block_size=0)


class Third(Family):
    name = "third"
    packers = (Bits(4), Bits(8))
    other_names = ("tert",)
    aliases = {"nf4": "w4", "eight": "w8"}  # noqa: RUF012
    similar = {"nf3": ("w4",)}  # noqa: RUF012


def test_third_parties_declare_names_like_built_ins():
    families = [*registry().families(), Third()]
    assert [p.name for p in meanings("tert", families)] == ["third:w4"]
    assert [p.name for p in meanings("tert:eight", families)] == ["third:w8"]
    assert {p.name for p in meanings("nf4", families)} == {"bitsandbytes:nf4", "third:w4"}
    assert "third:w4" in nearest("nf3", families)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"aliases": {"Q": "w4"}}, "has the other names 'Q', expected lower case and no ':'"),
        ({"other_names": ("a:b",)}, "has the other names 'a:b'"),
        ({"aliases": {"q": "w5"}}, r"parse\('w5'\) raised UnknownFormatError"),
        ({"similar": {"q": ("w5",)}}, r"parse\('w5'\) raised UnknownFormatError"),
    ],
)
def test_names_that_lead_nowhere_are_refused(change, reason):
    from qformats.errors import PluginLoadError
    from qformats.registry import PluginRecord, _formats

    wrong = type("Wrong", (Third,), {"other_names": (), "aliases": {}, "similar": {}} | change)
    with pytest.raises(PluginLoadError, match=reason):
        _formats(wrong(), PluginRecord("wrong", "wrong", "1", "wrong"))
