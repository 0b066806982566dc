"""Nothing is dropped without a word: what an output does not hold is in the plan and the summary, and nothing else."""

import dataclasses
import json

import pytest
import torch
from cli.command import call
from models import chatglm, tiny
from safetensors.torch import load_file, save_file

import qformats
from qformats.cli.folded import folded
from qformats.errors import PluginError
from qformats.exporting.account import LeftOut, account
from qformats.folder import FolderCheckpoint, HuggingFaceFolder
from qformats.registry import registry

COMPUTED = "computed by every reader"


def _add(folder, **tensors):
    state = load_file(folder / "model.safetensors")
    save_file(state | tensors, folder / "model.safetensors", {"format": "pt"})


def _left_out(report):
    return {tensor.name: tensor.reason for tensor in report.left_out}


@pytest.fixture
def old(tmp_path):
    """A model with the rotary tables of old checkpoints, in every layer."""
    folder = tiny.build("llama-tied", tmp_path / "old")
    _add(folder, **{f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(8) for i in range(2)})
    return folder


def test_rotary_tables_are_named_in_plan_summary_and_record(old, tmp_path, capsys):
    names = [f"model.layers.{i}.self_attn.rotary_emb.inv_freq" for i in range(2)]
    line = f"left out, {COMPUTED}: model.layers.{{0..1}}.self_attn.rotary_emb.inv_freq (2)"
    told = [{"name": name, "reason": COMPUTED} for name in names]
    command = ("export", old, "--format", "gguf:f16", "-o", tmp_path / "out.gguf")
    assert line in call(capsys, *command, "--dry-run").out
    assert json.loads(call(capsys, *command, "--dry-run", "--json").out)["left_out"] == told
    assert line in call(capsys, *command).out
    assert json.loads((tmp_path / "out.gguf.qformats.json").read_text())["left_out"] == told
    assert line in call(capsys, "inspect", old, "--plan", "gguf:f16").out
    assert json.loads(call(capsys, "inspect", old, "--plan", "gguf:f16", "--json").out)["left_out"] == told


def test_masks_of_old_gpt2_checkpoints_are_named(tmp_path):
    folder = tiny.build("gpt2", tmp_path / "gpt2")
    masks = {f"transformer.h.{i}.attn.bias": torch.ones(1, 1, 256, 256) for i in range(2)}
    masks |= {f"transformer.h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(2)}
    _add(folder, **masks)
    report = qformats.export(folder, tmp_path / "out.gguf", format="gguf:f32")
    assert _left_out(report) == dict.fromkeys(masks, COMPUTED)


def test_a_copy_of_a_tied_weight_is_named(tmp_path):
    folder = tiny.build("llama-tied", tmp_path / "tied")
    _add(
        folder,
        **{"lm_head.weight": load_file(folder / "model.safetensors")["model.embed_tokens.weight"].clone()},
    )
    for format in ("gguf:q8_0", "dense:f16"):
        report = qformats.export(folder, tmp_path / format.replace(":", "-"), format=format)
        written = {tensor.name for tensor in report.tensors}
        assert ("lm_head.weight" in _left_out(report)) != bool({"lm_head.weight", "output.weight"} & written)


def test_factors_of_a_gguf_are_named_unless_they_stay(tmp_path):
    folder = tiny.build("llama-rope-llama3", tmp_path / "in")
    qformats.export(folder, tmp_path / "in.gguf", format="gguf:f16")
    report = qformats.export(tmp_path / "in.gguf", tmp_path / "dense", format="dense:f16")
    assert list(_left_out(report)) == ["rope_freqs.weight"]
    report = qformats.export(tmp_path / "in.gguf", tmp_path / "again.gguf", format="gguf:q8_0")
    assert report.left_out == ()


def test_frequencies_of_chatglm_are_named_unless_they_stay(tmp_path):
    chatglm.save(chatglm.model(), tmp_path / "in", bits=4)
    report = qformats.export(tmp_path / "in", tmp_path / "bf16", format="dense:bf16")
    assert list(_left_out(report)) == ["transformer.rotary_pos_emb.inv_freq"]
    report = qformats.export(tmp_path / "in", tmp_path / "int8", format="glm:int8")
    assert report.left_out == ()


@pytest.mark.parametrize(
    "format", ["gptq:4bit-32g", "gptq:4bit-32g-actorder", "bitsandbytes:nf4", "bitsandbytes:int8", "glm:int4"]
)
def test_every_field_of_a_quantized_folder_belongs_to_a_tensor(format, llama, tmp_path):
    qformats.export(llama, tmp_path / "q", format=format, quantizer="rtn")
    names = {name for file in (tmp_path / "q").glob("*.safetensors") for name in load_file(file)}
    source = qformats.open(tmp_path / "q")
    assert set(source.stored_names) == names
    assert set().union(*(tensor.names for tensor in source.tensors.values())) >= names
    for target in ("dense:f16", "gguf:q8_0"):
        report = qformats.export(source, tmp_path / target.replace(":", "-"), format=target)
        assert report.left_out == ()


@pytest.mark.parametrize("container", ["huggingface", "gguf"])
def test_a_writer_that_loses_a_tensor_is_blamed(container, llama):
    source, loader = qformats.open(llama), registry().loader(container)
    drafts = loader.draft(source, {})
    assert account(source, drafts, loader) == ()
    with pytest.raises(
        PluginError, match=rf"1 tensors are neither written nor left out .*{drafts[3].source.name}"
    ):
        account(source, [*drafts[:3], *drafts[4:]], loader)


def test_a_reader_that_loses_a_tensor_is_blamed(old, tmp_path):
    lost = "model.layers.1.self_attn.rotary_emb.inv_freq"

    class Losing(FolderCheckpoint):
        def __init__(self, path):
            super().__init__(path)
            del self.tensors[lost]

    for format in ("bitsandbytes:nf4", "gguf:q8_0"):
        with pytest.raises(PluginError, match=f"1 tensors are neither written nor left out .*{lost}"):
            qformats.export(Losing(old), tmp_path / "out", format=format)
    assert [file.name for file in tmp_path.iterdir()] == ["old"]


def test_half_a_tensor_is_not_the_whole(llama):
    """Queries, keys and values of one stored matrix: if one is written, the others are still missing."""
    source, loader = qformats.open(llama), HuggingFaceFolder()
    query, key = (f"model.layers.0.self_attn.{kind}_proj.weight" for kind in "qk")
    for name in (query, key):
        source.tensors[name] = dataclasses.replace(source.tensors[name], names=frozenset(["qkv"]))
    drafts = [draft for draft in loader.draft(source, {}) if draft.name != key]
    with pytest.raises(PluginError, match=key.replace(".", r"\.")):
        account(source, drafts, loader)


def test_what_is_written_after_all_is_not_listed(llama):
    source, loader = qformats.open(llama), HuggingFaceFolder()
    source.left_out["model.norm.weight"] = "no reason"
    assert account(source, loader.draft(source, {}), loader) == ()
    source.left_out["other"] = "a reason"
    source._stored.append("other")
    assert account(source, loader.draft(source, {}), loader) == (LeftOut("other", "a reason"),)


@pytest.mark.parametrize(
    ("names", "patterns"),
    [
        (["a.0.b", "a.1.b", "c"], ["a.{0..1}.b (2)", "c"]),
        (["h.0.x", "h.2.x", "h.5.x"], ["h.{0,2,5}.x (3)"]),
        ([f"h.{i}.x" for i in range(0, 12, 2)], ["h.{0,2,...,10}.x (6)"]),
        ([f"l.61.e.{i}.w" for i in range(3)], ["l.61.e.{0..2}.w (3)"]),
        ([f"l.{i}.e.{j}.w" for i in (0, 1) for j in range(3)], ["l.{0..1}.e.{0..2}.w (6)"]),
        (["conv1.w", "conv2.w"], ["conv1.w", "conv2.w"]),
        (["{x}.0", "{x}.1"], ["{x}.{0..1} (2)"]),
        ([], []),
    ],
)
def test_names_are_folded(names, patterns):
    assert folded(names) == patterns
