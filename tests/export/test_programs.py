"""What other programs do not load of an output: said in plans, and refused before anything is written."""

from __future__ import annotations

import pytest
from models import tiny
from typer.testing import CliRunner

import qformats
from qformats.cli.app import app
from qformats.errors import ConfigError

CT = "compressed-tensors"


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny.build("llama", tmp_path_factory.mktemp("models") / "llama", "float16")


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.mark.parametrize(
    ("types", "told"),
    [
        ({"layers.1.self_attn.v_proj": "w8a16-32g"}, r"k_proj \(.*w4a16-32g\) and v_proj \(.*w8a16-32g\) of"),
        (
            {"layers.0.mlp.up_proj": "dense:f16"},
            r"gate_proj \(.*w4a16-32g\) and up_proj \(plain numbers\) of",
        ),
    ],
)
def test_neighbours_that_vllm_joins_share_a_format(types, told, llama, tmp_path):
    with pytest.raises(ConfigError, match=told):
        qformats.export(llama, tmp_path / "out", format=f"{CT}:w4a16-32g", tensor_types=types, program="vLLM")
    assert not list(tmp_path.iterdir())
    # The other programs load it, and without one that is only said.
    for program in ("transformers", None):
        target = tmp_path / str(program)
        report = qformats.export(llama, target, format=f"{CT}:w4a16-32g", tensor_types=types, program=program)
        said = [note for note in report.notes if note.startswith("vllm does not load this")]
        assert len(said) == (program is None)


def test_modules_with_a_format_of_their_own_are_no_neighbours(llama, tmp_path):
    types = {"down_proj|o_proj": "w8a16-32g", "mlp.(gate|up)": "dense:f16"}
    qformats.export(llama, tmp_path / "out", format=f"{CT}:w4a16-32g", tensor_types=types, program="vllm")


@pytest.mark.parametrize(
    ("format", "takes", "refuses"),
    [
        (f"{CT}:w4a16-32g", ("vllm", "transformers"), {"mlx": "does not know", "llama.cpp": "does not know"}),
        (f"{CT}:w3a16-32g", ("transformers",), {"vllm": "kernels for 4 and 8 bits"}),
        (f"{CT}:nvfp4", ("vllm", "transformers"), {"mlx": "does not know"}),
        ("gguf:q4_0", ("llama.cpp", "vllm"), {"mlx": "does not know gguf"}),
        ("gguf:nvfp4", ("llama.cpp",), {"vllm": "has no gguf:nvfp4"}),
        ("mlx:4bit-64g", ("mlx",), {"vllm": "does not know mlx", "llama.cpp": "it does not know mlx"}),
        ("modelopt:nvfp4", (), {"vllm": "scales of activations"}),
        ("glm:int4", (), {"transformers": "does not know glm"}),
    ],
)
def test_each_program_takes_its_formats(format, takes, refuses, llama):
    for program in takes:
        assert run("inspect", llama, "--plan", format, "--for", program).exit_code == 0
    for program, told in refuses.items():
        result = run("inspect", llama, "--plan", format, "--for", program)
        assert result.exit_code
        assert told in str(result.exception)


def test_what_only_qformats_loads_is_refused_for_others(llama, tmp_path):
    words = [
        "export",
        llama,
        "--format",
        "awq:4bit-32g",
        "--tensor-type",
        "embed_tokens=4bit-32g",
        "--dry-run",
    ]
    assert run(*words, "-o", tmp_path / "out").exit_code == 0
    result = run(*words, "-o", tmp_path / "out", "--for", "vllm")
    assert "embed_tokens is quantized, which qformats loads" in str(result.exception)
    assert "vllm or llama.cpp or transformers or mlx" in str(run(*words, "--for", "ollama").exception)
