"""What cannot be loaded is refused with one sentence; nothing is left to chance."""

import json
import re
import shutil

import gguf
import numpy as np
import pytest
import torch
from cli.command import call
from models import moe
from models.records import forget
from safetensors.torch import load_file, save_file

import qformats
from qformats.errors import CheckpointError, ConfigError, UnsupportedModelError, WeightsError
from qformats.runtime import tokenizer


def changed(folder, target, change):
    """A copy of a folder with other tensors."""
    shutil.copytree(folder, target)
    content = load_file(target / "model.safetensors")
    change(content)
    save_file(content, target / "model.safetensors", metadata={"format": "pt"})
    return forget(target)


def test_a_missing_tensor(exported, tmp_path):
    name = "model.layers.1.mlp.up_proj.weight"
    folder = changed(exported.model("llama"), tmp_path / "m", lambda content: content.pop(name))
    with pytest.raises(CheckpointError, match=f"lacks {name}, which LlamaForCausalLM needs"):
        qformats.load_model(folder, device="cpu")


def test_a_missing_packed_tensor(exported, tmp_path):
    def change(content):
        for key in [key for key in content if key.startswith("model.layers.0.mlp.down_proj.")]:
            del content[key]

    folder = changed(exported("llama", "gptq:4bit-64g"), tmp_path / "m", change)
    with pytest.raises(CheckpointError, match=r"lacks model\.layers\.0\.mlp\.down_proj\.weight"):
        qformats.load_model(folder, device="cpu")


def test_a_missing_expert(tmp_path):
    folder = moe.build("mixtral", tmp_path / "in")
    name = next(key for key in load_file(folder / "model.safetensors") if ".experts.2.w3" in key)
    folder = changed(folder, tmp_path / "m", lambda content: content.pop(name))
    with pytest.raises(CheckpointError, match=r"lacks part 1 of expert 2 of .*gate_up_proj \(1 matri"):
        qformats.load_model(folder, device="cpu")


def test_an_unknown_tensor(exported, tmp_path):
    def change(content):
        content["model.layers.0.self_attn.k_norm.weight"] = torch.zeros(64)

    folder = changed(exported.model("llama"), tmp_path / "m", change)
    with pytest.raises(CheckpointError, match=r"k_norm\.weight': is not known to LlamaForCausalLM"):
        qformats.load_model(folder, device="cpu")


def test_matrices_of_an_adapter(exported, tmp_path):
    def change(content):
        content["model.layers.0.self_attn.q_proj.lora_A.weight"] = torch.zeros(4, 64)

    folder = changed(exported.model("llama"), tmp_path / "m", change)
    with pytest.raises(CheckpointError, match=r"q_proj\.lora_A\.weight': belongs to an adapter"):
        qformats.load_model(folder, device="cpu")


def test_a_tensor_that_every_model_computes_is_ignored(exported, tmp_path):
    def change(content):
        content["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)

    folder = changed(exported.model("llama"), tmp_path / "m", change)
    assert qformats.load_model(folder, device="cpu").config.model_type == "llama"


def test_a_tensor_of_another_shape(exported, tmp_path):
    name = "model.layers.0.self_attn.q_proj.weight"

    def change(content):
        content[name] = content[name][:32].clone()

    folder = changed(exported.model("llama"), tmp_path / "m", change)
    with pytest.raises(
        CheckpointError, match=rf"{name}': shape \(32, 64\); expected \(64, 64\), from the configuration"
    ):
        qformats.load_model(folder, device="cpu")


def test_models_that_nothing_has_a_class_for(exported, tmp_path, capsys):
    strange = shutil.copytree(exported.model("llama"), tmp_path / "strange")
    config = json.loads((strange / "config.json").read_text())
    (strange / "config.json").write_text(json.dumps(config | {"model_type": "never-heard-of"}))
    told = r"model to run: found 'never-heard-of'.*no code to run them"
    with pytest.raises(UnsupportedModelError, match=told):
        qformats.load_model(strange, device="cpu")
    # Said before anything else that is missing: no tokenizer would help.
    for file in strange.glob("tokenizer*"):
        file.unlink()
    refused = call(capsys, "generate", strange, "Once")
    assert re.search(told, " ".join(refused.err.split()))
    with pytest.raises(UnsupportedModelError, match=told):
        qformats.compare(strange, strange, text="demo")
    folder = shutil.copytree(exported.model("llama"), tmp_path / "odd")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_attention_heads": 0}))
    with pytest.raises(UnsupportedModelError, match=r"model to run: found llama \(.*Error"):
        qformats.load_model(folder, device="cpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda:99"}, "device: found 'cuda:99'; expected cpu"),
        ({"device": "nonsense"}, "device: found 'nonsense'"),
        ({"device": "meta"}, "device: found 'meta'; expected cpu"),
        ({"device": "mps"}, "device: found 'mps'; expected cpu"),
        ({"device": torch.device("cpu", 1)}, "device: found 'cpu:1'; expected cpu"),
        ({"dtype": "int8"}, "dtype: found 'i8'; expected one of f32, f16, bf16"),
        ({"dtype": "f64"}, "dtype: found 'f64'; expected one of f32, f16, bf16"),
        ({"dtype": "half-precision"}, "dtype: found 'half-precision'"),
    ],
)
def test_options_that_are_not_possible(options, message, exported):
    with pytest.raises(ConfigError, match=message):
        qformats.load_model(exported.model("llama"), **{"device": "cpu", **options})


def test_packed_models_are_not_saved_as_if_they_were_plain(exported, tmp_path):
    model = qformats.load_model(exported("llama", "gguf:q4_0"), device="cpu")
    with pytest.raises(ConfigError, match=r"save_pretrained.*Use qformats\.export"):
        model.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_packed_embeddings_are_not_resized(exported):
    """Transformers would copy the codes of the old rows into new ones."""
    model = qformats.load_model(exported("llama", "gguf:q4_0"), device="cpu")
    table = model.get_input_embeddings()
    with pytest.raises(ConfigError, match=r"resize_token_embeddings: found \d+; .*Resize the unquantized"):
        model.resize_token_embeddings(table.num_embeddings + 2)
    # What asks for no other size gets what it asked for.
    assert model.resize_token_embeddings() is table
    assert model.resize_token_embeddings(table.num_embeddings) is table


def test_plain_embeddings_of_a_packed_model_are_resized(exported):
    model = qformats.load_model(exported("llama", "gptq:4bit-64g"), device="cpu")
    rows = model.get_input_embeddings().num_embeddings + 2
    assert model.resize_token_embeddings(rows, mean_resizing=False).num_embeddings == rows
    assert model(torch.tensor([[rows - 1]])).logits.shape == (1, 1, rows)


def test_quantized_weights_without_a_packed_home_are_named(exported, tmp_path):
    """A router that somebody quantized: the model's class computes with it as a plain parameter."""
    source = moe.build("mixtral", tmp_path / "in")
    rules = {r"mlp\.gate|block_sparse_moe\.gate": "int8"}
    qformats.export(source, tmp_path / "out", format="glm:int8", tensor_types=rules)
    with pytest.warns(UserWarning, match=r"mlp\.gate and 1 more \(.* %.*kept as plain numbers, because"):
        model = qformats.load_model(tmp_path / "out", device="cpu")
    notes = [weight.note for weight in model.qformats_report.weights if weight.name.endswith("gate")]
    assert len(notes) == 2
    assert "neither a linear layer nor an embedding" in notes[0]


def test_tokenizers_that_are_not_there(exported, tmp_path):
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        tokenizer(qformats.open(moe.build("mixtral", tmp_path / "in")))
    folder = shutil.copytree(exported.model("llama"), tmp_path / "settings")
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "tokenizer.json").unlink(missing_ok=True)
    with pytest.raises(
        CheckpointError, match=r"has only the settings of a tokenizer; expected tokenizer\.json"
    ):
        tokenizer(qformats.open(folder))
    folder = shutil.copytree(exported.model("llama"), tmp_path / "broken")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(UnsupportedModelError, match="tokenizer: found"):
        tokenizer(qformats.open(folder))


def test_a_scale_that_is_not_a_number_is_refused(exported, tmp_path):
    """What the model says need not show it: attention may hide a NaN."""
    path = exported("llama", "gguf:q8_0")
    content = bytearray(path.read_bytes())
    reader = gguf.GGUFReader(path)
    (tensor,) = (each for each in reader.tensors if each.name == "blk.0.attn_q.weight")
    content[tensor.data_offset : tensor.data_offset + 2] = np.float16(np.nan).tobytes()
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(content)
    with pytest.raises(
        WeightsError, match=r"bad\.gguf: tensor 'model\.layers\.0\.self_attn\.q_proj\.weight'"
    ):
        qformats.load_model(bad, device="cpu")
    qformats.load_model(path, device="cpu")
