"""lm-eval runs a model of any format through the class of qformats, on the small task of the documentation."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys

import pytest
import torch
from docs.pages import DOCS
from oracles import absent

import qformats

PAGE = (DOCS / "evaluation.md").read_text(encoding="utf-8")
# Indexing the ten thousand tasks that lm-eval brings takes 13 s, and none of them is wanted.
WITHOUT_OTHERS = """
import functools, runpy
import lm_eval.tasks
lm_eval.tasks.TaskManager = functools.partial(lm_eval.tasks.TaskManager, include_defaults=False)
runpy.run_module("qformats.evaluation", run_name="__main__", alter_sys=True)
"""


def block(language: str, holding: str) -> str:
    """The block of the page that holds something."""
    (found,) = [each for each in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL) if holding in each]
    return found


def ran(arguments, folder):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "cache")}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_the_task_of_the_page_gives_the_probabilities_of_the_model(tmp_path):
    if importlib.util.find_spec("lm_eval") is None:
        absent("lm-eval is not installed: pip install -c constraints.txt '.[eval]'")
    qformats.export("demo", tmp_path / "demo.gguf", format="gguf:q4_0")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "endings.yaml").write_text(block("yaml", "task: endings"))
    (tmp_path / "endings.jsonl").write_text(block("json", '"text"'))
    command = shlex.split(block("text", "--tasks endings").replace("\\\n", " "))
    assert command[:3] == ["python", "-m", "qformats.evaluation"]
    done = ran(["-c", WITHOUT_OTHERS, *command[3:], "--output_path", "out", "--log_samples"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"\|endings\|.*\|acc +\|↑ +\|", done.stdout)
    (samples,) = (tmp_path / "out").rglob("samples_endings_*.jsonl")
    found = [json.loads(line) for line in samples.read_text().splitlines()]
    lines = [json.loads(line) for line in (tmp_path / "endings.jsonl").read_text().splitlines()]
    model = qformats.load_model(tmp_path / "demo.gguf", device="cpu")
    tokenizer = qformats.load_tokenizer(tmp_path / "demo.gguf")
    for sample, line in zip(sorted(found, key=lambda each: each["doc_id"]), lines, strict=True):
        whole = tokenizer(f"{line['text']} {line['word']}", return_tensors="pt")["input_ids"]
        start = len(tokenizer(line["text"])["input_ids"])
        with torch.inference_mode():
            logs = model(whole).logits.log_softmax(-1)[0]
        expected = sum(float(logs[at - 1, whole[0, at]]) for at in range(start, whole.shape[1]))
        assert float(sample["filtered_resps"][0][0]) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("package", ["lm_eval", "accelerate"])
def test_a_missing_package_is_named_in_a_line(tmp_path, package):
    """lm-eval itself, or what its classes of models need besides."""
    if package != "lm_eval" and importlib.util.find_spec("lm_eval") is None:
        absent("lm-eval is not installed: pip install -c constraints.txt '.[eval]'")
    hidden = f"import runpy, sys; sys.modules[{package!r}] = None\n"
    done = ran(
        ["-c", hidden + "runpy.run_module('qformats.evaluation', run_name='__main__')", "run"], tmp_path
    )
    told = f"qformats: lm-eval: {package} is not installed. Install it: pip install 'qformats[eval]'.\n"
    assert (done.returncode, done.stderr) == (3, told)
