"""``qformats verify``: what is sound passes, and whatever is done to a model is found and named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from cli.command import call
from models import tiny

import qformats
from qformats.errors import CheckpointError, ConfigError, ModelNotFoundError
from qformats.exporting.recorded import Record, record_beside
from qformats.verifying import VerifyReport

SPLIT = {"max-shard-size": "50KB"}
FORMATS = [
    *(
        "gguf:q4_0",
        "gguf:q4_k_m",
        "gguf:tq2_0",
        "gguf:mxfp4",
        "glm:int4",
        "gptq:4bit-32g",
        "gptq:4bit-32g-asym",
    ),
    *("awq:4bit-32g", "compressed-tensors:nvfp4", "fp8", "mlx:4bit-32g", "nf4", "bnb:int8", "modelopt:nvfp4"),
    *("dense:f16", "gptq:3bit-32g"),
]


@pytest.fixture(scope="session")
def llama(tmp_path_factory) -> Path:
    return tiny.build("llama", tmp_path_factory.mktemp("models") / "llama")


def exported(source, target: Path, format: str, **more) -> Path:
    qformats.export(source, target, format=format, **{"quantizer": "rtn", **more})
    return target


def flip(file: Path, offset: int, count: int = 1) -> None:
    with file.open("r+b") as content:
        content.seek(offset)
        old = content.read(count)
        content.seek(offset)
        content.write(bytes(byte ^ 0xFF for byte in old))


def kinds(report: VerifyReport) -> set[str]:
    return {each.kind for each in report.findings}


def without_record(target: Path) -> Path:
    record = record_beside(target)
    assert record is not None
    record.unlink()
    return target


@pytest.mark.parametrize("format", FORMATS)
def test_what_was_exported_is_sound_and_derives_from_its_source(llama, tmp_path, format):
    source = "demo" if format.startswith(("gguf:q4_k", "gguf:tq", "compressed", "fp8", "modelopt")) else llama
    target = exported(source, tmp_path / "out", format)
    report = qformats.verify(target, against=source)
    assert report.findings == ()
    assert report.sound
    assert report.checksums
    derivation = report.derivation
    assert derivation is not None
    assert derivation.identical
    assert (derivation.same_bytes, derivation.within) == (
        len(Record.read(record_beside(target)).content["tensors"]),
        0,
    )
    # Without the record, what can be told is sound too.
    alone = qformats.verify(without_record(target))
    assert alone.findings == ()
    assert alone.record is None
    assert any("no record" in note for note in alone.notes)


@pytest.mark.parametrize("format", ["gguf:q4_0", "gptq:4bit-32g", "awq:4bit-32g", "nf4"])
def test_flipped_bytes_everywhere(llama, tmp_path, format):
    target = exported(llama, tmp_path / "out", format)
    files = [target] if target.is_file() else sorted(target.iterdir())
    for file in files:
        if file.name.endswith("qformats.json"):
            continue
        size = file.stat().st_size
        for offset in {0, size // 3, size // 2, size - 1}:
            flip(file, offset)
            report = qformats.verify(target)
            assert any(each.kind == "checksum" and each.file == file.name for each in report.findings)
            flip(file, offset)
    assert qformats.verify(target).sound


def test_the_damaged_tensor_is_named(llama, tmp_path):
    target = exported(llama, tmp_path / "out.gguf", "gguf:q4_0")
    record = Record.read(record_beside(target))
    for piece in record.pieces["out.gguf"]:
        flip(target, piece.offset + piece.nbytes // 2)
        (found,) = [each for each in qformats.verify(target).findings if each.kind == "checksum"] or [None]
        assert found is not None
        assert found.tensor == record.tensor_name(piece.tensor)
        assert f"bytes {piece.offset:,} to {piece.offset + piece.nbytes:,} have changed" in found.found
        flip(target, piece.offset + piece.nbytes // 2)


@pytest.mark.parametrize("format", ["gguf:q8_0", "glm:int4", "gptq:4bit-32g"])
def test_truncated_files(llama, tmp_path, format):
    target = exported(llama, tmp_path / "out", format)
    file = target / "model.safetensors" if target.is_dir() else target
    size = file.stat().st_size
    for kept in (size - 1, size // 2, 100, 0):
        with file.open("r+b") as content:
            content.truncate(kept)
        report = qformats.verify(target)
        assert "file" in kinds(report)
        assert any(
            f"has {kept:,} bytes; expected the {size:,} bytes" in each.found for each in report.findings
        )
        # And what cannot be opened is said without a record.
    without_record(target)
    try:
        report = qformats.verify(target)
    except ModelNotFoundError:
        # Nothing is left that would tell its kind.
        assert target.is_file()
    else:
        assert kinds(report) == {"structure"}


@pytest.mark.parametrize("format", ["gguf:q8_0", "dense:f16"])
def test_a_missing_shard(llama, tmp_path, format):
    target = exported(
        llama, tmp_path / "out" if "dense" in format else tmp_path / "out.gguf", format, options=SPLIT
    )
    folder = target if target.is_dir() else tmp_path
    shards = sorted(file for file in folder.iterdir() if "-of-" in file.name)
    assert len(shards) > 2
    opened = target if target.is_dir() else shards[0]
    assert qformats.verify(opened).sound
    shards[1].rename(tmp_path / "away")
    report = qformats.verify(opened)
    assert {"file", "structure"} <= kinds(report)
    assert any(each.file == shards[1].name and each.found == "is missing" for each in report.findings)
    without_record(opened)
    assert kinds(qformats.verify(opened)) == {"structure"}


def rewritten(folder: Path, change) -> None:
    """Change the tensors of a folder without a record."""
    from safetensors.numpy import load_file, save_file

    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})


def test_nan_and_infinite_numbers(llama, tmp_path):
    target = without_record(exported(llama, tmp_path / "out", "gptq:4bit-32g"))
    name = "model.layers.1.mlp.up_proj"

    def spoil(tensors) -> None:
        tensors["model.norm.weight"][3] = np.inf
        tensors[f"{name}.scales"][0, 5] = np.nan

    rewritten(target, spoil)
    report = qformats.verify(target)
    assert kinds(report) == {"values", "tensor"}
    told = {each.tensor: each.found for each in report.findings}
    assert "not finite" in told["model.norm.weight"]
    assert "NaN or infinite" in told[f"{name}.weight"]
    gguf = without_record(exported(llama, tmp_path / "out.gguf", "gguf:q4_0"))
    opened = qformats.open(gguf)
    tensor = max(opened.tensors.values(), key=lambda each: each.nbytes if each.packer.quantizes else 0)
    raw = bytearray(gguf.read_bytes())
    block = tensor.read().fields[tensor.packer.spec.fields[0].name].numpy().tobytes()
    at = raw.find(block)
    raw[at : at + 2] = np.float16(np.nan).tobytes()
    gguf.write_bytes(raw)
    (found,) = qformats.verify(gguf).findings
    assert (found.kind, found.tensor) == ("values", tensor.name)


@pytest.mark.parametrize(
    ("format", "version"), [("gptq:4bit-32g", "gptq_v2"), ("gptq:4bit-32g-asym", "gptq")]
)
def test_zero_points_with_the_wrong_label(tmp_path, format, version):
    target = without_record(exported("demo", tmp_path / "out", format.replace("32g", "128g")))
    for name in ("config.json", "quantize_config.json"):
        content = json.loads((target / name).read_text())
        declared = content.get("quantization_config", content)
        assert declared["checkpoint_format"] != version
        declared["checkpoint_format"] = version
        (target / name).write_text(json.dumps(content))
    report = qformats.verify(target)
    assert kinds(report) <= {"tensor", "structure"}
    assert report.findings
    assert all("zero points" in each.found for each in report.findings)


def test_codes_off_the_grid(tmp_path):
    """A float of 8 bits that is NaN stands for no level."""
    target = without_record(exported("demo", tmp_path / "out", "fp8"))
    name = "model.layers.1.mlp.up_proj.weight"
    file = target / "model.safetensors"
    raw = bytearray(file.read_bytes())
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    assert header[name]["dtype"] == "F8_E4M3"
    raw[8 + int.from_bytes(raw[:8], "little") + header[name]["data_offsets"][0] + 5] = 0x7F
    file.write_bytes(raw)
    (found,) = qformats.verify(target).findings
    assert found.kind in ("codes", "values", "tensor")
    assert found.tensor == name


def test_missing_and_unexpected_tensors(llama, tmp_path):
    folder = Path(shutil.copytree(llama, tmp_path / "model"))
    assert qformats.verify(folder).sound
    rewritten(folder, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    (found,) = qformats.verify(folder).findings
    assert found.kind == "structure"
    assert "model.layers.1.mlp.up_proj.weight" in found.found + found.tensor
    shutil.rmtree(folder)
    shutil.copytree(llama, folder)
    rewritten(
        folder, lambda t: t.update({"model.layers.0.mlp.extra_proj.weight": np.zeros((4, 4), np.float32)})
    )
    report = qformats.verify(folder)
    told = [str(each) for each in report.findings] + list(report.notes)
    assert any("extra_proj" in each for each in told)


def test_a_file_of_another_model_among_the_weights(llama, tmp_path):
    target = exported(llama, tmp_path / "out", "dense:f16", options=SPLIT)
    index = json.loads((target / "model.safetensors.index.json").read_text())
    first = sorted(set(index["weight_map"].values()))[0]
    shutil.copy(target / first, target / "stray.safetensors")
    index["weight_map"] = {
        n: "stray.safetensors" if f == first else f for n, f in index["weight_map"].items()
    }
    (target / "model.safetensors.index.json").write_text(json.dumps(index))
    report = qformats.verify(target)
    assert any(
        each.file == "stray.safetensors" and "does not know it" in each.found for each in report.findings
    )


def test_the_tokenizer_against_the_vocabulary(llama, tmp_path):
    folder = Path(shutil.copytree(llama, tmp_path / "model"))
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"].append(
        {
            **{"id": 10**5, "content": "<beyond>", "single_word": False, "lstrip": False, "rstrip": False},
            **{"normalized": False, "special": True},
        }
    )
    (folder / "tokenizer.json").write_text(json.dumps(content))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": [1, 10**6]}))
    report = qformats.verify(folder)
    assert kinds(report) == {"vocabulary"}
    told = " ".join(each.found for each in report.findings)
    assert "eos_token_id is 1000000, but the token embedding has" in told
    assert "without a row in the token embedding" in told
    (folder / "tokenizer.json").write_text("{")
    assert any("tokenizer.json cannot be read" in each.found for each in qformats.verify(folder).findings)


def test_a_calibration_is_as_close_as_recorded(tmp_path):
    small = {"samples": "2", "sequence-length": "32"}
    target = exported("demo", tmp_path / "out", "gptq:4bit-128g", quantizer="gptq", quantizer_options=small)
    report = qformats.verify(target, against="demo")
    assert report.findings == ()
    assert report.derivation is not None
    assert (report.derivation.same_bytes, report.derivation.within) == (11, 28)
    assert report.derivation.largest_error is not None
    # Codes that are further away; the record's checksums are made to match, as somebody who cheats would.
    weights = target / "model.safetensors"
    record = Record.read(target / "qformats.json")
    piece = next(p for p in record.pieces["model.safetensors"] if p.nbytes > 10**5)
    while record.content["tensors"][piece.tensor]["action"] != "quantized":
        later = record.pieces["model.safetensors"]
        piece = later[later.index(piece) + 1]
    flip(weights, piece.offset, min(piece.nbytes, 5000))
    content = json.loads((target / "qformats.json").read_text())
    del content["checksums"]
    (target / "qformats.json").write_text(json.dumps(content))
    report = qformats.verify(target, against="demo")
    assert kinds(report) == {"source"}
    (found,) = report.findings
    assert found.tensor == record.tensor_name(piece.tensor)
    assert "was recorded" in found.found


def test_norms_that_a_quantizer_changes_along_with_the_weights(tmp_path):
    small = {"samples": "4", "sequence-length": "64"}
    target = exported("demo", tmp_path / "out", "awq:4bit-128g", quantizer="awq", quantizer_options=small)
    report = qformats.verify(target, against="demo")
    assert report.findings == ()
    told = json.loads((target / "qformats.json").read_text())["tensors"]
    changed = [each["name"] for each in told if each["action"] == "copied" and each["exact"] == "no"]
    assert changed
    assert all(name.endswith("norm.weight") for name in changed)


def test_what_derives_from_another_source_is_found(llama, tmp_path):
    other = Path(shutil.copytree(llama, tmp_path / "other"))
    rewritten(other, lambda tensors: tensors["model.layers.0.mlp.up_proj.weight"].__setitem__((0, 0), 0.5))
    target = exported(llama, tmp_path / "out.gguf", "gguf:q8_0")
    report = qformats.verify(target, against=other)
    assert {each.tensor for each in report.findings} == {"blk.0.ffn_up.weight"}
    assert kinds(report) == {"source"}
    assert report.derivation is not None
    assert not report.derivation.identical
    assert report.derivation.same_bytes == report.tensors - 1
    report = qformats.verify(target, against="demo")
    assert kinds(report) == {"source"}
    assert report.derivation is None


def test_transcoded_models_derive_exactly(llama, tmp_path):
    first = exported(llama, tmp_path / "int4", "glm:int4")
    second = exported(first, tmp_path / "out.gguf", "gguf:q4_0")
    third = exported(first, tmp_path / "nf4", "nf4")
    for target in (second, third):
        report = qformats.verify(target, against=first)
        assert report.findings == ()
        assert report.derivation is not None
        assert report.derivation.same_bytes == report.tensors


def test_what_cannot_be_judged(llama, tmp_path):
    with pytest.raises(ModelNotFoundError):
        qformats.verify(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"against.*qformats compare"):
        qformats.verify(llama, against="demo")
    target = exported(llama, tmp_path / "out.gguf", "gguf:q8_0")
    (tmp_path / "out.gguf.qformats.json").write_text("{")
    with pytest.raises(CheckpointError, match="is damaged"):
        qformats.verify(target)


def test_a_record_leads_nowhere_else(llama, tmp_path):
    target = exported(llama, tmp_path / "in" / "out", "glm:int4")
    secret = tmp_path / "secret"
    (target / "tokenizer.json").rename(secret)
    (target / "tokenizer.json").symlink_to(secret)
    report = qformats.verify(target)
    assert any("leads out of the folder" in each.found for each in report.findings)


def test_the_command(llama, tmp_path, capsys):
    target = exported(llama, tmp_path / "out.gguf", "gguf:q4_0")
    sound = call(capsys, "verify", target, "--against", llama)
    assert (sound.code, sound.err) == (0, "")
    assert "sound: 1 file (" in sound.out
    assert "have the bytes that the recipe gives again" in sound.out
    flip(target, target.stat().st_size - 1, 1)
    damaged = call(capsys, "verify", target)
    assert damaged.code == 1
    assert "have changed since they were written" in damaged.out
    told = call(capsys, "verify", target, "--json")
    report = json.loads(told.out)
    assert told.code == 1
    assert not report["sound"]
    assert report["findings"][0]["kind"] == "checksum"
    assert call(capsys, "verify", target, "-q").out == "1 finding\n"
    assert call(capsys, "verify", tmp_path / "nowhere").code == 3
    assert call(capsys, "verify", "demo", "--against", "demo").code == 2


@pytest.mark.parametrize("against", [None, "demo"])
def test_a_model_that_is_not_there_is_said_to_be_missing(against, tmp_path):
    with pytest.raises(ModelNotFoundError, match="nothing-here"):
        qformats.verify(tmp_path / "nothing-here", against=against)
