"""GGUF files whose architecture, or one of whose types, is not known: what needs neither works all the same."""

import json
from struct import pack_into

import gguf
import numpy as np
import pytest
import torch
from cli.command import call

import qformats
from qformats.errors import CheckpointError, ConfigError, UnsupportedModelError

Q8_0 = gguf.GGMLQuantizationType.Q8_0
TOKENS = [bytes([value]).decode("latin-1") for value in range(33, 127)] + ["Ġ", "th", "the", "<|end|>"]


def write(path, architecture="starfish", *, tensors=True, seed=0, own=None):
    """A file as gguf-py writes it."""
    generator = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(1)
    writer.add_context_length(128)
    writer.add_embedding_length(64)
    writer.add_head_count(4)
    writer.add_array("starfish.arms", [5, 6, 7])
    writer.add_float32("starfish.wave_factor", 0.25)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([1] * (len(TOKENS) - 1) + [3])
    writer.add_token_merges(["t h", "th e"])
    writer.add_eos_token_id(len(TOKENS) - 1)
    if tensors:
        plain = {"token_embd.weight": (len(TOKENS), 64), "blk.0.attn_norm.weight": (64,)}
        for name, shape in plain.items():
            writer.add_tensor(name, generator.standard_normal(shape).astype(np.float32))
        for name, shape in {"blk.0.wave_proj.weight": (96, 64), "blk.0.arm_proj.weight": (64, 96)}.items():
            weight = generator.standard_normal(shape).astype(np.float32)
            writer.add_tensor(name, gguf.quants.quantize(weight, Q8_0), raw_dtype=Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def with_type(path, tensor, number):
    """Give a tensor of a file another type number."""
    content = bytearray(path.read_bytes())
    at = content.index(tensor.encode()) + len(tensor)
    dimensions = int.from_bytes(content[at : at + 4], "little")
    pack_into("<I", content, at + 4 + 8 * dimensions, number)
    path.write_bytes(content)
    return path


@pytest.fixture
def odd(tmp_path):
    return write(tmp_path / "odd.gguf")


def _as_another(path, target, architecture):
    """The same tensors and metadata under an architecture that is not known, as gguf-py writes them."""
    read = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(target, architecture)
    for key, field in read.fields.items():
        if key.startswith("llama."):
            writer.add_key_value(key.replace("llama", architecture), field.contents(), field.types[0])
    for tensor in read.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def test_weights_are_compared_with_those_of_a_known_architecture(tmp_path):
    """By GGUF names and in GGUF's order of rows, so that the permuted queries and keys are found to be the same."""
    known = tmp_path / "known.gguf"
    rounded = tmp_path / "rounded.gguf"
    qformats.export("demo", known, format="gguf:q8_0")
    qformats.export("demo", rounded, format="gguf:q4_0", pure=True)
    unknown = _as_another(known, tmp_path / "unknown.gguf", "starfish")
    tensors = len(gguf.GGUFReader(known).tensors)
    for base, other in ((known, unknown), (unknown, known)):
        (found,) = qformats.compare(base, other).models
        assert found.weights.total.relative_rmse == 0
        assert len(found.weights.by_tensor) == tensors
    same, different = qformats.compare(unknown, known, rounded).models
    assert same.weights.total.relative_rmse == 0
    (expected,) = qformats.compare(known, rounded).models
    assert different.weights.total.relative_rmse == pytest.approx(
        expected.weights.total.relative_rmse, rel=1e-6
    )
    (tried,) = qformats.compare(unknown, try_="gguf:q4_0", pure=True).models
    # Rounded twice, here.
    assert tried.weights.total.relative_rmse == pytest.approx(expected.weights.total.relative_rmse, rel=0.01)


def test_weights_are_compared(capsys, tmp_path, odd):
    other = write(tmp_path / "other.gguf", seed=1)
    report = qformats.compare(odd, odd, other, try_=["gguf:q4_0"])
    same, different, tried = report.models
    assert same.weights.total.relative_rmse == 0
    assert different.weights.total.relative_rmse > 1
    values = gguf.GGUFReader(odd)
    original = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in values.tensors}
    errors = {tensor.name: tensor.error.relative_rmse for tensor in tried.weights.by_tensor}
    for name in ("blk.0.wave_proj.weight", "blk.0.arm_proj.weight"):
        weight = torch.from_numpy(np.array(original[name]))
        rounded = qformats.pack(qformats.quantize(weight, "gguf:q4_0"), "gguf:q4_0").dequantize()
        expected = float((weight - rounded).norm() / weight.norm())
        assert errors[name] == pytest.approx(expected, rel=1e-4)
    assert call(capsys, "compare", odd, other).code == 0


def test_a_model_of_another_architecture_is_named(odd):
    report = qformats.compare("demo", odd)
    assert any("a starfish and the base a llama" in note for note in report.models[0].notes)


def test_its_size_in_another_type_is_exact_and_its_memory_unknown(capsys, tmp_path, odd):
    planned = call(capsys, "inspect", "--plan", "gguf:q4_0", odd)
    assert planned.code == 0
    assert "memory to run it is not known" in planned.out
    assert "starfish" in planned.out
    facts = json.loads(call(capsys, "inspect", "--plan", "gguf:q4_0", odd, "--json").out)
    assert facts["running"] is facts["cache"] is facts["activations"] is None
    report = qformats.export(odd, tmp_path / "q4_0.gguf", format="gguf:q4_0")
    assert facts["nbytes"] == report.nbytes


def test_conversion_keeps_names_order_and_metadata(tmp_path, odd):
    target = tmp_path / "q4_0.gguf"
    qformats.export(odd, target, format="gguf:q4_0")
    before, after = gguf.GGUFReader(odd), gguf.GGUFReader(target)
    assert [t.name for t in after.tensors] == [t.name for t in before.tensors]
    assert {t.tensor_type.name for t in after.tensors if "_proj" in t.name} == {"Q4_0"}
    kept = [key for key in before.fields if not key.startswith(("GGUF.", "general.file_type"))]
    assert "starfish.arms" in kept
    for key in kept:
        assert after.fields[key].contents() == before.fields[key].contents()
        assert after.fields[key].types == before.fields[key].types


@pytest.mark.parametrize("format", ["dense:f32", "gptq:4bit-32g", "bitsandbytes:nf4"])
def test_what_needs_the_architecture_says_what_does_not(tmp_path, odd, format):
    with pytest.raises(UnsupportedModelError, match=r"'starfish'.*needs no architecture works: inspect"):
        qformats.export(odd, tmp_path / "out", format=format)
    assert [path.name for path in tmp_path.iterdir()] == [odd.name]


@pytest.mark.parametrize(
    "command", [["generate", "the"], ["compare", "--try", "gguf:q4_0", "--text", "demo"]]
)
def test_running_it_says_what_can_be_done_instead(capsys, odd, command):
    refused = call(capsys, command[0], odd, *command[1:])
    assert refused.code == 3
    assert "compare without --text" in refused.err


def test_a_file_that_names_no_architecture_is_one_of_an_unknown_architecture(tmp_path, odd):
    content = odd.read_bytes().replace(b"general.architecture", b"general.architectura")
    odd.write_bytes(content)
    model = qformats.open(odd)
    assert model.architecture == "unknown"
    assert len(model.tensors) == 4
    with pytest.raises(UnsupportedModelError, match=r"general\.architecture: found None"):
        _ = model.config
    assert qformats.export(odd, tmp_path / "q4_0.gguf", format="gguf:q4_0").types["gguf:q4_0"] == 2


# Types


@pytest.mark.parametrize(
    ("number", "name", "hint"),
    [(199, "type-199", "A newer qformats may read it"), (31, "q4_0_4_4", "removed from llama.cpp")],
)
@pytest.mark.parametrize("architecture", ["starfish", "llama"])
def test_a_type_without_a_decoder_is_named_and_refused_only_when_read(
    capsys, tmp_path, number, name, hint, architecture
):
    if architecture == "llama":
        tensor, read = "blk.0.attn_q.weight", "model.layers.0.self_attn.q_proj.weight"
        path = tmp_path / "model.gguf"
        qformats.export("demo", path, format="gguf:q8_0")
        (tmp_path / "model.gguf.qformats.json").unlink()
    else:
        tensor = read = "blk.0.wave_proj.weight"
        path = write(tmp_path / "model.gguf")
    with_type(path, tensor, number)
    shown = call(capsys, "inspect", path, "--tensors")
    assert shown.code == 0
    assert f"gguf:{name}" in shown.out
    model = qformats.open(path)
    others = [other for other in model.tensors if other != read]
    assert all(model.read(other).isfinite().all() for other in others)
    with pytest.raises(
        CheckpointError, match=f"{read if architecture == 'starfish' else tensor}.*type {number}"
    ) as no:
        model.read(read)
    assert hint in str(no.value)
    with pytest.raises(ConfigError, match=f"format of {tensor}: found 'gguf:{name}'"):
        qformats.export(path, tmp_path / "out.gguf", format="gguf:q4_0")
    report = qformats.compare(path, path)
    assert len(report.models[0].weights.by_tensor) == len(others)
    assert any("cannot be decoded" in note for note in report.models[0].notes)


# Vocabularies


@pytest.mark.parametrize("architecture", ["llama", "starfish"])
def test_a_vocabulary_gives_its_tokenizer(capsys, tmp_path, architecture):
    from transformers import AutoTokenizer

    path = write(tmp_path / "vocabulary.gguf", architecture, tensors=False)
    tokens = [TOKENS.index("the"), TOKENS.index("Ġ"), TOKENS.index("th"), TOKENS.index("!")]
    assert qformats.load_tokenizer(path)("the th!")["input_ids"] == tokens
    assert call(capsys, "inspect", path).code == 0
    written = call(capsys, "export", path, "--format", "dense", "-o", tmp_path / "folder")
    assert written.code == 0, written.err
    assert "a tokenizer only" in written.out
    assert not (tmp_path / "folder" / "config.json").exists()
    assert AutoTokenizer.from_pretrained(tmp_path / "folder")("the th!")["input_ids"] == tokens


def test_a_vocabulary_is_no_model(tmp_path):
    path = write(tmp_path / "vocabulary.gguf", "llama", tensors=False)
    for format in ("gguf:q4_0", "gptq:4bit-32g"):
        with pytest.raises(CheckpointError, match=r"holds no tensors.*--format dense writes"):
            qformats.export(path, tmp_path / "out", format=format)
    with pytest.raises(ConfigError, match="there are no tensors"):
        qformats.export(path, tmp_path / "out", format="dense:f32", tensor_types={"attn": "f16"})
    assert [file.name for file in tmp_path.iterdir()] == ["vocabulary.gguf"]


def test_a_tokenizer_of_any_model_is_loaded():
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(qformats.open("demo").path)
    text = "Once upon a time, in 1865."
    assert qformats.load_tokenizer("demo")(text)["input_ids"] == theirs(text)["input_ids"]
