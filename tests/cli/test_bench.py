"""``qformats bench``: speed, memory, and what the weights allow."""

import json

import pytest
import torch
from cli.command import call

import qformats
from qformats.comparing.speed import copy_speed, read_per_token

FEW = ("-p", "16", "-n", "4", "--repeats", "1", "--device", "cpu")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "demo-q4_0.gguf"
    qformats.export("demo", path, format="gguf:q4_0")
    return path


def test_models_side_by_side(capsys, small):
    result = call(capsys, "bench", "demo", small, *FEW)
    assert result.code == 0, result.err
    rows = result.out.splitlines()
    assert [word in rows[0] for word in ("model", "tokens/s", "memory", "of most")] == [True] * 4
    assert "f32" in rows[2]
    assert "gguf:q4_0" in rows[3]
    assert "16 tokens read, 4 generated" in " ".join(rows[4:])


def test_json_and_formats_that_are_tried(capsys, small):
    result = call(capsys, "bench", small, "-f", "q8_0", "-f", "nf4", *FEW, "--json")
    assert result.code == 0, result.err
    told = json.loads(result.out)
    assert [each["format"] for each in told["results"]] == ["gguf:q8_0", "bitsandbytes:nf4"]
    for each in told["results"]:
        speed = each["speed"]
        assert 0 < speed["bytes_per_token"] <= each["nbytes"]
        most = speed["copied_per_second"] / speed["bytes_per_token"]
        assert speed["most_tokens_per_second"] == pytest.approx(most)
        assert 0 < speed["tokens_per_second"] < most
        assert speed["prompt_tokens_per_second"] > 0
        assert speed["load_seconds"] > 0
    assert (told["prompt_tokens"], told["new_tokens"], told["repeats"]) == (16, 4, 1)
    assert told["machine"]["torch"] == torch.__version__


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (("nothere",), 3, "no such file or folder"),
        (("demo", "--dtype", "f8"), 2, "expected f32, f16 or bf16"),
        (("demo", "-f", "q4_7"), 2, "q4_7"),
        (("demo", "-n", "0"), 2, "greater than or equal to 1"),
    ],
)
def test_what_cannot_be_measured_is_said_at_once(capsys, more, code, said):
    result = call(capsys, "bench", *more)
    assert result.code == code
    assert said in result.err
    assert result.out == ""


def test_a_table_is_read_only_where_it_is_the_head(small):
    """Tied or not, each weight counts once, and a table that only gives rows does not."""
    model = qformats.load_model(small, device="cpu")
    table = model.get_input_embeddings()
    linear = sum(m.nbytes for m in model.modules() if type(m).__name__ == "QuantLinear")
    norms = sum(p.nbytes for n, p in model.named_parameters() if "norm" in n)
    assert read_per_token(model) == linear + norms
    head = model.get_output_embeddings()
    assert head.nbytes == (table.nbytes if head.is_tied else head.nbytes) > 0


def test_of_experts_those_that_are_chosen_count(tmp_path):
    from models.architectures import build

    folder = build("mixtral", tmp_path / "mixtral")
    model = qformats.load_model(folder, device="cpu", dtype="f32")
    config = model.config
    experts = sum(p.nbytes for n, p in model.named_parameters() if ".experts" in n)
    rest = sum(
        p.nbytes for n, p in model.named_parameters() if ".experts" not in n and "embed_tokens" not in n
    )
    share = config.num_experts_per_tok / config.num_local_experts
    assert 0 < share < 1
    assert read_per_token(model) == round(rest + share * experts)


def test_a_copy_is_as_fast_as_memory():
    """Between what any memory of this century does and what none does."""
    assert 1e9 < copy_speed("cpu") < 5e12
