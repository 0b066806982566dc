"""Whether an output layer is the embedding is what the tensors say; the oracles are Transformers and llama.cpp."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from folder.folders import IDS, WEIGHTS, agree, change_config, change_weights, logits, transformers_logits
from models import tiny
from oracles.llama_cpp import LlamaCpp
from safetensors.torch import load_file, save_file

import qformats
from qformats.errors import CheckpointError
from qformats.interfaces import same_values

# What load_model says of such models; that it says it is tested with it.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.* ties .* they differ.*:UserWarning", "ignore:.* is also .* which the files lack.*:UserWarning"
)

HEAD = "lm_head.weight"
HOMES = {
    "llama-tied": "model.embed_tokens.weight",
    "qwen2": "model.embed_tokens.weight",
    "gpt2": "transformer.wte.weight",
}


@pytest.fixture(scope="module", params=HOMES)
def apart(request, tmp_path_factory) -> Path:
    """A model whose config.json ties its output layer, and whose files hold another one."""
    folder = tiny.build(request.param, tmp_path_factory.mktemp("ties") / request.param)
    state = load_file(folder / WEIGHTS)
    home = state[HOMES[request.param]]
    state[HEAD] = torch.randn(home.shape, generator=torch.Generator().manual_seed(4))
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is True
    return folder


def config_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def test_a_head_of_its_own_is_run(apart):
    assert agree(logits(qformats.load_model(apart, dtype="f32")), transformers_logits(apart))


def test_a_head_of_its_own_goes_into_a_folder_that_says_so(apart, tmp_path):
    report = qformats.export(apart, tmp_path / "out", format="dense:f32")
    assert config_of(tmp_path / "out")["tie_word_embeddings"] is False
    assert agree(transformers_logits(tmp_path / "out"), transformers_logits(apart))
    assert any("they differ: both are kept" in note for note in report.notes)


def test_a_head_of_its_own_goes_into_gguf_and_back(apart, tmp_path):
    wanted = transformers_logits(apart)
    qformats.export(apart, tmp_path / "out.gguf", format="gguf:f32")
    with LlamaCpp(tmp_path / "out.gguf") as model:
        # llama.cpp looks GELU up in a table of halves.
        assert agree(model.logits(IDS), wanted, 1e-3 if "gpt2" in apart.name else 1e-4)
    qformats.export(tmp_path / "out.gguf", tmp_path / "back", format="dense:f32")
    assert config_of(tmp_path / "back")["tie_word_embeddings"] is False
    assert agree(transformers_logits(tmp_path / "back"), wanted)


@pytest.mark.parametrize("format", ["bitsandbytes:nf4", "gptq:4bit-32g", "glm:int8"])
def test_a_head_of_its_own_survives_quantization(apart, tmp_path, format):
    options = {"plain-dtype": "f32"}
    qformats.export(apart, tmp_path / "out", format=format, options=options, quantizer="rtn")
    stored = qformats.open(tmp_path / "out")
    assert torch.equal(stored.read(HEAD), load_file(apart / WEIGHTS)[HEAD])
    assert stored.config["tie_word_embeddings"] is False


def test_a_quantized_model_whose_config_ties_its_stored_head(tmp_path):
    """Written by others: the configuration is a copy of the base model's."""
    source = tiny.build("llama", tmp_path / "llama")
    for format in ("bitsandbytes:nf4", "gptq:4bit-32g"):
        folder = tmp_path / format.replace(":", "-")
        qformats.export(source, folder, format=format, options={"plain-dtype": "f32"}, quantizer="rtn")
        change_config(folder, tie_word_embeddings=True)
        opened = qformats.open(folder)
        assert torch.equal(opened.read(HEAD), load_file(source / WEIGHTS)[HEAD])
        assert opened.config["tie_word_embeddings"] is False


def test_a_quantized_head_is_no_copy_of_an_embedding_that_is_not(tmp_path):
    source = tiny.build("llama", tmp_path / "llama")
    qformats.export(source, tmp_path / "out", format="glm:int8", quantizer="rtn", output_type="glm:int8")
    change_config(tmp_path / "out", tie_word_embeddings=True)
    opened = qformats.open(tmp_path / "out")
    assert opened.tensors[HEAD].packer.quantizes
    assert opened.config["tie_word_embeddings"] is False


def test_calibration_reads_the_head_that_is_stored(apart, tmp_path):
    from qformats.calibration.skeleton import Skeleton

    source = qformats.open(apart)
    skeleton = Skeleton(source, torch.float32, torch.device("cpu"))
    assert torch.equal(skeleton.read(HEAD), load_file(apart / WEIGHTS)[HEAD])
    assert skeleton.model.config.tie_word_embeddings is False


@pytest.mark.parametrize("name", HOMES)
@pytest.mark.parametrize("files", ["safetensors", "bin"])
def test_an_equal_copy_is_kept_once(name, files, tmp_path):
    folder = tiny.build(name, tmp_path / "model", bin_shards=int(files == "bin"))
    if files == "safetensors":
        change_weights(folder, lambda state: state.update({HEAD: state[HOMES[name]].clone()}))
    opened = qformats.open(folder)
    assert HEAD not in opened.tensors
    assert opened.config["tie_word_embeddings"] is True
    why = f"equal to {HOMES[name]}, to which the configuration ties it"
    assert opened.left_out == {HEAD: why}
    report = qformats.export(folder, tmp_path / "out.gguf", format="gguf:q8_0")
    assert [(each.name, each.reason) for each in report.left_out] == [(HEAD, why)]
    assert "output.weight" not in {tensor.name for tensor in report.tensors}


@pytest.mark.parametrize(("name", "ties"), [("gpt2", True), ("llama", False)])
def test_what_config_leaves_open_is_asked_of_the_class(name, ties, tmp_path):
    folder = tiny.build(name, tmp_path / "model")
    home = HOMES.get(name, "model.embed_tokens.weight")
    change_weights(folder, lambda state: state.update({HEAD: state[home].clone()}))
    change_config(folder, tie_word_embeddings=None)
    assert (HEAD in qformats.open(folder).tensors) is not ties
    change_weights(folder, lambda state: state[HEAD].mul_(2))
    opened = qformats.open(folder)
    assert HEAD in opened.tensors
    assert opened.config["tie_word_embeddings"] is False
    assert opened.notes == ()


def test_equal_tensors_of_an_untied_model_both_stay(tmp_path):
    folder = tiny.build("llama", tmp_path / "model")
    change_weights(folder, lambda state: state.update({HEAD: state[HOMES["llama-tied"]].clone()}))
    assert HEAD in qformats.open(folder).tensors


@pytest.mark.parametrize("name", HOMES)
def test_the_head_is_the_embedding_if_only_it_is_stored(name, tmp_path):
    folder = tiny.build(name, tmp_path / "model")
    before = transformers_logits(folder)
    change_weights(folder, lambda state: state.update({HEAD: state.pop(HOMES[name])}))
    assert agree(transformers_logits(folder), before)
    assert agree(logits(qformats.load_model(folder, dtype="f32")), before)
    qformats.export(folder, tmp_path / "out.gguf", format="gguf:f32")
    back = qformats.open(tmp_path / "out.gguf")
    assert torch.equal(back.read(HOMES[name]), qformats.open(folder).read(HOMES[name]))


def test_a_bias_of_the_head_is_no_copy_of_anything(tmp_path):
    folder = tiny.build("llama-tied", tmp_path / "model")
    change_weights(folder, lambda state: state.update({"lm_head.bias": torch.ones(4)}))
    assert "lm_head.bias" in qformats.open(folder).tensors


def test_ties_of_the_text_model_within_another(tmp_path):
    """The key may be in either place; of the two tensors Transformers decides in the same way."""
    folder = tiny.build("llama-tied", tmp_path / "model")

    def change(state):
        names = list(state)
        state.update(
            {f"model.language_model.{name.removeprefix('model.')}": state.pop(name) for name in names}
        )
        state[HEAD] = state["model.language_model.embed_tokens.weight"] * 2

    change_weights(folder, change)
    text = config_of(folder)
    change_config(folder, model_type="llava", text_config=text, tie_word_embeddings=None)
    opened = qformats.open(folder)
    assert HEAD in opened.tensors
    assert opened.config["tie_word_embeddings"] is False
    assert opened.config["text_config"]["tie_word_embeddings"] is False
    change_weights(folder, lambda state: state[HEAD].div_(2))
    assert HEAD not in qformats.open(folder).tensors


def test_encoders_and_decoders_keep_what_is_stored(tmp_path):
    """Every tensor that their classes tie to another one."""
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "vocab_size": 64}
    model = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0))
    folder = tmp_path / "t5"
    model.save_pretrained(folder)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    state["lm_head.weight"] += 1
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    qformats.export(folder, tmp_path / "out", format="dense:f32")
    kept = load_file(tmp_path / "out" / WEIGHTS)
    assert kept.keys() == state.keys()
    assert all(torch.equal(kept[name], state[name]) for name in state)
    again = T5ForConditionalGeneration.from_pretrained(tmp_path / "out")
    assert torch.equal(again.lm_head.weight, state["lm_head.weight"])


def test_another_container_that_ties_what_differs_is_refused(apart, tmp_path):
    """A plugin's checkpoint may still say that they are one."""
    source = qformats.open(apart)
    source._config = source.config | {"tie_word_embeddings": True}
    with pytest.raises(CheckpointError, match=r"differs from .*, although the configuration ties them"):
        qformats.export(source, tmp_path / "out.gguf", format="gguf:f32")
    assert not (tmp_path / "out.gguf").exists()


def test_values_are_compared_to_the_last_row(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    shutil.copy(qformats.open("demo").path / "config.json", folder)
    first = torch.arange(6_000_000, dtype=torch.float32).reshape(3000, 2000)
    second = first.clone()
    second[-1, -1] += 1
    tensors = {"a": first, "b": second, "c": first.double(), "d": first.clone(), "e": first.t().contiguous()}
    save_file(tensors, folder / WEIGHTS)
    opened = qformats.open(folder).tensors
    same = {name for name in opened if same_values(opened["a"], opened[name])}
    assert same == {"a", "c", "d"}


SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
}
CLASSES = {
    "bart": {"d_model": 32, "decoder_layers": 1, "decoder_ffn_dim": 48, "decoder_attention_heads": 4},
    "biogpt": {},
    "falcon": {},
    "gpt_neox": {},
    "mamba": {"state_size": 4, "time_step_rank": 4},
}


@pytest.mark.parametrize("kind", CLASSES)
def test_whatever_a_class_ties(kind, tmp_path):
    """Each class has its own names; whichever of the two tensors are stored, and whether or not they are equal."""
    from transformers import AutoConfig, AutoModelForCausalLM

    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": True}
    config = AutoConfig.for_model(kind, **(SIZES | special | CLASSES[kind]))
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(config)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3 if weight.ndim > 1 else 0.1)
    model.save_pretrained(tmp_path / "model")
    saved = load_file(tmp_path / "model" / WEIGHTS)
    ((target, home),) = model.all_tied_weights_keys.items()
    embedding = saved.pop(home)
    other = torch.randn(embedding.shape) * 0.3
    for number, stored in enumerate(
        ({home: embedding, target: other}, {home: embedding, target: embedding.clone()}, {target: other})
    ):
        save_file(saved | stored, tmp_path / "model" / WEIGHTS, metadata={"format": "pt"})
        wanted = transformers_logits(tmp_path / "model")
        assert agree(logits(qformats.load_model(tmp_path / "model", dtype="f32")), wanted)
        qformats.export(tmp_path / "model", tmp_path / str(number), format="dense:f32")
        assert agree(transformers_logits(tmp_path / str(number)), wanted)
