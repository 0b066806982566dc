"""Files of every architecture against those of llama.cpp's own converter: names, types, bytes and metadata."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import portable, tokenizers
from models.converter_goldens import GOLDEN, MODELS, content_of

import qformats
from qformats.errors import UnsupportedModelError
from qformats_gguf.architectures import Architecture
from qformats_gguf.architectures.rows import ROWS
from qformats_gguf.metadata import Metadata, Value, ValueType, array, f32

# A model with longrope is exported with a note, see test_longrope.py.
pytestmark = pytest.mark.filterwarnings("ignore:.*llama.cpp takes the long factors in any context")

DIFFERENCES: list[dict[str, Any]] = tomllib.loads((GOLDEN / "differences.toml").read_text())["difference"]
SIZES = ("feed_forward_length", "attention.head_count_kv")
TYPES = {"UINT32": "U32", "FLOAT32": "F32", "STRING": "STRING", "BOOL": "BOOL", "INT32": "I32"}
ENCODERS = {name for name, golden in MODELS.items() if "files" in golden}
"""Those have a test of their own, with tokenizers: test_encoders.py."""
each_model = pytest.mark.parametrize("name", sorted(MODELS.keys() - ENCODERS))


@pytest.fixture(scope="module")
def files_of_tokenizers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizers")
    for kind in {golden["tokenizer"] for golden in MODELS.values()}:
        tokenizers.build(kind, path / kind)
    return path


def folder_of(name: str, path: Path, files_of_tokenizers: Path) -> Path:
    """The folder that upstream's converter was given."""
    golden = MODELS[name]
    shutil.copytree(files_of_tokenizers / golden["tokenizer"], path)
    (path / "config.json").write_text(json.dumps(golden["config"]))
    portable.write(path / "model.safetensors", golden["shapes"])
    return path


def excused(name: str, key: str, theirs: Any, ours: Any) -> bool:
    """Whether a difference is one of those that are listed with a reason."""
    return any(
        each["key"] == key
        and name in each.get("models", [name])
        and (theirs is None) is (each.get("upstream") == "absent")
        and (ours is None) is (each.get("ours") == "absent")
        for each in DIFFERENCES
    )


@each_model
def test_the_file_is_that_of_upstreams_converter(
    name: str, tmp_path: Path, files_of_tokenizers: Path
) -> None:
    golden = MODELS[name]
    folder = folder_of(name, tmp_path / name, files_of_tokenizers)
    qformats.export(folder, tmp_path / "m.gguf", format="gguf:f16")
    ours = content_of(tmp_path / "m.gguf", golden["tensors"])
    arch = golden["metadata"]["general.architecture"][1]
    blocks = {key.split(".")[1] for key in golden["tensors"] if key.startswith("blk.")}
    ours["tensors"] = {
        key: value
        for key, value in ours["tensors"].items()
        if not key.startswith("blk.") or key.split(".")[1] in blocks
    }
    different = {}
    for part in ("metadata", "tensors"):
        for key in golden[part].keys() | ours[part].keys():
            one, other = golden[part].get(key), ours[part].get(key)
            if one != other and not excused(name, key.removeprefix(arch + "."), one, other):
                different[key] = one, other
    assert different == {}
    listed = [each["key"] for each in DIFFERENCES if name in each.get("models", ())]
    for key in listed:
        full = key if key.startswith(("general.", "output.")) else f"{arch}.{key}"
        part = "tensors" if key.startswith("output.") else "metadata"
        assert golden[part].get(full) != ours[part].get(full), f"{key} is listed, and does not differ"


def described(name: str) -> Metadata:
    """Metadata of a golden file, and tokens of a vocabulary of its size."""
    golden, metadata = MODELS[name], {}
    for key, (kinds, value) in golden["metadata"].items():
        types = [ValueType[TYPES.get(kind, kind)] for kind in kinds]
        metadata[key] = array(types[1], value) if len(types) > 1 else Value(types[0], value)
    tokens = [f"<{i}>" for i in range(golden["tensors"]["token_embd.weight"][1][0])]
    return metadata | {"tokenizer.ggml.tokens": array(ValueType.STRING, tokens)}


@each_model
def test_files_of_upstreams_converter_are_read(name: str) -> None:
    """Their metadata make the same model as ours, and it has the tensors that they have."""
    golden = MODELS[name]
    config = golden["config"].get("text_config", golden["config"])
    extra = {
        key: np.array(value[2], np.float32)
        for key, value in golden["tensors"].items()
        if key.startswith("rope_")
    }
    ours = Architecture.from_config(golden["config"])
    known = {tensor.gguf: tensor.stored_shape for tensor in ours.expected_tensors()}
    # What the converter leaves out of a tied model, and of long ones what the golden file leaves out.
    names = {*golden["tensors"], *(key for key in known if key != "output.weight")}
    back = Architecture.from_metadata(described(name), names, extra_tensors=extra)
    assert back.ignored == ()
    there = {tensor.gguf: tensor.stored_shape for tensor in back.expected_tensors()}
    if name == "qwen":
        # Read as the three parts of the one tensor in the file.
        there = {
            whole if (whole := re.sub(r"attn_[qkv]\.", "attn_qkv.", key)) in known else key: known.get(
                whole, shape
            )
            for key, shape in there.items()
        }
    assert there.keys() | {"output.weight"} == known.keys() | {"output.weight"}
    # A size that the converter gets wrong is that of no tensor.
    wrong = [each for each in DIFFERENCES if each["key"] in SIZES and name in each["models"]]
    assert wrong or all(known[key] == shape for key, shape in there.items() if key in known)
    kept = ("hidden_size", "num_hidden_layers", "num_experts", "n_routed_experts", "num_local_experts")
    assert {key: back.config[key] for key in kept if key in back.config and key in config} == {
        key: config[key] for key in kept if key in back.config and key in config
    }


@pytest.mark.parametrize("name", ["olmo3", "exaone4-64", "gpt_oss"])
def test_another_base_of_sliding_layers_is_refused(name: str) -> None:
    """The key is written by the converter; Transformers or llama.cpp rotates all layers with one base all the same."""
    metadata = described(name)
    key = metadata["general.architecture"].data + ".rope.freq_base_swa"
    ours = [tensor.gguf for tensor in Architecture.from_config(MODELS[name]["config"]).expected_tensors()]
    with pytest.raises(UnsupportedModelError, match=key):
        Architecture.from_metadata(metadata | {key: f32(2345.0)}, ours)


def test_there_is_a_golden_file_of_every_row_of_the_table() -> None:
    """Of each architecture and model type that is written."""
    types = {
        golden["config"].get("text_config", golden["config"])["model_type"] for golden in MODELS.values()
    }
    archs = {golden["metadata"]["general.architecture"][1] for golden in MODELS.values()}
    written = [row for row in ROWS.values() if row.only != "read"]
    # The converter knows GLM-4-9B only under the names of its first repositories: tests/gguf/test_chatglm.py.
    assert {model.model_type for row in written for model in row.models} - types == {"glm"}
    assert {row.arch for row in written} - archs == {"chatglm"}
