"""What headers, settings and the command line tell is said before torch and Transformers, which take seconds."""

from __future__ import annotations

import json
import subprocess
import sys

import gguf
import numpy as np
import pytest
from cli.command import environment
from models import tiny

RUN = """
import contextlib, io, json, sys
from qformats.cli import main
told = []
for line in json.loads(sys.stdin.read()):
    sys.argv = ["qformats", *line]
    err, code = io.StringIO(), 0
    with contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as stop:
            code = stop.code
    heavy = sorted({"torch", "transformers", "peft", "numba"} & set(sys.modules))
    told.append([code, err.getvalue(), heavy])
print(json.dumps(told))
"""
TOKENS = [bytes([value]).decode("latin-1") for value in range(33, 127)] + ["<|end|>"]


def _gguf(path, architecture, *, tensors=True, tokenizer=True):
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(1)
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(TOKENS))
    if tokenizer:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list(TOKENS)
        writer.add_token_types([1] * (len(TOKENS) - 1) + [3])
        writer.add_token_merges(["t h"])
        writer.add_eos_token_id(len(TOKENS) - 1)
    shapes = {"token_embd": (len(TOKENS), 32), "output_norm": (32,)}
    parts = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    shapes |= {f"blk.0.{part}": (32, 32) for part in parts}
    shapes |= dict.fromkeys(("blk.0.attn_norm", "blk.0.ffn_norm"), (32,))
    for name, shape in shapes.items() if tensors else ():
        writer.add_tensor(f"{name}.weight", np.ones(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    _gguf(folder / "unknown.gguf", "starfish")
    _gguf(folder / "vocabulary.gguf", "llama", tensors=False)
    _gguf(folder / "mute.gguf", "llama", tokenizer=False)
    tiny.build("llama", folder / "llama")
    config = json.loads((folder / "llama" / "config.json").read_text())
    for name, changes in {
        "bare": {},
        "strange": {"model_type": "starfish", "architectures": ["Star"]},
    }.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config | changes))
        (folder / name / "model.safetensors").hardlink_to(folder / "llama" / "model.safetensors")
    return folder


CASES = [
    ("generate unknown.gguf Hi", 3, "general.architecture: found 'starfish'"),
    ("generate vocabulary.gguf Hi", 3, "holds no tensors"),
    ("generate mute.gguf Hi", 3, "has no tokenizer"),
    ("generate bare Hi", 3, "has no tokenizer"),
    ("generate strange Hi", 3, "model to run: found 'starfish'"),
    ("generate nowhere Hi", 3, "no such file or folder"),
    ("generate llama Hi --format gguf:iq3_s", 2, "one that can be written"),
    ("generate llama Hi --format gguf:q4_0 --quantizer best", 2, "no quantizer 'best'"),
    ("generate llama Hi --format gptq -O none=1", 2, "option: found 'none'"),
    ("generate bare Hi --chat", 3, "has no tokenizer"),
    ("compare nowhere demo", 3, "no such file or folder"),
    ("compare demo nowhere", 3, "no such file or folder"),
    ("compare demo", 2, "one or more, or formats to try"),
    ("compare demo vocabulary.gguf", 3, "holds no tensors"),
    ("compare unknown.gguf demo --text demo", 3, "general.architecture: found 'starfish'"),
    ("compare bare llama --text demo --window 64", 3, "has no tokenizer"),
    ("compare llama llama --text demo --window 100000", 2, "the model's limit"),
    ("compare llama llama --text nowhere.txt --window 64", 3, "cannot be read"),
    ("compare llama llama --logits some.file", 2, "a text (--text) too"),
    ("compare llama --try gguf:q4_0 --dtype f33", 2, "one of f32, f16, bf16"),
    ("compare llama --try gguf:iq3_s", 2, "one that can be written"),
    ("compare llama --try gguf:q4_0 --quantizer best", 2, "no quantizer 'best'"),
    ("compare llama --try gguf:q4_0 -Q none=1", 2, "found 'none'"),
    ("compare llama --try gguf:q4_0 --quantizer gptq -Q device=gpu", 2, "-Q device: found 'gpu'"),
    ("compare llama llama -O none=1", 2, "option: found 'none'"),
    ("export llama --format gptq -o out -Q device=gpu", 2, "device: found 'gpu'"),
    ("export bare --format gptq -o out", 3, "has no tokenizer"),
    ("export llama --format gptq --calibration /nowhere -o out", 2, "calibration: found '/nowhere'"),
    ("export llama --format gptq --sequence-length 100000 -o out", 2, "the model's limit"),
    ("merge nowhere demo -o out", 3, "nowhere: "),
]


def test_nothing_heavy_is_imported_for_what_is_known_without_it(models):
    """One process for all: none of them may leave anything behind either."""
    there = sorted(models.iterdir())
    lines = [command.split() for command, _, _ in CASES]
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        input=json.dumps(lines),
        cwd=models,
        env=environment(HF_HUB_OFFLINE="1"),
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    for (command, code, message), told in zip(CASES, json.loads(done.stdout), strict=True):
        assert message in told[1], command
        assert [told[0], told[2]] == [code, []], (command, told[1])
        assert told[1].startswith("qformats: "), command
    assert sorted(models.iterdir()) == there


def test_what_libraries_log_is_not_the_users_business(tmp_path):
    """As bitsandbytes does when it is imported on some processors."""
    code = (
        "import logging, sys; from qformats.cli import main;"
        "sys.argv = ['qformats', 'formats', 'glm:int4'];"
        "import qformats.cli.formats as ours; plain = ours._facts;"
        "ours._facts = lambda *a: (logging.getLogger('a.library').warning('Failed to load a kernel'), plain(*a))[1];"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert (done.returncode, done.stderr) == (0, "")
    assert "glm:int4" in done.stdout
