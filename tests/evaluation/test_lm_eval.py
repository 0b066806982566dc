"""lm-eval runs a model of any format through the class of qformats, on a small task of local files."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch

import qformats
from qformats.errors import BackendUnavailableError

INSTALLED = importlib.util.find_spec("lm_eval") is not None
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: loglikelihood
doc_to_text: "{{{{text}}}}"
doc_to_target: " {{{{word}}}}"
metric_list:
  - {{metric: perplexity, aggregation: perplexity, higher_is_better: false}}
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""
LINES = [
    ("We the people of the United", "States"),
    ("to preserve, protect, and defend the", "Constitution"),
    ("life, liberty, and the pursuit of", "happiness"),
]


@pytest.mark.skipif(
    not INSTALLED, reason="lm-eval is not installed: pip install -c constraints.txt '.[eval]'"
)
def test_a_local_task_gives_the_probabilities_of_the_model(tmp_path):
    qformats.export("demo", tmp_path / "demo.gguf", format="gguf:q4_0")
    (tmp_path / "lines.jsonl").write_text(
        "".join(json.dumps({"text": t, "word": w}) + "\n" for t, w in LINES)
    )
    (tmp_path / "task.yaml").write_text(TASK.format(name="small", file=tmp_path / "lines.jsonl"))
    words = [
        "run",
        "--model",
        "qformats",
        "--model_args",
        "pretrained=demo.gguf",
        "--device",
        "cpu",
        "--tasks",
        "small",
    ]
    words += ["--include_path", str(tmp_path), "--output_path", "out", "--log_samples"]
    done = subprocess.run(
        [sys.executable, "-m", "qformats.evaluation", *words],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (samples,) = (tmp_path / "out").rglob("samples_small_*.jsonl")
    found = [json.loads(line) for line in samples.read_text().splitlines()]
    model = qformats.load_model(tmp_path / "demo.gguf", device="cpu")
    tokenizer = qformats.load_tokenizer(tmp_path / "demo.gguf")
    for sample, (text, word) in zip(sorted(found, key=lambda each: each["doc_id"]), LINES, strict=True):
        whole = tokenizer(f"{text} {word}", return_tensors="pt", add_special_tokens=True)["input_ids"]
        start = len(tokenizer(text)["input_ids"])
        with torch.inference_mode():
            logs = model(whole).logits.log_softmax(-1)[0]
        expected = sum(float(logs[at - 1, whole[0, at]]) for at in range(start, whole.shape[1]))
        told = float(sample["filtered_resps"][0][0])
        assert told == pytest.approx(expected, abs=1e-3)


@pytest.mark.skipif(INSTALLED, reason="lm-eval is installed")
def test_without_lm_eval_the_extra_is_named():
    with pytest.raises(BackendUnavailableError, match=r"qformats\[eval\]"):
        importlib.import_module("qformats.evaluation")
