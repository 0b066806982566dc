"""One relative error: the page, the terminal, JSON, CSV and an export all show the number that numpy finds."""

from __future__ import annotations

import csv
import html
import io
import json
import re

import numpy as np
import pytest
from cli.command import call

import qformats
from qformats.comparing.page.numbers import error_percent
from qformats.numbers.error import percent, relative_error


@pytest.fixture(scope="module")
def expected():
    """Of all weights of the demo model in q4_0, and of the quantized matrices of its blocks, by numpy in float64."""
    base = qformats.open("demo")
    sums = {"all": np.zeros(2), "blocks": np.zeros(2)}
    for name, tensor in base.tensors.items():
        before = base.read(name).numpy().astype(np.float64)
        kind = "q6_k" if name == "lm_head.weight" else "q4_0" if tensor.shape[1:] else None
        after = before
        if kind:
            after = qformats.quantize(base.read(name), f"gguf:{kind}").dequantize().numpy().astype(np.float64)
        found = np.array([((after - before) ** 2).sum(), (before**2).sum()])
        sums["all"] += found
        if kind and ".layers." in name:
            sums["blocks"] += found
    return {key: float(np.sqrt(a / b)) for key, (a, b) in sums.items()}


def test_every_output_shows_one_error(expected, tmp_path, capsys):
    files = {kind: tmp_path / f"report.{kind}" for kind in ("json", "csv", "html")}
    options = [part for kind, file in files.items() for part in (f"--{kind}", file)]
    done = call(capsys, "compare", "demo", "--try", "gguf:q4_0", *options)
    assert done.code == 0, done.err
    total, blocks = (f"{100 * expected[key]:.2f}" for key in ("all", "blocks"))
    heads, row = (re.split(r"  +", line.strip()) for line in done.out.splitlines()[0:4:3])
    shown = dict(zip(heads, row, strict=True))
    assert (shown["error"], shown["block error"]) == (f"{total}%", f"{blocks}%")
    weights = json.loads(files["json"].read_text())["models"][0]["weights"]
    assert weights["total"]["relative_rmse"] == pytest.approx(expected["all"], rel=1e-9)
    assert weights["linears"]["relative_rmse"] == pytest.approx(expected["blocks"], rel=1e-9)
    line = list(csv.DictReader(io.StringIO(files["csv"].read_text())))[1]
    assert float(line["weights.total.relative_rmse"]) == pytest.approx(expected["all"], rel=1e-9)
    page = html.unescape(files["html"].read_text())
    cells = re.findall(r">([\d.]+)\u202f%</td>", page[page.index('id="weight-totals"') :])[:2]
    assert cells == [total, blocks]
    overview = page[page.index('id="overview"') : page.index("</table>", page.index('id="overview"'))]
    assert f">{total}\u202f%</td>" in overview
    assert f"The relative error of its weights is {total}\u202f%" in page


def test_an_export_shows_the_same_error(tmp_path):
    """What a transcoded tensor lost is the error that a comparison of both files finds."""
    first = tmp_path / "first.gguf"
    qformats.export("demo", first, format="gguf:q8_0")
    exported = qformats.export(first, tmp_path / "second", format="glm:int4")
    compared = {
        t.name: t.error for t in qformats.compare(first, tmp_path / "second").models[0].weights.by_tensor
    }
    lost = {t.source_name: t.relative_error for t in exported.tensors if t.relative_error}
    assert len(lost) == 28
    for name, error in lost.items():
        assert error == pytest.approx(compared[name].relative_rmse, rel=1e-6), name


@pytest.mark.parametrize(
    ("share", "written"),
    [
        (0.0843, "8.43%"),
        (0.5, "50.00%"),
        (1e-4, "0.01%"),
        (2.14e-5, "0.0021%"),
        (3e-12, "3e-10%"),
        (30, "3e+03%"),
    ],
)
def test_digits_are_the_same_everywhere(share, written):
    assert percent(share) == written
    assert error_percent(share) == written.replace("%", "\u202f%")


def test_sums_make_the_error_of_several_tensors():
    """Not the mean of their relative errors: a large exact tensor makes the whole more exact."""
    changed, exact = np.array([1.0, 2.0, 3.0]), np.array([100.0])
    together = relative_error(3 * 0.1**2 + 0.0, (changed**2).sum() + (exact**2).sum())
    assert together == pytest.approx(np.sqrt(0.03 / 10014))
