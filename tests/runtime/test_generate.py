"""``qformats generate``: the text of any format is that of its decoded weights, and comes while it is made."""

from __future__ import annotations

import json
import re
import select
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from cli.command import call, start
from models import smollm2
from oracles import hf
from oracles.llama_cpp import LlamaCpp

import qformats
from qformats.cli.generate import _Pieces, _Written
from qformats.runtime import tokenizer

PROMPT = "The king said"
COUNT = 8
SUMMARY = (
    r"qformats: loaded in [\d.]+ s; \d+ tokens read in [\d.]+ s; (\d+) tokens written, [\d.]+ tokens/s; "
    r"weights ([\d.]+ MB), peak memory [\d.]+ [MG]B \((\w+)\)\n"
)


@pytest.fixture(scope="module")
def words():
    return tokenizer(qformats.open("demo"))


def continuation(model, words, prompt: str, count: int) -> str:
    """What the reference implementation writes, up to the end of the text."""
    ids = words(prompt)["input_ids"]
    new = hf.greedy(model, ids, count)
    if words.eos_token_id in new:
        new = new[: new.index(words.eos_token_id)]
    text = words.decode(ids + new, skip_special_tokens=True)
    assert text.startswith(prompt)
    return text.removeprefix(prompt)


@pytest.fixture(scope="module", params=["gguf:q4_0", "gptq:4bit-128g", "bitsandbytes:nf4", "glm:int4"])
def exported(request, tmp_path_factory):
    """The demo model in a format: what was written, and Transformers' model of its decoded weights."""
    folder = tmp_path_factory.mktemp("demo")
    name = "demo.gguf" if request.param.startswith("gguf") else "demo"
    qformats.export("demo", folder / name, format=request.param, quantizer="rtn")
    qformats.export(folder / name, folder / "dense", format="dense:f32")
    return request.param, folder / name, hf.load(folder / "dense")


def test_text_is_that_of_the_decoded_weights(capsys, exported, words):
    format, path, reference = exported
    expected = continuation(reference, words, PROMPT, COUNT)
    result = call(capsys, "generate", path, PROMPT, "-n", str(COUNT), "--device", "cpu")
    assert (result.code, result.out) == (0, expected + "\n")
    found = re.fullmatch(SUMMARY, result.err)
    assert found, result.err
    assert found[3] == "cpu"
    # Packed in memory: the model has 20 MB as float32.
    assert float(found[2].split()[0]) < 7.5
    # Quantizing while loading gives the same model.
    how = ("--device", "cpu", "--format", format, "--quantizer", "rtn", "--json")
    again = call(capsys, "generate", "demo", PROMPT, "-n", str(COUNT), *how)
    assert (again.code, again.err) == (0, "")
    facts = json.loads(again.out)
    assert (facts["text"], facts["format"], facts["prompt"]) == (expected, format, PROMPT)
    assert facts["tokens"] <= COUNT
    assert facts["tokens_per_second"] > 0
    assert facts["weights_nbytes"] < facts["peak_nbytes"]


def test_plain_numbers(capsys, words):
    expected = continuation(hf.load(qformats.open("demo").path), words, PROMPT, COUNT)
    result = call(capsys, "generate", "demo", PROMPT, "-n", str(COUNT), "--device", "cpu")
    assert (result.code, result.out) == (0, expected + "\n")


def test_published_model_as_in_llama_cpp(capsys):
    path, prompt = smollm2.path(), "The capital of France is"
    with LlamaCpp(path) as llama:
        ids = llama.tokenize(prompt)
        text = llama.detokenize(ids + llama.greedy(ids, 5))
    result = call(capsys, "generate", path, prompt, "-n", "5", "--device", "cpu")
    assert result.code == 0
    assert prompt + result.out.removesuffix("\n") == text


def test_chat_template(capsys, words, tmp_path):
    """The message goes through the model's own template; the answer alone is printed."""
    folder = tmp_path / "chat"
    shutil.copytree(qformats.open("demo").path, folder)
    template = "{% for m in messages %}<{{ m.role }}> {{ m.content }}\n{% endfor %}<assistant>"
    (folder / "chat_template.jinja").write_text(template)
    asked = ("-n", str(COUNT), "--device", "cpu", "--json")
    chat = json.loads(call(capsys, "generate", folder, "Say yes.", "--chat", *asked).out)
    plain = json.loads(call(capsys, "generate", folder, "<user> Say yes.\n<assistant>", *asked).out)
    assert chat["prompt_tokens"] == plain["prompt_tokens"] > len(words("Say yes.")["input_ids"])
    assert chat["text"] == plain["text"]


@pytest.mark.parametrize("suffix", ["", ".gguf"])
def test_every_end_token_ends_the_text(capsys, words, tmp_path, suffix):
    ids = words(PROMPT)["input_ids"]
    folder = tmp_path / "model"
    shutil.copytree(qformats.open("demo").path, folder)
    new = hf.greedy(hf.load(folder), ids, COUNT)
    last = next(token for token in new[2:] if token not in new[:2])
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 2047, 2046, 2045, last]}))
    model = folder
    if suffix:
        model = tmp_path / f"model{suffix}"
        with pytest.warns(UserWarning, match=rf"will not stop at .*\({last}\)"):
            qformats.export(folder, model, format="gguf:f32")
    facts = json.loads(call(capsys, "generate", model, PROMPT, "-n", "40", "--device", "cpu", "--json").out)
    assert facts["tokens"] == new.index(last) + 1


@pytest.mark.parametrize("listed", [{}, {"eos_token_id": None}, {"eos_token_id": []}])
def test_ends_nowhere_where_transformers_does_not(listed, words, tmp_path, capsys):
    """A generation_config.json counts alone, even if it names no end."""
    folder = tmp_path / "model"
    shutil.copytree(qformats.open("demo").path, folder)
    ids = words(PROMPT)["input_ids"]
    config = json.loads((folder / "config.json").read_text())
    config["eos_token_id"] = hf.greedy(hf.load(folder), ids, 2)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps(listed))
    facts = json.loads(call(capsys, "generate", folder, PROMPT, "-n", "8", "--device", "cpu", "--json").out)
    assert facts["tokens"] == 8


def test_drawing_tokens(capsys):
    def text(*more: str) -> str:
        result = call(capsys, "generate", "demo", PROMPT, "-n", "5", "--device", "cpu", *more)
        assert result.code == 0, result.err
        return result.out

    hot = ("--temperature", "1.5")
    assert text(*hot, "--seed", "1") == text(*hot, "--seed", "1")
    assert len({text(*hot, "--seed", str(seed)) for seed in range(2)}) > 1
    # Of the likeliest tokens only the first is left.
    assert text(*hot, "--top-p", "0.0001", "--seed", "3") == text()


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_half_precision(capsys, dtype):
    result = call(capsys, "generate", "demo", PROMPT, "-n", "2", "--device", "cpu", "--dtype", dtype)
    assert result.code == 0
    assert result.out.strip()


def test_the_context_ends_the_text(capsys, words):
    """A prompt may fill the context but for a few tokens; then only those are made."""
    text = (qformats.open("demo").path / "heldout.txt").read_text()[:3000]
    limit = qformats.open("demo").config["max_position_embeddings"]
    ids = words(text, truncation=True, max_length=limit - 3)["input_ids"]
    prompt = words.decode(ids)
    used = len(words(prompt)["input_ids"])
    assert used == limit - 3
    facts = json.loads(call(capsys, "generate", "demo", prompt, "--device", "cpu", "--json").out)
    assert (facts["prompt_tokens"], facts["tokens"]) == (used, 3)
    refused = call(capsys, "generate", "demo", prompt + text[:200])
    assert (refused.code, refused.out) == (2, "")
    assert re.fullmatch(
        r"qformats: prompt: found \d+ tokens; expected fewer than the model's context of 512\.\n",
        refused.err.splitlines(keepends=True)[-1],
    )


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("./not-here", "x"), 3, "./not-here: no such file or folder"),
        (
            ("demo", "x", "--top-p", "0.9"),
            2,
            "--top-p: found 0.9; expected --temperature too: without it the likeliest token is always taken",
        ),
        (("demo", "x", "--dtype", "int8"), 2, "--dtype: found 'int8'; expected f32, f16 or bf16"),
        (("demo", "x", "--device", "toaster"), 2, "device: found 'toaster'"),
        (("demo", "x", "--device", "meta"), 2, "device: found 'meta'; expected cpu"),
        (("demo", "x", "--format", "nope"), 2, "no format 'nope'"),
        (("demo", "x", "--quantizer", "rtn"), 2, "--quantizer: found 'rtn'; expected --format"),
        (("demo", "x", "--chat"), 2, "--chat: found a model without a chat template"),
        (("demo", "x", "-O", "nope"), 2, "--option: found 'nope'"),
        (("demo", "x", "-n", "0"), 2, "greater than or equal to 1"),
        (("demo",), 2, "missing argument 'prompt'"),
    ],
)
def test_mistakes(capsys, args, code, message):
    result = call(capsys, "generate", *args)
    assert (result.code, result.out) == (code, "")
    assert message in re.sub(r"[\s│]+", " ", result.err)
    assert "Traceback" not in result.err


def test_empty_prompt_starts_a_text(capsys):
    facts = json.loads(call(capsys, "generate", "demo", "", "-n", "2", "--device", "cpu", "--json").out)
    assert facts["prompt_tokens"] == 1


def test_interrupted(tmp_path):
    """Text is there before the end; Ctrl-C leaves it and ends in one sentence."""
    with start("generate", "demo", "Once upon a time", "-n", "500", "--temperature", "1.2") as process:
        assert process.stdout
        assert process.stderr
        ready, _, _ = select.select([process.stdout], [], [], 120)
        assert ready
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out.strip()
    assert re.fullmatch(r"qformats: interrupted; \d+ tokens were written\n", err), err


class _Ids:
    """A tokenizer that gives every byte an id, and ids of control tokens above them."""

    def decode(self, ids, **_options):
        return bytes(i for i in ids if i < 256).decode("utf-8", "replace")


@pytest.mark.parametrize("step", [1, 2, 5])
def test_no_half_characters(capsys, step):
    """Every piece is whole characters, and together they are the text."""
    text = "naïve 🙂🚢 東京の灯台 — שלום\n"
    prompt = list(b"before")
    pieces = _Pieces(_Ids(), prompt, _Written(), shown=True)
    pieces.put(torch.tensor([prompt]))
    shown = []
    ids = [*text.encode(), 300]
    for at in range(0, len(ids), step):
        pieces.put(torch.tensor(ids[at : at + step]))
        shown.append(capsys.readouterr().out)
    pieces.end()
    assert "".join(shown) == pieces.text == text
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in shown)
    assert sum(map(bool, shown)) > len(text) / step / 2
    assert pieces.ids == ids


def test_a_text_that_stops_within_a_character(capsys):
    pieces = _Pieces(_Ids(), [], _Written(), shown=True)
    pieces.put(torch.tensor([[]]))
    for byte in "ab🙂".encode()[:-1]:
        pieces.put(torch.tensor([byte]))
    pieces.end()
    assert capsys.readouterr().out == pieces.text == "ab\N{REPLACEMENT CHARACTER}"


def test_help_is_light():
    code = (
        "import sys; sys.argv = ['qformats', 'generate', '--help']\n"
        "from qformats.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code\n"
        "assert not {'torch', 'numpy', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--max-new-tokens" in done.stdout


def test_what_a_model_writes_does_not_steer_the_terminal(capsys):
    _Written().show("one\n\ttwo\x1b[2J\x9b1m\r \U0001f469\u200d\U0001f4bb\u00a0é")
    assert capsys.readouterr().out == "one\n\ttwo\\x1b[2J\\x9b1m\\r \U0001f469\u200d\U0001f4bb\u00a0é"
