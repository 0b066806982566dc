"""Folders with what Transformers holds in memory, experts stacked, are the same models as those it writes."""

from __future__ import annotations

import shutil

import pytest
import torch
from models.architectures import build
from models.records import forget
from oracles import hf
from oracles.llama_cpp import LlamaCpp
from safetensors.torch import load_file, save_file

import qformats
from qformats.errors import CheckpointError, ConfigError, UnsupportedModelError


def _as_in_memory(folder, other):
    """The same model with the names and stacks of Transformers' parameters."""
    shutil.copytree(folder, other)
    model = hf.load(folder)
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    state = {name: value.clone() for name, value in model.state_dict().items() if name not in tied}
    save_file(state, other / "model.safetensors", metadata={"format": "pt"})
    assert any("experts.gate_up_proj" in name for name in state)


@pytest.mark.parametrize(
    "name",
    ["mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3", "glm4_moe", "granitemoe", "gpt_oss"],
)
def test_both_forms_are_the_same_tensors(name, tmp_path):
    folder, memory = build(name, tmp_path / name), tmp_path / "memory" / name
    memory.parent.mkdir()
    _as_in_memory(folder, memory)
    one, other = qformats.open(folder), qformats.open(memory)
    assert one.tensors.keys() == other.tensors.keys()
    for key, tensor in one.tensors.items():
        assert torch.equal(tensor.dequantize(), other.tensors[key].dequantize()), key
        assert tensor.rows == 1 or torch.equal(
            tensor.read(1, tensor.rows).dequantize(), other.tensors[key].read(1, tensor.rows).dequantize()
        )
    # Those of gpt-oss are stacked on disk, too.
    assert any("that Transformers gives them in memory" in note for note in other.notes) == (
        name != "gpt_oss"
    )
    for path, file in ((folder, "one.gguf"), (memory, "other.gguf")):
        qformats.export(path, tmp_path / file, format="gguf:q8_0")
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "other.gguf").read_bytes()
    qformats.export(memory, tmp_path / "dense", format="dense:f32")
    assert (
        load_file(tmp_path / "dense" / "model.safetensors").keys()
        == load_file(folder / "model.safetensors").keys()
    )


@pytest.mark.parametrize("format", ["bitsandbytes:nf4", "gptq:4bit-32g", "glm:int8"])
def test_they_are_quantized_alike(format, tmp_path):
    folder, memory = build("mixtral", tmp_path / "mixtral"), tmp_path / "memory" / "mixtral"
    memory.parent.mkdir()
    _as_in_memory(folder, memory)
    packed = []
    for path, out in ((folder, tmp_path / "one"), (memory, tmp_path / "other")):
        qformats.export(path, out, format=format, quantizer="rtn")
        packed.append(load_file(out / "model.safetensors"))
    assert packed[0].keys() == packed[1].keys()
    assert all(torch.equal(value, packed[1][key]) for key, value in packed[0].items())


SIZES = {"gpt_oss": {}, "llama4": {"intermediate_size_mlp": 96}, "granitemoe": {}}
IDS = list(range(5, 45))


def _apart(name, state):
    """Matrices and biases of experts in the stacks of a folder, by the names that llm-compressor or vLLM give them."""
    found = {}
    for key, stack in state.items():
        owner, _, last = key.removesuffix(".weight").rpartition(".")
        for number, own in enumerate(stack if "experts" in owner or last.endswith("put_linear") else ()):
            if name == "granitemoe" and "block_sparse_moe" in owner:
                half = own.shape[0] // 2
                labels = {"w1": own[:half], "w3": own[half:]} if last == "input_linear" else {"w2": own}
                found |= {
                    f"{owner}.experts.{number}.{label}.weight": value for label, value in labels.items()
                }
            elif name == "llama4":
                gate, up = own.t().chunk(2)
                labels = {"gate_proj": gate, "up_proj": up} if "gate" in last else {"down_proj": own.t()}
                found |= {f"{owner}.{number}.{label}.weight": value for label, value in labels.items()}
            elif name == "gpt_oss":
                own, ending = own.t() if own.ndim == 2 else own, "bias" if "bias" in last else "weight"
                labels = (
                    {"gate_proj": own[0::2], "up_proj": own[1::2]} if "gate" in last else {"down_proj": own}
                )
                found |= {f"{owner}.{number}.{label}.{ending}": value for label, value in labels.items()}
    return found


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("gpt_oss", "gptq:4bit-32g"),
        ("llama4", "compressed-tensors:w4a16-32g"),
        ("llama4", "glm:int8"),
        ("granitemoe", "awq:4bit-32g"),
    ],
)
def test_quantized_stacks_become_a_matrix_each(name, format, tmp_path):
    folder = build(name, tmp_path / name, intermediate_size=64, **SIZES[name])
    plain = load_file(folder / "model.safetensors")
    matrices = _apart(name, plain)
    report = qformats.export(folder, tmp_path / "packed", format=format, quantizer="rtn")
    (told,) = [note for note in report.notes if "written one by one" in note]
    assert "Transformers' own class" in told
    packed = qformats.open(tmp_path / "packed")
    stored = load_file(tmp_path / "packed" / "model.safetensors")
    assert all(value.ndim < 3 for value in stored.values())
    assert matrices.keys() <= packed.tensors.keys()
    packer = qformats.packer(format)
    for key, value in matrices.items():
        if key.endswith("bias"):
            assert torch.equal(stored[key], value), key
        else:
            assert packed.tensors[key].format == format
            expected = packer.encode_reference(value.contiguous()).dequantize()
            assert torch.equal(packed.read(key), expected), key
    # Plain again, it is what the class reads.
    qformats.export(tmp_path / "packed", tmp_path / "plain", format="dense:f32")
    back = load_file(tmp_path / "plain" / "model.safetensors")
    assert {key: value.shape for key, value in back.items()} == {key: v.shape for key, v in plain.items()}
    reference = hf.log_probs(hf.load(tmp_path / "plain"), IDS)
    for loaded in (
        qformats.load_model(tmp_path / "packed", device="cpu"),
        qformats.load_model(folder, device="cpu", format=format, quantizer="rtn"),
    ):
        assert abs(hf.log_probs(loaded, IDS) - reference).max() < 1e-5
        assert all(values.ndim < 3 for values in loaded.parameters())
    qformats.export(tmp_path / "packed", tmp_path / "m.gguf", format="gguf:f32")
    with LlamaCpp(tmp_path / "m.gguf") as gguf:
        assert abs(gguf.log_probs(IDS) - reference).max() < 1e-4


def test_stacks_stay_where_no_matrix_is_quantized(tmp_path):
    folder = build("gpt_oss", tmp_path / "gpt_oss")
    plain = load_file(folder / "model.safetensors")
    rules = {r"experts": "f32"}
    report = qformats.export(folder, tmp_path / "out", format="bitsandbytes:nf4", tensor_types=rules)
    assert not [note for note in report.notes if "written one by one" in note]
    stored = load_file(tmp_path / "out" / "model.safetensors")
    stacks = {key: value for key, value in plain.items() if value.ndim == 3}
    assert stacks
    assert all(torch.equal(stored[key], value) for key, value in stacks.items())
    # Of one layer: then all of its experts are in a list, and those of others in stacks.
    rules = {r"layers\.0\..*experts\.2": "nf4", r"experts": "f32"}
    qformats.export(folder, tmp_path / "one", format="bitsandbytes:nf4", tensor_types=rules)
    stored = load_file(tmp_path / "one" / "model.safetensors")
    assert {key for key in stacks if key in stored} == {key for key in stacks if "layers.0." not in key}
    one, other = qformats.open(tmp_path / "one"), qformats.open(folder)
    assert one.tensors.keys() == other.tensors.keys()
    quantized = {key for key, tensor in one.tensors.items() if tensor.packer.quantizes and "expert" in key}
    assert all(".0." in key and ".experts.2." in key for key in quantized)
    assert len(quantized) == 3
    model = qformats.load_model(tmp_path / "one", device="cpu")
    qformats.export(tmp_path / "one", tmp_path / "plain", format="dense:f32")
    assert abs(hf.log_probs(model, IDS) - hf.log_probs(hf.load(tmp_path / "plain"), IDS)).max() < 1e-5


@pytest.mark.parametrize(
    ("format", "lists"),
    [("bitsandbytes:nf4", ("gate_up_projs", "down_projs")), ("gptq:4bit-32g", ("gate_up", "down"))],
)
def test_lists_of_other_programs_are_the_same_tensors(format, lists, tmp_path):
    """Those of unsloth and GPTQModel keep gate and up of gpt-oss in one matrix, their rows in turn."""
    folder = build("gpt_oss", tmp_path / "gpt_oss", intermediate_size=64)
    plain = load_file(folder / "model.safetensors")
    qformats.export(folder, tmp_path / "ours", format=format, quantizer="rtn")
    ours = load_file(tmp_path / "ours" / "model.safetensors")
    theirs = {key: value for key, value in ours.items() if "mlp.experts" not in key}
    packer = qformats.packer(format)
    for key, stack in plain.items():
        owner, _, last = key.rpartition(".")
        for number, own in enumerate(stack if "mlp.experts" in key else ()):
            module = f"{owner}.{lists[0 if 'gate' in last else 1]}.{number}"
            if "bias" in last:
                # GPTQModel writes biases beside each matrix, of zeros too.
                theirs[f"{module}.bias"] = torch.zeros_like(own) if number == 1 else own.clone()
                continue
            packed = packer.encode_reference(own.t().contiguous())
            fields = packed.fields | packer.fixed(packed.shape, "f32")
            theirs |= {f"{module}.{field}": value.clone() for field, value in fields.items()}
    if "gate_up_projs" in lists:
        for ending in ("weight", "bias"):
            for layer in range(4):
                router = theirs.pop(f"model.layers.{layer}.mlp.router.{ending}")
                theirs[f"model.layers.{layer}.mlp.router.linear.{ending}"] = router
    shutil.copytree(tmp_path / "ours", tmp_path / "theirs")
    save_file(theirs, tmp_path / "theirs" / "model.safetensors", metadata={"format": "pt"})
    forget(tmp_path / "theirs")
    one, other = qformats.open(tmp_path / "ours"), qformats.open(tmp_path / "theirs")
    assert one.tensors.keys() == other.tensors.keys()
    for key, tensor in one.tensors.items():
        expected = tensor.dequantize() * (not (".experts.1." in key and key.endswith("bias")))
        assert torch.equal(other.tensors[key].dequantize(), expected), key
        assert other.tensors[key].format == tensor.format
    model = qformats.load_model(tmp_path / "theirs", device="cpu")
    qformats.export(tmp_path / "theirs", tmp_path / "plain", format="dense:f32")
    assert abs(hf.log_probs(model, IDS) - hf.log_probs(hf.load(tmp_path / "plain"), IDS)).max() < 1e-5


def test_a_list_is_refused_for_a_program_that_loads_stacks(tmp_path):
    folder = build("gpt_oss", tmp_path / "gpt_oss", intermediate_size=64)
    with pytest.raises(
        ConfigError, match=r"experts\.0\.\w+\.weight, a matrix of one expert; expected stacks"
    ):
        qformats.export(folder, tmp_path / "out", format="bitsandbytes:nf4", program="transformers")
    assert not (tmp_path / "out").exists()
    rules = {"experts": "f32"}
    qformats.export(
        folder, tmp_path / "out", format="bitsandbytes:nf4", program="transformers", tensor_types=rules
    )


def test_a_list_that_lacks_a_matrix_is_no_model(tmp_path):
    folder = build("gpt_oss", tmp_path / "gpt_oss", intermediate_size=64)
    qformats.export(folder, tmp_path / "packed", format="bitsandbytes:nf4")
    stored = load_file(tmp_path / "packed" / "model.safetensors")
    lacking = {
        key: value for key, value in stored.items() if "layers.1.mlp.experts.2.up_proj.weight" not in key
    }
    save_file(lacking, tmp_path / "packed" / "model.safetensors", metadata={"format": "pt"})
    forget(tmp_path / "packed")
    for attempt in (
        lambda: qformats.export(tmp_path / "packed", tmp_path / "out", format="dense:f32"),
        lambda: qformats.load_model(tmp_path / "packed", device="cpu"),
        lambda: qformats.export(tmp_path / "packed", tmp_path / "m.gguf", format="gguf:q8_0"),
    ):
        with pytest.raises(CheckpointError, match=r"part 1 of expert 2|experts\.2\.up_proj"):
            attempt()
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def aria(tmp_path_factory):
    """A model of a type whose stacks nothing here takes apart."""
    from transformers import AriaTextConfig, AriaTextForCausalLM

    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = AriaTextConfig(vocab_size=128, **sizes, moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1)
    path = tmp_path_factory.mktemp("aria")
    AriaTextForCausalLM(config).save_pretrained(path)
    return path


def test_stacks_that_stay_plain_are_named(aria, tmp_path):
    report = qformats.export(aria, tmp_path / "out", format="bitsandbytes:nf4")
    (told,) = [note for note in report.notes if "keeps its experts stacked" in note]
    tensors = qformats.open(tmp_path / "out").tensors.values()
    stacked = sum(tensor.numel for tensor in tensors if len(tensor.shape) == 3)
    assert told.startswith(
        f"{100 * stacked / sum(tensor.numel for tensor in tensors):.0f} % of the weights stay f32:"
    )


def test_they_are_refused_where_they_were_to_be_quantized_while_loading(aria):
    refusal = r"found stacked experts, which hold \d+ % of the weights.* files hold such experts"
    with pytest.raises(UnsupportedModelError, match=refusal):
        qformats.load_model(aria, device="cpu", format="glm:int8")
