"""Models of every architecture of the table: to GGUF and back, and the numbers of Transformers in llama.cpp."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from models.architectures import CASES, MULTIMODAL, SCALINGS, TRAPS, WIDE, build, build_multimodal, build_wide
from models.text import PROMPTS
from oracles import hf
from oracles.llama_cpp import LlamaCpp
from safetensors.torch import load_file

import qformats
from qformats.errors import UnsupportedModelError
from qformats.folder.experts import stacked_shapes
from qformats.folder.outline import outline
from qformats.folder.shapes import known_shapes
from qformats_gguf.loader import GGUFLoader

POSITIONS = 64
LOG_PROB = 1e-4
# llama.cpp computes GELU from a table of 16-bit floats: measured up to 6e-3.
LOG_PROB_GELU_TABLE = 2e-2
# Layers differ among each other, or a key changes several lengths: what is recorded does not say it.
NOT_RECORDED = (
    "glm4_moe_lite",
    "llama4",
    "falcon",
    "internlm3",
    "deepseek_v2-lite",
    "qwen3_next",
    "lfm2",
    "mamba",
)
# Linear attention sums in another order: measured up to 2.5e-4.
LOG_PROB_LINEAR = 5e-4
LINEAR = ("qwen3_next",)
# What another expert changed at one position, layers without attention remember: measured a mean of 0.02 to 0.7.
REMEMBERING = (*LINEAR, "lfm2_moe")
ONE_EACH = [*{case.model_type: name for name, case in reversed(CASES.items())}.values()]
"""A model of each type: what its other features are is the same for packed weights."""
# A model with longrope is exported with a note, see test_longrope.py.
pytestmark = pytest.mark.filterwarnings("ignore:.*llama.cpp takes the long factors in any context")

NAMED = [f"general.{key}" for key in ("name", "basename", "finetune", "version", "size_label")]
"""Keys that say what the model's folder is called."""
GELU = ("gemma", "starcoder2", "phi", "falcon", "gpt_neox", "bloom")
# A rotary base, or a factor of attention, is a product, of which a file holds seven digits.
ROUNDED = ("hunyuan", "ministral3")


@pytest.fixture(scope="module", params=CASES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """Name, folder and float32 file of a model."""
    path = tmp_path_factory.mktemp("model")
    folder = build(request.param, path / request.param)
    qformats.export(folder, path / "m.gguf", format="gguf:f32")
    return request.param, folder, path / "m.gguf"


def test_llama_cpp_computes_the_numbers_of_transformers(model: tuple[str, Path, Path]) -> None:
    name, folder, file = model
    reference = hf.load(folder)
    ids = np.random.default_rng(0).integers(0, reference.config.get_text_config().vocab_size, POSITIONS)
    with LlamaCpp(file) as gguf:
        ours, theirs = gguf.log_probs(ids.tolist()), hf.log_probs(reference, ids.tolist())
        tolerance = LOG_PROB_GELU_TABLE if name.startswith(GELU) else LOG_PROB
        tolerance = LOG_PROB_LINEAR if name.startswith(LINEAR) else tolerance
        assert np.abs(ours - theirs).max() < tolerance
        # What llama.cpp writes is what Transformers would write, and it reads the same tokens.
        written = gguf.greedy(ids.tolist(), 8)
        expected = hf.log_probs(reference, [*ids.tolist(), *written])[POSITIONS - 1 : -1]
        chosen = expected[np.arange(len(written)), written]
        assert (expected.max(-1) - chosen).max() < 2 * tolerance
        tokenizer = hf.tokenizer_json(folder)
        for text in PROMPTS[:6]:
            assert gguf.tokenize(text) == tokenizer.encode(text).ids


@pytest.mark.parametrize("scaled", SCALINGS)
def test_llama_cpp_computes_the_rotary_scalings_of_the_table(scaled: str, tmp_path: Path) -> None:
    name, changes = SCALINGS[scaled]
    folder, file = build(name, tmp_path / "model", **changes), tmp_path / "m.gguf"
    qformats.export(folder, file, format="gguf:f32")
    ids = list(range(3, 3 + POSITIONS))
    with LlamaCpp(file) as gguf:
        tolerance = LOG_PROB_GELU_TABLE if name.startswith(GELU) else LOG_PROB
        assert np.abs(gguf.log_probs(ids) - hf.log_probs(folder, ids)).max() < tolerance


def test_the_folder_comes_back(model: tuple[str, Path, Path], tmp_path: Path) -> None:
    """The same tensors, a configuration that means the same, and from it the same file again."""
    name, folder, file = model
    qformats.export(file, tmp_path / "back", format="dense:f32")
    before = load_file(folder / "model.safetensors")
    after = load_file(tmp_path / "back" / "model.safetensors")
    assert before.keys() == after.keys()
    different = {name for name in before if not before[name].equal(after[name])}
    # A norm that is stored with 1 added has lost the last bit of some numbers, of those around 1 (Nemotron's) too.
    assert all((before[name] - after[name]).abs().max() < 2e-7 for name in different)
    assert all(name.endswith(("norm.weight", "A_log")) for name in different)
    one, other = (hf.load(path) for path in (folder, tmp_path / "back"))
    ids = list(range(3, 60))
    rounded = different or name in ROUNDED
    # Equal numbers elsewhere in memory are added up in another order.
    assert np.abs(hf.logits(one, ids) - hf.logits(other, ids)).max() < (1e-5 if rounded else 1e-6)
    qformats.export(tmp_path / "back", tmp_path / "again.gguf", format="gguf:f32")
    first, again = qformats.open(file), qformats.open(tmp_path / "again.gguf")
    assert first.stored.keys() == again.stored.keys()
    for key, tensor in first.stored.items():
        assert tensor.read().dequantize().equal(again.stored[key].read().dequantize()), key
    one, other = (
        {key: value for key, value in each.metadata.items() if key not in NAMED} for each in (first, again)
    )
    assert one == other


def test_the_configuration_alone_says_which_tensors_there_are(model: tuple[str, Path, Path]) -> None:
    """Under their names in files, experts and tied layers too."""
    name, folder, _ = model
    config = json.loads((folder / "config.json").read_text())
    expected = {key: tuple(tensor.shape) for key, tensor in load_file(folder / "model.safetensors").items()}
    found = outline(config, folder / "config.json").tensors
    shapes = {key: tensor.shape for key, tensor in found.items()}
    assert shapes.keys() == qformats.open(folder).tensors.keys()
    assert stacked_shapes(shapes, config, folder) == expected
    # The same without Transformers: from what is recorded, or from the table.
    assert known_shapes(config) in (expected, None)
    if known_shapes(config) is None:
        assert name.startswith(NOT_RECORDED)
        assert GGUFLoader().shapes(config) == shapes


# Classes of Transformers that compute more than a linear layer or an embedding keep their weights as plain numbers.
@pytest.mark.parametrize("model", ONE_EACH, indirect=True, scope="module")
@pytest.mark.filterwarnings("ignore:.* are kept as plain numbers")
def test_quantized_weights_run_as_their_values(model: tuple[str, Path, Path], tmp_path: Path) -> None:
    """The packed file in llama.cpp and in our own runtime, against Transformers on its weights dequantized by us."""
    name, folder, _ = model
    file = tmp_path / "m.gguf"
    qformats.export(folder, file, format="gguf:q8_0")
    qformats.export(file, tmp_path / "dense", format="dense:f32")
    reference = hf.load(tmp_path / "dense")
    ids = list(range(3, 3 + POSITIONS))
    with LlamaCpp(file) as gguf:
        ours, theirs = gguf.log_probs(ids), hf.log_probs(reference, ids)
    # llama.cpp's CPU kernels round activations to 8 bits wherever weights are quantized, which now and then
    # chooses another expert: measured up to 5.2e-3.
    divergences = (np.exp(theirs.astype(np.float64)) * (theirs - ours)).sum(-1)
    assert (np.median(divergences) if name.startswith(REMEMBERING) else divergences.mean()) < 2e-2
    packed = qformats.load_model(file, device="cpu", dtype="f32")
    assert {weight.format for weight in packed.qformats_report.weights} == {"gguf:q8_0"}
    plain = qformats.load_model(folder, device="cpu")
    assert np.abs(hf.log_probs(plain, ids) - hf.log_probs(folder, ids)).max() < LOG_PROB
    assert np.abs(hf.log_probs(packed, ids) - theirs).max() < LOG_PROB
    start = {"inputs": torch.tensor([ids]), "max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    written, expected = (each.generate(**start)[0].tolist() for each in (packed, reference))
    assert written == expected


@pytest.mark.filterwarnings("ignore:.* are kept as plain numbers")
@pytest.mark.parametrize("name", WIDE)
def test_blocks_of_256_run_as_their_values(name: str, tmp_path: Path) -> None:
    """The same in a type of the hub's usual mixes, for which the rows of smaller models are too short."""
    file = tmp_path / "m.gguf"
    report = qformats.export(build_wide(name, tmp_path / "model"), file, format="gguf:q4_k", pure=True)
    assert report.types["gguf:q4_k"] >= 10
    packed = qformats.load_model(file, device="cpu", dtype="f32")
    ids = list(range(3, 3 + 32))
    with LlamaCpp(file) as gguf:
        ours, theirs = gguf.log_probs(ids), hf.log_probs(packed, ids)
    divergences = (np.exp(theirs.astype(np.float64)) * (theirs - ours)).sum(-1)
    # Activations of 8 bits, and another expert now and then: measured up to 2.4e-3, with linear attention 1.6e-2.
    assert np.median(divergences) < (4e-2 if name.startswith(LINEAR) else 6e-3)


@pytest.mark.parametrize(
    ("name", "tied"), [("gemma3", True), ("gemma3", False), ("mistral3", False), ("ministral3", True)]
)
def test_the_language_model_of_a_multimodal_folder(name: str, tied: bool, tmp_path: Path) -> None:
    """It runs in llama.cpp, the vision model is named as left out, and a folder of the language model comes back."""
    folder, file = build_multimodal(name, tmp_path / "model", tied=tied), tmp_path / "m.gguf"
    report = qformats.export(folder, file, format="gguf:f32")
    left_out = {entry.name: entry.reason for entry in report.left_out}
    assert any("vision_tower" in name and "vision model" in why for name, why in left_out.items())
    reference = hf.load(folder, "AutoModelForImageTextToText")
    ids = [each for each in range(3, 3 + POSITIONS) if each != 100]
    theirs = hf.log_probs(reference, ids)
    with LlamaCpp(file) as gguf:
        tolerance = LOG_PROB_GELU_TABLE if name.startswith(GELU) else LOG_PROB
        assert np.abs(gguf.log_probs(ids) - theirs).max() < tolerance
    qformats.export(file, tmp_path / "back", format="dense:f32")
    back = json.loads((tmp_path / "back" / "config.json").read_text())
    assert (back["model_type"], back["tie_word_embeddings"]) == (MULTIMODAL[name][3], tied)
    assert np.abs(hf.log_probs(tmp_path / "back", ids) - theirs).max() < 1e-4


def test_the_language_model_of_a_kind_that_is_not_known_is_refused(tmp_path: Path) -> None:
    folder = build_multimodal("mistral3", tmp_path / "model", tied=False)
    config = json.loads((folder / "config.json").read_text())
    for inner in ("llama", None):
        config["text_config"]["model_type"] = inner
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(UnsupportedModelError, match=r"text_config\.model_type.*ministral3, mistral"):
            qformats.export(folder, tmp_path / "m.gguf", format="gguf:f32")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a model, made when it is first asked for."""
    path = tmp_path_factory.mktemp("built")
    return cache(lambda name: build(name, path / name))


@pytest.mark.parametrize("trap", TRAPS)
def test_what_llama_cpp_does_not_compute_is_refused(
    trap: str, built: Callable[[str], Path], tmp_path: Path
) -> None:
    name, changes, key = TRAPS[trap]
    folder = shutil.copytree(built(name), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match=key):
        qformats.export(folder, tmp_path / "m.gguf", format="gguf:f32")
    assert not (tmp_path / "m.gguf").exists()


@pytest.mark.parametrize("format", ["bitsandbytes:nf4", "gptq:4bit-32g", "glm:int8", "gguf:q4_0"])
@pytest.mark.parametrize("name", ["qwen3_moe", "gemma3", "ph3-partial"])
def test_quantized_sources_keep_their_values(name: str, format: str, tmp_path: Path) -> None:
    """The file of a quantized model holds what the quantized model holds, experts and norms too."""
    folder = build(name, tmp_path / "model")
    packed = tmp_path / ("packed.gguf" if format.startswith("gguf") else "packed")
    qformats.export(folder, packed, format=format, quantizer="rtn")
    qformats.export(packed, tmp_path / "dense", format="dense:f32")
    qformats.export(packed, tmp_path / "m.gguf", format="gguf:f32")
    qformats.export(tmp_path / "dense", tmp_path / "other.gguf", format="gguf:f32")
    one, other = (qformats.open(tmp_path / file) for file in ("m.gguf", "other.gguf"))
    assert one.stored.keys() == other.stored.keys()
    for key, tensor in one.stored.items():
        assert tensor.dequantize().sub(other.stored[key].dequantize()).abs().max() < 2e-7, key
    original = qformats.open(folder).tensors
    assert any(
        not tensor.dequantize().equal(original[key].dequantize())
        for key, tensor in one.tensors.items()
        if "proj" in key
    )
    qformats.export(packed, tmp_path / "small.gguf", format="gguf:q8_0")
    with LlamaCpp(tmp_path / "small.gguf") as gguf:
        assert np.isfinite(gguf.log_probs(list(range(3, 20)))).all()


def test_older_files_of_latent_attention_are_read(tmp_path: Path) -> None:
    """They keep keys and values in one matrix, as on disk, and say the sizes of heads in other keys."""
    from gguf import GGUFReader, GGUFWriter

    folder, new, old = build("deepseek_v3", tmp_path / "model"), tmp_path / "new.gguf", tmp_path / "old.gguf"
    qformats.export(folder, new, format="gguf:f32")
    reader, writer = GGUFReader(new), GGUFWriter(old, "deepseek2")
    heads, nope, rotated, value = 4, 16, 8, 24
    older = {"head_count_kv": heads, "key_length": nope + rotated, "value_length": value}
    for field in reader.fields.values():
        name = field.name.removeprefix("deepseek2.attention.")
        if field.name.startswith("GGUF.") or field.name == "general.architecture" or name.endswith("_mla"):
            continue
        kind, *inner = field.types
        writer.add_key_value(field.name, older.get(name, field.contents()), kind, *inner)
    joined = load_file(folder / "model.safetensors")
    for tensor in reader.tensors:
        if ".attn_v_b." in tensor.name:
            continue
        name, data = tensor.name, tensor.data
        if ".attn_k_b." in name:
            name = name.replace("attn_k_b", "attn_kv_b")
            data = joined[f"model.layers.{name.split('.')[1]}.self_attn.kv_b_proj.weight"].numpy()
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    one, other = qformats.open(new), qformats.open(old)
    assert one.config == other.config
    assert one.tensors.keys() == other.tensors.keys()
    assert all(
        tensor.dequantize().equal(other.tensors[name].dequantize()) for name, tensor in one.tensors.items()
    )


def test_a_released_gpt_oss_is_exported_with_a_warning(tmp_path: Path) -> None:
    """Its YaRN is not truncated, which changes little."""
    folder = build("gpt_oss-yarn", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"]["truncate"] = False
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.warns(
        UserWarning, match=r"rope_parameters\.truncate = False was ignored: llama.cpp always truncates"
    ):
        qformats.export(folder, tmp_path / "m.gguf", format="gguf:f32")
