"""A tensor whose shape a format cannot hold stays plain, is named with the reason, and the model still runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from cli.command import call
from models import glm, tokenizers

import qformats
from qformats.errors import ConfigError, ShapeError

FORMATS = {
    # 172 is not a multiple of 32, in rows (gate, up) or in columns (down).
    "gptq:4bit-32g": (
        172,
        {"gate_proj", "up_proj", "down_proj"},
        "172 (outputs|columns) are not a multiple of 32",
    ),
    "gptq:3bit-128g": (
        172,
        {"gate_proj", "up_proj", "down_proj"},
        "172 (outputs|columns) are not a multiple of 32",
    ),
    # An odd number of half bytes in a row.
    "glm:int4": (171, {"down_proj"}, "171 columns are an odd number"),
    # 171 x 66 codes are 5643 bytes, which are no whole number of bfloat16.
    "bitsandbytes:nf4-bf16": (
        171,
        {"gate_proj", "up_proj", "down_proj"},
        "packed bytes are not a whole number",
    ),
}


def llama(folder: Path, inner: int, hidden: int = 64) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    special = tokenizers.build("smollm", folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=special["size"],
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=2,
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=64,
        bos_token_id=special["bos"],
        eos_token_id=special["eos"],
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(5 if weight.ndim > 1 else 1)
    model.save_pretrained(folder)
    return folder


def hidden_size(format: str) -> int:
    return 66 if "bitsandbytes" in format else 64


@pytest.mark.parametrize("format", FORMATS)
def test_it_stays_plain_and_is_named(capsys, tmp_path, format):
    inner, plain, why = FORMATS[format]
    model, target = llama(tmp_path / "model", inner, hidden_size(format)), tmp_path / "out"
    planned = call(
        capsys, "export", model, "--format", format, "--quantizer", "rtn", "-o", target, "--dry-run"
    )
    assert planned.code == 0, planned.err
    written = call(capsys, "export", model, "--format", format, "--quantizer", "rtn", "-o", target)
    assert written.code == 0, written.err
    for text in (planned.out, written.out):
        assert re.search(rf"proj\.weight.*: f32, {format.partition(':')[2]} does not fit: .*{why}", text), (
            text
        )
    source, stored = qformats.open(model), qformats.open(target)
    for name, tensor in stored.tensors.items():
        if "_proj" not in name:
            continue
        kind = name.split(".")[-2]
        assert tensor.format == ("dense:f32" if kind in plain else format), name
        if kind in plain:
            assert torch.equal(stored.read(name), source.read(name))
    ids = torch.arange(12)[None]
    with torch.no_grad():
        found = qformats.load_model(target, device="cpu")(ids).logits
        expected = reference(model, {name: stored.read(name) for name in stored.tensors})(ids).logits
    assert torch.allclose(found, expected, atol=1e-3 * expected.abs().max())


def reference(model: Path, values: dict[str, torch.Tensor]):
    """Transformers' own model with the values that the folder holds."""
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    missing, unexpected = loaded.load_state_dict(values, strict=False)
    assert not missing
    assert not unexpected
    return loaded


def test_transformers_leaves_plain_modules_of_a_bitsandbytes_folder_plain(tmp_path):
    """Built, not run: bitsandbytes' own CPU kernel takes no layer of 66 outputs."""
    from transformers import AutoModelForCausalLM

    model, target = llama(tmp_path / "model", 171, 66), tmp_path / "out"
    qformats.export(model, target, format="bitsandbytes:nf4-bf16")
    loaded = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    source = qformats.open(model)
    for number, layer in enumerate(loaded.model.layers):
        for kind in ("gate_proj", "up_proj", "down_proj"):
            module = getattr(layer.mlp, kind)
            assert type(module) is torch.nn.Linear
            assert torch.equal(module.weight, source.read(f"model.layers.{number}.mlp.{kind}.weight"))
        assert type(layer.self_attn.q_proj).__name__ == "Linear4bit"


@pytest.mark.parametrize("rules", [{}, {r"layers\.1\.self_attn\.q_proj": "f32"}])
def test_transformers_is_told_which_modules_of_a_gptq_folder_are_quantized(tmp_path, rules):
    """Optimum replaces every linear module of a block whose name ends like a listed one; GPTQModel reads `dynamic`."""
    from transformers import AutoConfig, AutoModelForCausalLM

    model, target = llama(tmp_path / "model", 172), tmp_path / "out"
    qformats.export(model, target, format="gptq:4bit-32g", quantizer="rtn", tensor_types=rules)
    declared = json.loads((target / "config.json").read_text())["quantization_config"]
    assert declared == json.loads((target / "quantize_config.json").read_text())
    with torch.device("meta"):
        blank = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))
    linears = {
        f"model.layers.{name}"
        for name, module in blank.model.layers.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    ends = tuple(end for ends in declared["modules_in_block_to_quantize"] for end in ends)
    replaced = {name for name in linears if name.endswith(ends)}
    skipped = {
        name for name in linears if any(re.match(p.removeprefix("-:"), name) for p in declared["dynamic"])
    }
    tensors = qformats.open(target).tensors
    packed = {name for name in linears if tensors[f"{name}.weight"].format == "gptq:4bit-32g"}
    assert len(packed) == 8 - len(rules)
    assert replaced == packed == linears - skipped
    if not rules:
        assert set(ends) == {f"self_attn.{kind}_proj" for kind in "qkvo"}


@pytest.mark.filterwarnings("ignore:unquantized tensors have several dtypes")
def test_quantized_weights_are_decoded_where_they_do_not_fit(tmp_path):
    model = llama(tmp_path / "model", 96 + 4, 64)
    qformats.export(model, tmp_path / "q8_0.gguf", format="gguf:q8_0")
    report = qformats.export(
        tmp_path / "q8_0.gguf", tmp_path / "out", format="gptq:8bit-32g", quantizer="rtn"
    )
    found = {t.name.split(".")[-2]: (t.format, t.note) for t in report.tensors if ".1.mlp" in t.name}
    assert found["up_proj"][0].startswith("dense:")
    assert "100 outputs are not a multiple of 32" in found["up_proj"][1]


def test_calibration_passes_over_them(tmp_path):
    model = llama(tmp_path / "model", 172)
    (tmp_path / "text.txt").write_text("Once upon a time there was a king. " * 200)
    options = {"calibration": str(tmp_path / "text.txt")}
    report = qformats.export(
        model, tmp_path / "out", format="gptq:4bit-32g", quantizer="gptq", quantizer_options=options
    )
    assert report.types["gptq:4bit-32g"] == 8


def test_a_format_that_holds_no_tensor_is_an_error(tmp_path):
    model = llama(tmp_path / "model", 172, 66)
    with pytest.raises(ConfigError, match=r"gptq:4bit-32g.*holds a tensor.*4bit-32g does not fit: 66"):
        qformats.export(model, tmp_path / "out", format="gptq:4bit-32g", quantizer="rtn")
    assert not (tmp_path / "out").exists()


def test_a_container_that_cannot_leave_a_layer_plain_refuses(tmp_path):
    folder = glm.build("chatglm2", tmp_path / "model", intermediate_size=171)
    with pytest.raises(ShapeError, match="chatglm need this tensor in that format"):
        qformats.export(folder, tmp_path / "out", format="glm:int4", container="chatglm")
