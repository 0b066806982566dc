"""Broken ChatGLM folders: one clear sentence each, and nothing is run."""

import json
import pickle
import shutil

import pytest
import torch
from models import chatglm
from safetensors.torch import load_file, save_file

import qformats
from qformats.errors import CheckpointError, QFormatsError, UnsupportedModelError

QKV = "transformer.encoder.layers.0.self_attention.query_key_value"
H4 = "transformer.encoder.layers.1.mlp.dense_4h_to_h"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    chatglm.save(chatglm.model(), folder, bits=4)
    return folder


@pytest.fixture
def folder(good, tmp_path):
    return shutil.copytree(good, tmp_path / "model")


def _edit(folder, change):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def _configure(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def _set(name, value):
    return lambda tensors: tensors.__setitem__(name, value(tensors[name]))


def _drop(name):
    return lambda tensors: tensors.__delitem__(name)


BROKEN = {
    "a scale too few": (_set(f"{QKV}.weight_scale", lambda s: s[:-1]), r"query_key_value.*shape"),
    "three scales a row": (
        _set(f"{QKV}.weight_scale", lambda s: s.reshape(-1, 1).repeat(1, 3)),
        r"64 columns",
    ),
    "scales of integers": (_set(f"{QKV}.weight_scale", lambda s: s.to(torch.int32)), r"f16, bf16 or f32"),
    "one scale": (_set(f"{QKV}.weight_scale", lambda s: s.sum()), r"query_key_value.*weight_scale"),
    "no scales": (_drop(f"{QKV}.weight_scale"), r"\['weight'\]; expected weight and weight_scale"),
    "no codes": (_drop(f"{QKV}.weight"), r"query_key_value.weight'?: is missing"),
    "no bias": (_drop(f"{QKV}.bias"), r"query_key_value.bias'?: is missing"),
    "an odd number of nibbles": (
        _set(f"{QKV}.weight", lambda w: w[:, :-1].contiguous()),
        r"\(128, 64\) in int8 or \(128, 32\) in int4",
    ),
    "a row too few": (
        _set(f"{QKV}.weight", lambda w: w[:-1].contiguous()),
        r"shape \(127, 32\).* in int8 or",
    ),
    "codes in a line": (_set(f"{QKV}.weight", lambda w: w.reshape(-1)), r"query_key_value.*shape \(4096,\)"),
    "wide codes": (_set(f"{H4}.weight", lambda w: w.to(torch.int16)), r"dense_4h_to_h.*i16"),
    "a shorter vocabulary": (
        _set("transformer.output_layer.weight", lambda w: w[:4].contiguous()),
        r"output_layer.*\(96, 64\)",
    ),
    "an adapter": (
        lambda t: t.__setitem__("transformer.prefix_encoder.embedding.weight", torch.ones(2, 2)),
        r"not known",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_tensors_that_do_not_fit(folder, case):
    change, message = BROKEN[case]
    _edit(folder, change)
    with pytest.raises(CheckpointError, match=message) as caught:
        qformats.open(folder)
    assert str(folder) in str(caught.value)
    assert str(caught.value).count("\n") == 0


def test_scales_that_are_not_finite(folder):
    _edit(folder, _set(f"{H4}.weight_scale", lambda s: s / 0))
    checkpoint = qformats.open(folder)
    with pytest.raises(CheckpointError, match=r"dense_4h_to_h.*infinity or NaN"):
        checkpoint.read("model.layers.1.mlp.down_proj.weight")


def test_the_width_that_the_configuration_declares(folder):
    _configure(folder, quantization_bit=8)
    with pytest.raises(
        CheckpointError, match=r"found int4; expected int8, the quantization_bit of config.json"
    ):
        qformats.open(folder)
    _configure(folder, quantization_bit=[4])
    with pytest.raises(CheckpointError, match="one of 0, 4, 8"):
        qformats.open(folder)


@pytest.mark.parametrize("text", ["{", "[]", '{"model_type": "chatglm"}'])
def test_broken_configurations(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(QFormatsError):
        qformats.open(folder)


def test_a_vision_model(folder):
    _configure(folder, vision_config={"layers": 2})
    with pytest.raises(UnsupportedModelError, match="vision"):
        qformats.open(folder)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3968291979\n"


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.model", "pytorch_model.bin"])
def test_git_lfs_pointers(folder, name):
    if name.endswith(".bin"):
        (folder / "model.safetensors").unlink()
    (folder / name).write_text(POINTER)
    with pytest.raises(CheckpointError, match=f"{name}: is a Git LFS pointer.*git lfs pull"):
        qformats.open(folder)


def test_weights_that_are_not_read_need_not_be_fetched(folder):
    (folder / "pytorch_model.bin").write_text(POINTER)
    assert qformats.open(folder).tensors


class _Runs:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return open, (str(self.mark), "w")


@pytest.mark.parametrize("protocol", ["zip", "old"])
def test_a_pickle_that_runs_code(folder, protocol, tmp_path):
    mark = tmp_path / "ran"
    (folder / "model.safetensors").unlink()
    file = folder / "pytorch_model.bin"
    if protocol == "zip":
        torch.save({QKV: _Runs(mark)}, file)
    else:
        file.write_bytes(pickle.dumps({QKV: _Runs(mark)}))
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin"):
        qformats.open(folder)
    assert not mark.exists()


@pytest.mark.parametrize("keep", [0, 3, 1000, 20000, -1])
def test_a_file_that_is_cut_off(folder, keep):
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    file = folder / "pytorch_model.bin"
    torch.save(state, file)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin"):
        qformats.open(folder)


def test_the_code_of_the_folder_is_never_run(folder, tmp_path):
    assert "raise" in (folder / "modeling_chatglm.py").read_text()
    qformats.export(folder, tmp_path / "out", format="dense:f16")
    assert not list((tmp_path / "out").glob("*.py"))
