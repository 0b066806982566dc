"""Values that each were a traceback once: one sentence now that names the file, or the right result."""

import json
import shutil

import numpy as np
import pytest
import torch
from cli.command import call
from models import tiny
from safetensors.torch import load_file, save_file

import qformats
from qformats.errors import CheckpointError, PluginError
from qformats_gguf.header import TensorInfo, serialize
from qformats_gguf.loader import GGUFLoader
from qformats_gguf.metadata import Value, ValueType, array, string
from qformats_gguf.reader import read
from qformats_gguf.types import TYPES, by_name


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """GGUF files of a SentencePiece model and of one with rotary factors, and the folder of the first."""
    folder = tmp_path_factory.mktemp("models")
    found = {"folder": tiny.build("llama-spm", folder / "folder")}
    for name, source in (
        ("spm", found["folder"]),
        ("rope", tiny.build("llama-rope-llama3", folder / "rope")),
    ):
        found[name] = folder / f"{name}.gguf"
        qformats.export(source, found[name], format="gguf:f32", workers=1)
    return found


def changed(source, target, metadata=(), tensors=()):
    """A GGUF file with other metadata, and with tensors of another type and content."""
    with read(source) as old:
        keys = old.metadata | dict(metadata)
        parts = {
            name: (TYPES[t.type_id].name, t.shape, old.data(name).tobytes())
            for name, t in old.tensors.items()
        }
    parts |= dict(tensors)
    infos = [TensorInfo(name, shape, by_name(kind)) for name, (kind, shape, _) in parts.items()]
    header = serialize(keys, infos)
    with target.open("wb") as file:
        file.write(header.data)
        for (_, _, data), at in zip(parts.values(), header.offsets, strict=True):
            file.seek(at)
            file.write(data)
        file.truncate(header.total_size)
    return target


def tokens(model, key):
    with read(model) as file:
        return list(file.metadata[key].data)


TYPES_KEY, SCORES, TOKENS = (f"tokenizer.ggml.{key}" for key in ("token_type", "scores", "tokens"))


def spoilt(models, key, place, value, kind):
    values = tokens(models["spm"], key)
    values[place] = value
    return {key: array(kind, values)}


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (
            lambda m: {"llama.context_length": string("4096")},
            r"llama\.context_length: found '4096'; expected a posi",
        ),
        (
            lambda m: {"llama.context_length": array(ValueType.U32, [1, 2])},
            r"llama\.context_length: found \[1, 2\]",
        ),
        (
            lambda m: {"llama.rope.freq_base": Value(ValueType.F64, 1e300)},
            r"freq_base: found 1e\+300; expected",
        ),
        (
            lambda m: {"llama.rope.scaling.type": array(ValueType.U8, [1])},
            r"scaling\.type: found \[1\]; expected text",
        ),
        (
            lambda m: {"tokenizer.ggml.add_bos_token": string("yes")},
            "add_bos_token: found 'yes'; expected true or",
        ),
        (
            lambda m: spoilt(m, TYPES_KEY, 5, float("nan"), ValueType.F32),
            r"token_type\[0\]: found 3\.0; expected whole",
        ),
        (
            lambda m: spoilt(m, SCORES, 5, 1e300, ValueType.F64),
            r"scores\[5\]: found 1e\+300; expected finite numbers",
        ),
        (
            lambda m: spoilt(m, SCORES, 5, float("nan"), ValueType.F32),
            r"scores\[5\]: found nan; expected finite",
        ),
        (
            lambda m: spoilt(m, TOKENS, 9, "\udcff", ValueType.STRING),
            r"token 9 of tokenizer\.ggml\.tokens is '\\udcff'",
        ),
        (lambda m: {"general.architecture": array(ValueType.STRING, ["llama"])}, r"general\.architecture"),
    ],
)
def test_metadata(models, tmp_path, capsys, make, told):
    model = changed(models["spm"], tmp_path / "bad.gguf", make(models))
    with pytest.raises(CheckpointError, match=rf"bad\.gguf: .*{told}"):
        qformats.open(model).tokenizer_files()
    result = call(capsys, "export", model, "-f", "dense:f16", "-o", tmp_path / "out")
    assert (result.code, result.err.count("\n")) == (3, 1)
    assert not (tmp_path / "out").exists()


def test_rope_factors_in_bf16(models, tmp_path):
    """They mean what the same numbers in float32 mean."""
    with read(models["rope"]) as file:
        values = np.frombuffer(file.data("rope_freqs.weight").tobytes(), np.float32)
    halves = torch.from_numpy(values.copy()).to(torch.bfloat16)
    found = []
    for kind, data in (("bf16", halves.view(torch.uint8)), ("f32", halves.float().view(torch.uint8))):
        part = {"rope_freqs.weight": (kind, values.shape, data.numpy().tobytes())}
        model = changed(models["rope"], tmp_path / f"{kind}.gguf", tensors=part)
        found.append(qformats.open(model).config["rope_parameters"])
    assert found[0] == found[1]
    assert found[0]["rope_type"] == "llama3"


def test_a_vector_in_blocks(models, tmp_path):
    """No program writes one; it is decoded as gguf-py does, and copied."""
    import gguf

    values = np.linspace(0.5, 1.5, 64, dtype=np.float32)
    blocks = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
    part = {"output_norm.weight": ("q8_0", (64,), blocks.tobytes())}
    model = changed(models["spm"], tmp_path / "vector.gguf", tensors=part)
    expected = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType.Q8_0)
    assert np.array_equal(qformats.open(model).read("model.norm.weight").numpy(), expected)
    qformats.export(model, tmp_path / "copy.gguf", format="gguf:f16", workers=1)
    with read(tmp_path / "copy.gguf") as copy:
        assert copy.data("output_norm.weight").tobytes() == blocks.tobytes()
    qformats.export(model, tmp_path / "folder", format="dense:f32", workers=1)
    assert np.array_equal(load_file(tmp_path / "folder" / "model.safetensors")["model.norm.weight"], expected)


@pytest.mark.parametrize(
    ("declared", "told"),
    [
        ({"checkpoint_format": ["gptq", "v2"]}, r"checkpoint_format: found \['gptq', 'v2'\]; expected text"),
        ({"group_size": 2**63}, "group_size: found 9223372036854775808; expected a whole number"),
        ({"group_size": 2**40}, "group_size: found 1099511627776; expected -1"),
        ({"bits": [4]}, r"bits: found \[4\]; expected a whole number"),
        ({"sym": "no"}, "sym: found 'no'; expected true or false"),
    ],
)
def test_a_quantization_config(models, tmp_path, capsys, declared, told):
    model = shutil.copytree(models["folder"], tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 32} | declared
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=rf"config\.json: quantization_config: {told}"):
        qformats.open(model)
    assert call(capsys, "inspect", model).code == 3


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors.index.json"])
def test_files_nested_900_deep(models, tmp_path, name):
    model = shutil.copytree(models["folder"], tmp_path / "model")
    (model / name).write_text('{"a":' * 900 + "1" + "}" * 900)
    if name.endswith("index.json"):
        # A single file comes before an index.
        (model / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=rf"{name}: .*nested more than 100 deep"):
        qformats.export(model, tmp_path / "out.gguf", format="gguf:q8_0", workers=1)


def test_lone_surrogates_are_kept_where_json_holds_them(models, tmp_path, capsys):
    model = shutil.copytree(models["folder"], tmp_path / "model")
    config = json.loads((model / "config.json").read_text()) | {"note": "\ud800"}
    (model / "config.json").write_text(json.dumps(config))
    qformats.export(model, tmp_path / "out", format="dense:f16", workers=1)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["note"] == "\ud800"
    assert call(capsys, "inspect", model).code == 0
    result = call(capsys, "inspect", model, "--json")
    assert json.loads(result.out)["metadata"]["note"] == "\ud800"


def test_lone_surrogates_are_refused_as_names(models, tmp_path):
    model = shutil.copytree(models["folder"], tmp_path / "model")
    state = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    torch.save(state | {"\ud800": torch.ones(2)}, model / "pytorch_model.bin")
    with pytest.raises(
        CheckpointError, match=r"\.bin: a tensor called '\\ud800'; expected names that are text"
    ):
        qformats.open(model)
    save_file(state, model / "model.safetensors")
    (model / "pytorch_model.bin").unlink()
    index = {"weight_map": dict.fromkeys(state, "model.safetensors") | {"model.norm.weight": "\ud800"}}
    (model / "model.safetensors").rename(model / "model-1.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"file name '\\ud800'; expected a plain file name"):
        qformats.open(model)


# The net.


def test_an_unforeseen_exception_names_plugin_file_and_cause(models, monkeypatch, capsys):
    from qformats.work.guard import _guarded

    def broken(self, path, options):
        return {}["no such key"]

    broken.__module__, broken.__qualname__ = "qformats_gguf.loader", "GGUFLoader.open"
    monkeypatch.setattr(GGUFLoader, "open", _guarded(broken))
    with pytest.raises(PluginError) as caught:
        qformats.open(models["spm"])
    assert isinstance(caught.value.__cause__, KeyError)
    told = f"{models['spm']}: plugin qformats_gguf: GGUFLoader.open raised KeyError: 'no such key' (container gguf)"
    assert str(caught.value).startswith(told)
    result = call(capsys, "inspect", models["spm"])
    assert (result.code, result.err.count("\n")) == (3, 1)
    assert "Traceback" in call(capsys, "--debug", "inspect", models["spm"]).err


def test_the_net_covers_models_too(models, monkeypatch):
    from qformats_gguf.checkpoint import GGUFCheckpoint

    model = qformats.open(models["spm"])
    monkeypatch.setattr("qformats_gguf.tokenizer.from_gguf", lambda *_, **__: [][1])
    with pytest.raises(
        PluginError, match=r"spm\.gguf: plugin qformats_gguf: GGUFCheckpoint\.tokenizer_files raised"
    ):
        model.tokenizer_files()
    assert isinstance(GGUFCheckpoint.config, property)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, MemoryError, CheckpointError])
def test_the_net_lets_through_what_is_clear(models, monkeypatch, kind):
    error = kind("file", "found") if kind is CheckpointError else kind()

    def raising(*_, **__):
        raise error

    monkeypatch.setattr("qformats_gguf.checkpoint.GGUFCheckpoint.__init__", raising)
    with pytest.raises(kind) as caught:
        qformats.open(models["spm"])
    assert caught.value is error


def test_a_fault_of_our_own_is_one_sentence(models, monkeypatch, capsys):
    monkeypatch.setattr("qformats.sources.fingerprint", lambda files: 1 // 0)
    result = call(capsys, "inspect", models["spm"])
    assert result.code == 70
    assert result.err.startswith("qformats: a fault of qformats itself: ZeroDivisionError")
    assert result.err.count("\n") == 1
