"""`qformats compare --tasks`: the demo model and small GLMs, from the command line to the page."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
from importlib.resources import files
from pathlib import Path

import pytest
import sentencepiece as spm
import torch
from cli.command import call
from models import glm_goldens
from safetensors.torch import load_file

import qformats
from qformats.comparing.loaded import LoadedModel
from qformats.comparing.report import CompareReport, Finding
from qformats.comparing.tasks.beams import search
from qformats.comparing.tasks.reading import evaluation_of
from qformats.comparing.text import Tokenizer
from qformats.errors import ConfigError
from qformats_glm.models import ChatGLM6BModel

ICE_TEXT = Path(__file__).parents[1] / "golden" / "glm_tokenizers" / "ice_text.model"
TEXT = files("qformats").joinpath("demo", "heldout.txt").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A text, and passages of which the demo model knows some."""
    folder = tmp_path_factory.mktemp("texts")
    (folder / "ptb.txt").write_text(TEXT[:4000])
    sentences = [sentence for sentence in TEXT.replace("\n", " ").split(". ") if len(sentence.split()) > 4]
    endings = [f"{sentence.rsplit(' ', 1)[0]} of the" for sentence in sentences[:10]]
    (folder / "lambada.txt").write_text("\n".join([*sentences[:30], *endings]))
    return folder


def given(texts):
    return ["--text-file", f"ptb={texts / 'ptb.txt'}", "--text-file", f"lambada={texts / 'lambada.txt'}"]


@torch.no_grad()
def test_the_table_of_the_demo_model(texts, tmp_path, capsys):
    outputs = {kind: tmp_path / f"report.{kind}" for kind in ("json", "csv", "html")}
    written = [part for kind, file in outputs.items() for part in (f"--{kind}", file)]
    tasks = ["--tasks", "lambada,ptb", *given(texts), "--task-window", "256", "--task-step", "64"]
    done = call(capsys, "compare", "demo", "--try", "gguf:q8_0", "--try", "gguf:q4_0", *tasks, *written)
    assert done.code == 0, done.err
    assert "Only weights are compared" not in done.out
    for said in (
        "over base",
        "lambada: last words found: 40 passages",
        "of 256 (step 64)",
        "left to right: causal",
    ):
        assert said in done.out, said

    data = json.loads(outputs["json"].read_text())
    report = CompareReport.from_dict(data)
    assert report.to_dict() == data
    lambada, ptb = report.base.tasks["lambada"], report.base.tasks["ptb"]

    # Each by itself, with Transformers' own means.
    model, tokenizer = qformats.load_model("demo"), qformats.load_tokenizer("demo")
    right = 0
    for line in (texts / "lambada.txt").read_text().splitlines():
        context, word = line.strip().rsplit(maxsplit=1)
        whole, known = (
            tokenizer(part, add_special_tokens=False).input_ids for part in (f"{context} {word}", context)
        )
        beginning = tokenizer("").input_ids
        logits = model(torch.tensor([[*beginning, *whole]])).logits[0, len(beginning) + len(known) - 1 : -1]
        right += logits.argmax(-1).tolist() == whole[len(known) :]
    assert 0 < right < 40
    assert lambada.value.value == right / 40
    assert lambada.windows == 40

    text = (texts / "ptb.txt").read_text()
    ids = tokenizer(text, add_special_tokens=False).input_ids
    loss = 0.0
    beginning = tokenizer("").input_ids
    scored = 0
    for start in range(0, len(ids), 64):
        part = ids[start : start + 255]
        new = part if not start else part[191:]
        if not new:
            break
        inputs = torch.tensor([[*beginning, *part]])
        logits = model(inputs).logits[0, -len(new) - 1 : -1]
        if len(beginning) + len(part) - len(new) == 0:
            new, logits = new[1:], model(inputs).logits[0, :-1]
        loss += float(torch.nn.functional.cross_entropy(logits, torch.tensor(new), reduction="sum"))
        scored += len(new)
    assert ptb.tokens == scored
    words = len(text.strip().split(" "))
    assert ptb.value.value == pytest.approx(math.exp(loss / words), rel=1e-4)
    assert ptb.nats_per_word == pytest.approx(loss / words, rel=1e-4)
    assert [task.words for task in report.tasks] == [0, words]

    q8, q4 = report.models
    assert abs(q8.tasks["ptb"].against.log_ratio.value) < abs(q4.tasks["ptb"].against.log_ratio.value)
    assert q4.tasks["ptb"].against.finding in Finding
    rows = list(csv.DictReader(outputs["csv"].read_text().splitlines()))
    assert float(rows[2]["tasks.ptb.value.value"]) == q4.tasks["ptb"].value.value
    assert rows[2]["tasks.ptb.against.finding"] == q4.tasks["ptb"].against.finding.value
    assert rows[0]["tasks.ptb.against.finding"] == ""
    page = outputs["html"].read_text()
    for said in (
        "Published tests",
        "Penn Treebank",
        "each 64 further",
        q4.tasks["ptb"].against.finding.value,
    ):
        assert said in page, said
    assert "The models were not run" not in page


def test_a_model_alone_has_a_table_too(texts, capsys):
    done = call(capsys, "compare", "demo", "--tasks", "ptb", *given(texts)[:2], "--task-limit", "2")
    assert done.code == 0, done.err
    assert "in 2 windows of 512 (step 64), of the beginning of" in done.out
    assert "over base" not in done.out


def test_tasks_and_a_text_in_one_run(texts, tmp_path):
    """Also where the base's predictions are known, so that it is loaded for its tasks alone."""
    for _ in range(2):
        report = qformats.compare(
            "demo",
            try_="gguf:q4_0",
            text="demo",
            window=64,
            windows=2,
            logits=tmp_path / "logits",
            tasks="ptb",
            text_files={"ptb": str(texts / "ptb.txt")},
            task_window=128,
            task_limit=5,
        )
        assert report.models[0].behaviour.against is not None
        assert report.base.tasks["ptb"].windows == report.models[0].tasks["ptb"].windows == 5
        assert report.tasks[0].shortened


def test_the_part_of_a_text_is_a_text_of_its_own(texts, tmp_path):
    """The first windows are what they would be if the file ended there; its words are counted, no others."""
    whole = {"tasks": "ptb", "task_window": 128, "task_limit": 4}
    short = qformats.compare("demo", text_files={"ptb": str(texts / "ptb.txt")}, **whole)
    used = short.tasks[0]
    assert used.shortened
    (tmp_path / "part.txt").write_text((texts / "ptb.txt").read_text()[: used.characters])
    again = qformats.compare("demo", text_files={"ptb": str(tmp_path / "part.txt")}, **whole)
    assert not again.tasks[0].shortened
    assert again.base.tasks == short.base.tasks
    assert again.tasks[0].words == used.words


@pytest.fixture(scope="module")
def chatglm(tmp_path_factory):
    """ChatGLM-6B in plain numbers, int8 and int4."""
    folder = tmp_path_factory.mktemp("chatglm")
    for bits in (0, 8, 4):
        made = glm_goldens.chatglm_6b(folder / f"m{bits}", bits)
        shutil.copyfile(ICE_TEXT, made / "ice_text.model")
    return folder


def blank_filling_loss(model, ids, window, step, blank, begin):
    """Sum of losses, as the definition says it: windows one by one."""
    total = 0.0
    count = math.ceil(max(len(ids) - (window - 1), 0) / step) + 1
    for number in range(count):
        part = ids[number * step : number * step + window - 1]
        known = 0 if number == 0 else window - 1 - step
        read = [*part[:known], blank, begin, *part[known:-1]]
        logits = model(torch.tensor([read])).logits[0, known + 1 :]
        total += float(torch.nn.functional.cross_entropy(logits, torch.tensor(part[known:]), reduction="sum"))
    return total, count


@torch.no_grad()
def test_chatglm_fills_blanks(chatglm, tmp_path, capsys):
    text = TEXT[:700]
    (tmp_path / "ptb.txt").write_text(text)
    options = ["--tasks", "ptb", "--text-file", f"ptb={tmp_path / 'ptb.txt'}", "--task-window", "64"]
    models = [chatglm / "m0", chatglm / "m8", chatglm / "m4"]
    done = call(capsys, "compare", *models, *options, "--json", tmp_path / "report.json")
    assert done.code == 0, done.err
    assert "blank filling: a context that sees all of itself, [gMASK] <sop>" in done.out
    report = CompareReport.from_dict(json.loads((tmp_path / "report.json").read_text()))
    for path, found in zip(models, (report.base, *report.models), strict=True):
        model, tokenizer = qformats.load_model(path), qformats.load_tokenizer(path)
        ids = tokenizer(text, add_special_tokens=False).input_ids
        loss, count = blank_filling_loss(model, ids, 64, 8, 401, 404)
        assert count > 10
        result = found.tasks["ptb"]
        assert (result.reading, result.windows, result.tokens) == ("blank filling", count, len(ids))
        assert result.nats_per_word == pytest.approx(loss / len(text.strip().split(" ")), rel=1e-5)
    assert len({found.tasks["ptb"].nats_per_word for found in (report.base, *report.models)}) == 3
    # Random weights: no word is likely, and perplexities end at exp(20).
    assert report.base.tasks["ptb"].capped
    assert "over 4.85e+08" in done.out


def test_names_of_special_tokens_in_a_text_are_words(chatglm, tmp_path):
    """As in upstream's tokenizer: Penn Treebank has ``<unk>``, and a page may be about ``[gMASK]``."""
    opened = qformats.open(chatglm / "m0")
    tokenizer = Tokenizer(opened)
    assert tokenizer.ids("the [gMASK] of") != tokenizer.literal("the [gMASK] of")
    piece = spm.SentencePieceProcessor(model_file=str(ICE_TEXT))
    assert tokenizer.literal("the [gMASK] of") == piece.encode("the [gMASK] of")
    (tmp_path / "page.txt").write_text("the [gMASK] of [MASK] is one")
    report = qformats.compare(chatglm / "m0", tasks="page", text_files={"page": str(tmp_path / "page.txt")})
    assert report.base.tasks["page"].tokens == len(piece.encode("the [gMASK] of [MASK] is one"))
    demo = Tokenizer(qformats.open("demo"))
    name = "<|endoftext|>"
    assert len(demo.ids(name)) == 1 < len(demo.literal(name))
    assert demo.text(demo.literal(name)) == name


def test_chatglm_searches_for_last_words(chatglm, tmp_path):
    """What the model says itself is right; another word is not."""
    opened = qformats.open(chatglm / "m0")
    tokenizer = Tokenizer(opened)
    rule = evaluation_of(opened, tokenizer)
    how = rule.search(tokenizer.ids)
    assert (how.beams, how.tokens, how.ngram, how.length_penalty, how.multiple) == (16, 5, 3, 1.0, 32)
    assert how.ends == (405,)
    assert {tokenizer.ids(mark)[0] for mark in "!?" if len(tokenizer.ids(mark)) == 1} <= {*how.forbidden}
    runner = LoadedModel(opened, torch.device("cpu"), torch.float32)
    passages = []
    for sentence in TEXT.replace("\n", " ").split(". "):
        context = sentence.strip()[:60]
        if len(context) < 40:
            continue
        (answers,) = search(runner, [rule.question(tokenizer.ids(context))], how, lambda count: None)
        said = rule.answer([tokenizer.text(beam).strip() for beam in answers])
        if said and said == tokenizer.text(tokenizer.ids(said)).strip():
            passages.append(f"{context} {said}")
        if len(passages) == 6:
            break
    wrong = [passage.rsplit(" ", 1)[0] + " otherwise" for passage in passages[:2]]
    (tmp_path / "lambada.txt").write_text("\n".join([*passages, *wrong]))
    report = qformats.compare(
        chatglm / "m0",
        chatglm / "m4",
        tasks=["lambada"],
        text_files={"lambada": str(tmp_path / "lambada.txt")},
    )
    found = report.base.tasks["lambada"]
    assert (found.value.value, found.windows, found.tokens) == (6 / 8, 8, 0)
    assert report.models[0].tasks["lambada"].against is not None


def test_the_answer_is_the_word_before_a_mark():
    rule = ChatGLM6BModel().evaluation({})
    assert rule.answer(["the cat sat", "dog , and", "cow ."]) == "dog"
    assert rule.answer(["the cat sat", "dog and"]) == "the"
    assert rule.answer([""]) == ""
    how = rule.search(lambda text: [5, ord(text)] if text in ",." else [ord(text)])
    # The published ids of GLM-130B, without the 20000 of images.
    assert {68, 126010, 126337, ord("!")} <= {*how.forbidden}
    openings = {*how.openings}
    assert {(26010,), (126337,), (5, ord(",")), (5, ord(".")), (ord("!"),), (ord("~"),)} <= openings
    assert not {(5,), (ord(","),)} & openings
    assert 5 not in how.forbidden, "the beginning of punctuation that is two tokens may stand anywhere"
    assert 20068 in ChatGLM6BModel().evaluation({"vocab_size": 150528}).search(lambda text: [1]).forbidden


@torch.no_grad()
def test_glm_130b_from_its_ranks(tmp_path):
    """Ranks with ``ice_text.model`` beside them; int8 and int4 are tried on them."""
    generator = torch.Generator().manual_seed(7)
    weights = load_file(glm_goldens.FILES / "glm-130b" / "model.safetensors")
    name = "transformer.word_embeddings.weight"
    # Ids of text come after 20000 of images.
    weights[name] = torch.randn(20768, weights[name].shape[1], generator=generator).half() / 8
    ranks = tmp_path / "ranks"
    (ranks / "300").mkdir(parents=True)
    (ranks / "latest").write_text("300")
    for rank in range(2):
        module = {key: glm_goldens._share(key, value, rank, 2) for key, value in weights.items()}
        torch.save({"module": module}, ranks / "300" / f"mp_rank_{rank:02d}_model_states.pt")
    ids = {"mask": 20400, "gmask": 20401, "smask": 20402, "bos": 20404, "pad": 20003}
    told = {f"{key}_token_id": value for key, value in ids.items()} | {"eos_token_id": [20405, 20002]}
    (ranks / "model_config.json").write_text(json.dumps({"num_attention_heads": 4, **told}))
    shutil.copyfile(ICE_TEXT, ranks / "ice_text.model")
    text = TEXT[:1500]
    (tmp_path / "wiki.txt").write_text(text)
    (tmp_path / "lambada.txt").write_text("\n".join(TEXT.replace("\n", " ").split(". ")[1:5]))
    report = qformats.compare(
        ranks,
        try_=["glm:int8", "glm:int4"],
        tasks=["lambada", "wikitext2"],
        text_files={"wikitext2": str(tmp_path / "wiki.txt"), "lambada": str(tmp_path / "lambada.txt")},
        task_window=96,
        task_step=32,
    )
    model, tokenizer = qformats.load_model(ranks), qformats.load_tokenizer(ranks)
    read = tokenizer(text, add_special_tokens=False).input_ids
    loss, count = blank_filling_loss(model, read, 96, 32, 20401, 20404)
    found = report.base.tasks["wikitext2"]
    assert found.nats_per_word == pytest.approx(loss / len(text.strip().split(" ")), rel=1e-5)
    assert (found.windows, found.reading) == (count, "blank filling")
    assert [[*model.tasks] for model in report.models] == [["lambada", "wikitext2"]] * 2
    eight, four = (abs(m.tasks["wikitext2"].against.log_ratio.value) for m in report.models)
    assert eight < four


def test_models_that_read_in_other_ways_are_not_set_against_each_other(chatglm, tmp_path):
    """Both have a perplexity per word, each by its own tokens."""
    (tmp_path / "ptb.txt").write_text(TEXT[:600])
    report = qformats.compare(
        "demo",
        chatglm / "m0",
        tasks=["ptb"],
        text_files={"ptb": str(tmp_path / "ptb.txt")},
        task_window=64,
    )
    other = report.models[0]
    assert other.tasks["ptb"].reading == "blank filling"
    assert other.tasks["ptb"].against is None
    assert other.tasks["ptb"].tokens != report.base.tasks["ptb"].tokens
    assert any("reads Penn Treebank blank filling and the base left to right" in n for n in other.notes)


def test_windows_that_a_model_does_not_take(chatglm, tmp_path):
    (tmp_path / "ptb.txt").write_text(TEXT[:2000])
    files = {"ptb": str(tmp_path / "ptb.txt")}
    with pytest.raises(ConfigError, match="task-window: found 256; expected at most 128 tokens"):
        qformats.compare(chatglm / "m0", tasks="ptb", text_files=files, task_window=256)
    report = qformats.compare("demo", chatglm / "m0", tasks="ptb", text_files=files, task_window=256)
    assert report.models[0].tasks == {}
    assert any("windows of 128 tokens at most" in note for note in report.models[0].notes)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--task-window", "64"], r"tasks \(--tasks\) too"),
        (["--tasks", "ptb", "--task-window", "64", "--task-step", "64"], "from 1 to 63"),
        (["--tasks", "wikitext9"], "lambada, wikitext2, wikitext103, ptb"),
        (["--tasks", "ptb", "--text-file", "ptb"], "NAME=VALUE"),
        (["--text-file", "ptb=x"], "--tasks ptb"),
    ],
)
def test_what_makes_no_sense_is_said_at_once(capsys, monkeypatch, tmp_path, options, said):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    done = call(capsys, "compare", "demo", "--try", "gguf:q8_0", *options)
    assert done.code != 0
    assert re.search(said, done.err), done.err
