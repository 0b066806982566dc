"""`qformats outliers` counts what hooks on Transformers' own layers see."""

from __future__ import annotations

import json

import pytest
import torch
from cli.command import call

import qformats
from qformats.calibration import InputOutliers, OutlierReport, measure_outliers
from qformats.calibration.text import chunks_of
from qformats.comparing.page.outliers import outlier_page
from qformats.errors import ConfigError

THRESHOLD = 2.0
"""The demo model is small, and has next to nothing beyond 6."""


@pytest.fixture(scope="module")
def report():
    return measure_outliers(qformats.open("demo"), threshold=THRESHOLD, chunks=3, chunk_size=48, device="cpu")


@torch.inference_mode()
def test_it_counts_what_hooks_on_a_model_see(report):
    from transformers import AutoModelForCausalLM

    source = qformats.open("demo")
    model = AutoModelForCausalLM.from_pretrained(source.path, dtype=torch.float32)
    seen = {}

    def watch(name):
        def hook(module, inputs):
            rows = inputs[0].reshape(-1, inputs[0].shape[-1])
            seen[f"{name}.weight"] = (rows.abs() >= THRESHOLD).sum(0)

        return hook

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and ".layers." in name:
            module.register_forward_pre_hook(watch(name))
    model(chunks_of(source, "", 48, 3))
    assert {each.name for each in report.inputs} == seen.keys()
    assert sum(int(count.sum()) for count in seen.values()) > 50
    for each in report.inputs:
        count = seen[each.name]
        assert (each.dimensions, each.tokens) == (count.numel(), 144)
        # A number within a rounding of the threshold may fall on either side.
        found = torch.zeros(each.dimensions)
        for at, part in each.outliers.items():
            found[at] = part * each.tokens
        assert (found - count).abs().sum() <= 1, each.name


def _report(*inputs):
    return OutlierReport("m", "t", 6.0, 1, 100, 4, tuple(InputOutliers(*each) for each in inputs))


def test_features_follow_the_criterion_of_the_paper():
    """25 % of the blocks, and 6 % of the positions where it is one."""
    blocks = [f"model.layers.{number}.mlp.up_proj.weight" for number in range(8)]
    rows = [(name, 4, 100, {}) for name in blocks]
    rows[0] = (blocks[0], 4, 100, {1: 0.5, 2: 0.05, 3: 0.9})
    rows[5] = (blocks[5], 4, 100, {1: 0.1, 2: 0.06})
    wide = ("model.layers.3.mlp.down_proj.weight", 16, 100, {9: 1.0})
    found = _report(*rows, wide)
    assert found.features == {1: (0.25, pytest.approx(0.3))}
    assert "3 of 9 matrices" in found.verdict
    assert "at most 75.0% of an input" in found.verdict
    assert "1 of 4 features is an outlier throughout" in found.verdict
    assert "No activation reaches 6" in _report((blocks[0], 4, 100, {})).verdict


def test_the_command_writes_what_it_tells(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("We hold these truths to be self-evident. " * 40)
    words = (
        "outliers",
        "demo",
        "--text",
        "text.txt",
        "--chunks",
        "1",
        "--chunk-size",
        "32",
        "--threshold",
        "2",
    )
    done = call(capsys, *words, "--html", "page.html", "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert len(told["inputs"]) == 28
    assert told["text"] == "text.txt"
    page = (tmp_path / "page.html").read_text()
    assert page == outlier_page(told)
    marks = sum(len(each["outliers"]) for each in told["inputs"])
    assert marks > 0
    assert page.count("<rect ") == marks
    assert "http" not in page.replace("http-equiv", "")


@pytest.mark.parametrize("threshold", [0.0, -1.0, float("nan"), float("inf")])
def test_thresholds_that_mean_nothing_are_refused(threshold):
    with pytest.raises(ConfigError, match="threshold"):
        measure_outliers(qformats.open("demo"), threshold=threshold)
