"""Which tensor gets which type: rules, roles, mixes and fallbacks, seen from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli.command import call
from models import tokenizers
from oracles.llama_cpp import LlamaCpp


@pytest.fixture(scope="session")
def narrow(tmp_path_factory) -> Path:
    """A llama whose rows have 48 or 80 weights; neither divides into blocks of 32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("models") / "narrow"
    special = tokenizers.build("smollm", folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=special["size"],
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        bos_token_id=special["bos"],
        eos_token_id=special["eos"],
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def types(capsys, model: Path, *args: str) -> dict[str, str]:
    """Types of all tensors of a plan."""
    arguments = ("export", model, "-f", "gguf", "-t", "q4_0", "-o", "x.gguf", "--dry-run", "--json", *args)
    result = call(capsys, *arguments)
    assert result.code == 0, result.err
    return {t["name"]: t["format"].removeprefix("gguf:") for t in json.loads(result.out)["tensors"]}


def error(capsys, model: Path, *args: str, code: int = 2) -> str:
    result = call(capsys, "export", model, "-f", "gguf", "-t", "q4_0", "-o", "x.gguf", "--dry-run", *args)
    assert (result.code, result.out) == (code, "")
    return result.err


def test_default_mix(capsys, llama, tied):
    found = types(capsys, llama)
    assert (found["token_embd.weight"], found["output.weight"]) == ("q4_0", "q8_0")
    assert found["blk.0.attn_q.weight"] == "q4_0"
    assert found["blk.0.attn_norm.weight"] == "f32"
    found = types(capsys, tied)
    assert found["token_embd.weight"] == "q8_0"
    assert "output.weight" not in found


def test_pure(capsys, llama, tied):
    assert set(types(capsys, llama, "--pure").values()) == {"q4_0", "f32"}
    assert types(capsys, llama, "--pure")["output.weight"] == "q4_0"
    assert types(capsys, tied, "--pure")["token_embd.weight"] == "q4_0"


@pytest.mark.parametrize(
    ("args", "untied", "tied_type"),
    [
        (("--output-tensor-type", "f16"), ("q4_0", "f16"), "f16"),
        (("--token-embedding-type", "q5_1"), ("q5_1", "q8_0"), "q5_1"),
        (("--output-tensor-type", "f16", "--token-embedding-type", "q5_1"), ("q5_1", "f16"), "q5_1"),
        (("--output-tensor-type", "f16", "--pure"), ("q4_0", "f16"), "f16"),
    ],
)
def test_roles(capsys, llama, tied, args, untied, tied_type):
    """On a tied model the embedding is the output: its own option goes first."""
    found = types(capsys, llama, *args)
    assert (found["token_embd.weight"], found["output.weight"]) == untied
    assert types(capsys, tied, *args)["token_embd.weight"] == tied_type


def test_first_rule_wins(capsys, llama):
    found = types(
        capsys,
        llama,
        *("--tensor-type", r"blk\.0\.attn=q8_0"),
        *("--tensor-type", "attn_[qk]=q5_0"),
        *("--tensor-type", "mlp.down_proj=f16"),
        *("--output-tensor-type", "q4_1", "--tensor-type", "^output.weight=Q5_1"),
    )
    assert found["blk.0.attn_q.weight"] == found["blk.0.attn_output.weight"] == "q8_0"
    assert (found["blk.1.attn_q.weight"], found["blk.1.attn_v.weight"]) == ("q5_0", "q4_0")
    assert found["blk.1.ffn_down.weight"] == "f16"
    assert found["output.weight"] == "q5_1"


@pytest.mark.parametrize("kind", ["q4_0", "f16", "bf16"])
def test_rules_leave_vectors_alone(capsys, llama, tmp_path, kind):
    """'attn' is also found in attn_norm; llama.cpp aborts the process on a norm that is not float32."""
    found = types(capsys, llama, "--tensor-type", f"attn={kind}")
    assert found["blk.0.attn_norm.weight"] == "f32"
    assert found["blk.0.attn_q.weight"] == kind
    target = tmp_path / "out.gguf"
    assert call(capsys, "export", llama, "-f", "gguf", "--tensor-type", f".*={kind}", "-o", target).code == 0
    with LlamaCpp(target) as model:
        assert len(model.greedy([1, 2, 3], 2)) == 2


@pytest.mark.parametrize(
    ("rules", "found"),
    [
        (["(=q8_0"], "a regular expression (missing ), unterminated subpattern at position 0)"),
        (
            ["attn_qq=q8_0"],
            "tensor-type: found 'attn_qq'; expected an expression that matches part of a tensor's name",
        ),
        (["attn_q"], "--tensor-type: found 'attn_q'; expected REGEX=TYPE"),
        (["=q8_0"], "expected REGEX=TYPE"),
        (["attn_q="], "expected REGEX=TYPE"),
        (["attn_q=q9_9"], "no format 'gguf:q9_9'. Did you mean 'gguf:q8_0', "),
        (["attn_q=iq3_s"], "found 'gguf:iq3_s'; expected one that can be written: f32, f16, bf16, q8_0"),
        (["norm=q8_0"], "is not one (vector)"),
        (["attn=q8_0", "attn_q=q4_1"], "tensors not matched by an earlier rule: the first rule wins"),
    ],
)
def test_useless_rules(capsys, llama, rules, found):
    assert found in error(capsys, llama, *(part for rule in rules for part in ("--tensor-type", rule)))


@pytest.mark.filterwarnings("ignore:unquantized tensors have several dtypes")
@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "F16"])
@pytest.mark.parametrize(
    "format", ["gguf:q4_0", "gptq:4bit-32g", "bitsandbytes:nf4", "glm:int4", "dense:f32"]
)
def test_plain_numbers_need_no_family(capsys, llama, format, kind):
    arguments = ("export", llama, "-f", format, "-o", "x.gguf", "--dry-run", "--json")
    result = call(capsys, *arguments, "--tensor-type", f"mlp={kind}")
    assert result.code == 0, result.err
    for tensor in json.loads(result.out)["tensors"]:
        if "mlp" in tensor["source_name"]:
            family = "gguf" if format.startswith("gguf") else "dense"
            assert tensor["format"] == f"{family}:{kind.lower()}"
        elif "_proj" in tensor["source_name"]:
            assert tensor["format"] == format


@pytest.mark.filterwarnings("ignore:unquantized tensors have several dtypes")
@pytest.mark.parametrize(
    ("option", "name"),
    [("--output-tensor-type", "lm_head"), ("--token-embedding-type", "model.embed_tokens")],
)
def test_plain_numbers_need_no_family_in_options_for_roles(capsys, llama, option, name):
    arguments = ("export", llama, "-f", "gptq:4bit-32g", "-o", "x", "--dry-run", "--json")
    result = call(capsys, *arguments, option, "bf16")
    assert result.code == 0, result.err
    found = {tensor["name"]: tensor["format"] for tensor in json.loads(result.out)["tensors"]}
    assert found[f"{name}.weight"] == "dense:bf16"


def test_a_misspelt_type_is_looked_for_in_the_family(capsys, llama):
    result = call(capsys, "export", llama, "-f", "gptq:4bit-32g", "-o", "x", "--tensor-type", "mlp=f33")
    assert result.code == 2
    assert "no format 'gptq:f33'" in result.err


def test_unknown_types(capsys, llama):
    assert "no format 'gguf:q9'" in error(capsys, llama, "--output-tensor-type", "q9")
    assert "can be written: f32" in error(capsys, llama, "--token-embedding-type", "iq2_xs")
    assert "no quantizer 'gptqq'. Did you mean 'gptq'? Installed: awq, gptq, rtn" in error(
        capsys, llama, "--quantizer", "gptqq"
    )


def test_rows_that_do_not_divide(capsys, narrow, tmp_path):
    target = tmp_path / "out.gguf"
    result = call(capsys, "export", narrow, "-f", "gguf:q4_0", "-o", target)
    assert result.code == 0
    assert "tensors          12: 9 f16, 3 f32" in result.out
    assert "f16, q4_0 does not fit: rows of 48 do not divide into blocks of 32" in result.out
    assert "f16, q4_0 does not fit: rows of 80 do not divide into blocks of 32" in result.out
    with LlamaCpp(target) as model:
        assert len(model.greedy([1, 2, 3], 2)) == 2


@pytest.mark.parametrize(
    ("asked", "taken"),
    [
        ("q2_k", "q4_0"),
        ("q3_k", "q4_0"),
        ("q4_k", "q5_0"),
        ("q5_k", "q5_1"),
        ("q6_k", "q8_0"),
        ("iq4_xs", "iq4_nl"),
        ("iq4_nl", "iq4_nl"),
    ],
)
def test_rows_that_do_not_divide_into_blocks_of_256_get_smaller_ones(capsys, llama, narrow, asked, taken):
    """What llama.cpp's quantizer takes instead (``tensor_type_fallback``)."""
    for model, expected in ((llama, f"gguf:{taken}"), (narrow, "gguf:f16")):
        arguments = ("export", model, "-f", f"gguf:{asked}", "--pure", "-o", "x.gguf", "--dry-run", "--json")
        plan = json.loads(call(capsys, *arguments).out)
        found = {t["format"] for t in plan["tensors"] if t["name"].startswith("blk.0.ffn_")}
        assert found == {expected, "gguf:f32"}


def test_too_large_for_half_precision(capsys, copy, tmp_path):
    from safetensors.torch import load_file, save_file

    state = load_file(copy / "model.safetensors")
    state["model.layers.1.mlp.up_proj.weight"][3, 5] = 70000
    save_file(state, copy / "model.safetensors", metadata={"format": "pt"})
    result = call(capsys, "export", copy, "-f", "gguf:f16", "-o", tmp_path / "out.gguf")
    assert result.code == 3
    assert f"{copy / 'model.safetensors'}: tensor 'model.layers.1.mlp.up_proj.weight'" in result.err
    assert "too large for f16" in result.err
    assert "7e+04" in result.err or "70000" in result.err
    assert not list(tmp_path.glob(".*"))
    rule = "layers.1.mlp.up_proj=bf16"
    arguments = ("export", copy, "-f", "gguf:f16", "-o", tmp_path / "out.gguf", "--tensor-type", rule)
    assert call(capsys, *arguments).code == 0
