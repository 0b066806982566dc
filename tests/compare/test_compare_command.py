"""`qformats compare` as users run it."""

import csv
import json
import math
import os
import re
import subprocess
import sys

import pytest
from cli.command import PROGRAM, call, environment, run

from qformats.cli.compare import _error, _together
from qformats.cli.comparison import estimate as _estimate
from qformats.comparing.report import Estimate, IdenticalTensors, WeightError

TEXT = ["--text", "demo", "--window", "64", "--windows", "2"]


def test_table_and_files(made, tmp_path, capsys):
    files = {kind: tmp_path / f"report.{kind}" for kind in ("json", "csv", "html")}
    written = [part for kind, file in files.items() for part in (f"--{kind}", file)]
    done = call(capsys, "compare", "demo", made("q8_0"), "--try", "gguf:q4_0", *TEXT, *written)
    assert done.code == 0, done.err
    for word in ("model-q8", "gguf:q4_0", "perplexity", "same top", "62 tokens scored"):
        assert word in done.out
    data = json.loads(files["json"].read_text())
    assert [model["name"] for model in data["models"]] == ["model-q8", "gguf:q4_0"]
    q8, q4 = data["models"]
    assert (
        q8["behaviour"]["against"]["kl"]["mean"]["value"] < q4["behaviour"]["against"]["kl"]["mean"]["value"]
    )
    rows = list(csv.DictReader(files["csv"].read_text().splitlines()))
    assert [row["name"] for row in rows] == ["demo-llama", "model-q8", "gguf:q4_0"]
    assert float(rows[1]["weights.linears.sqnr_db"]) == pytest.approx(q8["weights"]["linears"]["sqnr_db"])
    assert rows[0]["behaviour.against.kl.mean.value"] == ""
    page = files["html"].read_text()
    assert page.lstrip().lower().startswith("<!doctype html>")
    assert "model-q8" in page
    assert {file.name for file in tmp_path.iterdir()} >= {"report.json", "report.csv", "report.html"}
    assert not list(tmp_path.glob(".*")), "no partial file is left"
    # Files of a report have the rights of any new file.
    probe = tmp_path / "probe"
    probe.touch()
    assert files["json"].stat().st_mode == probe.stat().st_mode


def test_json_on_standard_output_is_nothing_else(made, capsys):
    done = call(capsys, "compare", "demo", made("gptq"), "--json", "-")
    assert done.code == 0, done.err
    data = json.loads(done.out)
    assert data["text"] is None
    assert data["models"][0]["weights"]["total"]["count"] == data["base"]["parameters"]


def test_weights_only_says_how_to_get_more(made, capsys):
    done = call(capsys, "compare", "demo", made("gptq"))
    assert done.code == 0, done.err
    assert "--text" in done.out
    assert "perplexity" not in done.out


def test_copies_are_told(capsys):
    done = call(capsys, "compare", "demo", "--try", "gguf:q8_0", "--try", "gguf:q8_0")
    assert re.search(r"gguf:q8_0 and gguf:q8_0 \(.*\): of 39 tensors 39 have the same bytes", done.out)
    assert "demo-llama and" not in done.out, "norms that nobody quantizes are no news"


def test_seven_models_take_few_lines(capsys):
    """Embeddings that nobody quantized and copies of copies are no lines of their own."""
    tried = [
        "gguf:q8_0",
        "gguf:q8_0",
        "gguf:q8_0",
        "glm:int8",
        "glm:int4",
        "bitsandbytes:nf4",
        "gptq:4bit-128g",
    ]
    done = call(
        capsys,
        "compare",
        "demo",
        *(part for format in tried for part in ("--try", format)),
        "--quantizer",
        "rtn",
    )
    assert done.code == 0, done.err
    lines = re.findall(r"[^\n]*: of \d+ tensors", done.out)
    assert len(lines) == 1
    assert re.fullmatch(r"gguf:q8_0, gguf:q8_0 \(.*\) and gguf:q8_0 \(.*\): of 39 tensors", lines[0])


def _pair(first, second, *names):
    return IdenticalTensors(first, second, 9, names, ())


def test_groups_of_models_that_share_tensors():
    every = [_pair("a", "b", "x"), _pair("a", "c", "x"), _pair("b", "c", "x"), _pair("c", "d", "x")]
    assert _together(every) == ["a, b and c", "c and d"]


@pytest.mark.parametrize(
    ("rmse", "base", "largest", "row"),
    [
        (0.0123, 1.0, 0.5, ("1.23%", "38.2 dB", "0.5")),
        (1.0, 1.0, 0.5, ("100.00%", "0.0 dB", "0.5")),
        (2.3e-5, 1.0, 0.5, ("0.0023%", "92.8 dB", "0.5")),
        (2.3e23, 1.0, 1e30, ("2e+25%", "-467.2 dB", "1e+30")),
        (0.1, 0.0, math.inf, ("-", "-", "-")),
        (0.0, 1.0, 0.0, ("0%", "exact", "0")),
        (0.0, 0.0, 0.0, ("0%", "exact", "0")),
    ],
)
def test_numbers_of_strange_models(rmse, base, largest, row):
    assert _error(WeightError(9, largest, rmse, base, 1.0)) == row


def test_estimates_of_strange_models():
    assert _estimate(Estimate(12.375, 0.5), ".2f") == "12.38 ±0.50"
    assert _estimate(Estimate(12.375, math.inf), ".2f") == "12.38"
    assert _estimate(Estimate(3e20, 1e19), ".2f") == "3.00e+20 ±1.00e+19"
    assert _estimate(Estimate(math.inf, math.inf), ".2f") == "-"


def test_two_outputs_of_one_name(tmp_path, capsys):
    (tmp_path / "link").symlink_to(tmp_path / "x")
    for first, second in (("--json", "--csv"), ("--logits", "--json"), ("--csv", "--html")):
        given = [f"{first}={tmp_path / 'x'}", f"{second}={tmp_path / 'link'}"]
        done = call(capsys, "compare", "demo", "demo", *TEXT, *given)
        assert done.code == 2, done.err
        assert f"a file other than that of {first}" in done.err
    assert [file.name for file in tmp_path.iterdir()] == ["link"]


@pytest.mark.parametrize("kind", ["json", "csv", "html"])
def test_what_is_no_report_is_not_replaced(kind, made, tmp_path, capsys):
    """Not a compared model, no file of another kind, no device."""
    model = made("q8_0")
    settings = tmp_path / "config.json"
    settings.write_text('{\n  "base": 3}')
    for file in (model, settings):
        before = file.read_bytes()
        done = call(capsys, "compare", "demo", model, f"--{kind}={file}")
        assert done.code == 4, done.err
        assert "is not replaced. Name another file" in done.err
        assert done.err.count("\n") == 1
        assert file.read_bytes() == before
    done = call(capsys, "compare", "demo", model, f"--{kind}={os.devnull}")
    assert done.code == 4, done.err


@pytest.mark.parametrize("kind", ["json", "csv", "html"])
def test_earlier_reports_are_replaced(kind, made, tmp_path, capsys):
    file = tmp_path / "report.json"
    file.touch()
    sizes = set()
    for models in (["demo"], ["demo", made("q8_0")]):
        done = call(capsys, "compare", "demo", *models, f"--{kind}", file)
        assert done.code == 0, done.err
        sizes.add(file.stat().st_size)
    assert len(sizes) == 2


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["demo"], 2, "models: found 0; expected one or more"),
        (["demo", "--try", "gguf:q4_9"], 2, "no format 'gguf:q4_9'"),
        (["demo", "--try", "gguf:q4_0", "--quantizer", "dice"], 2, "no quantizer 'dice'"),
        (["demo", "no-such-model"], 3, "no such file or folder"),
        (["demo", "demo", "--text", "no-such-text"], 3, "no-such-text"),
        (["demo", "demo", "--text", "demo", "--window", "9999"], 2, "window"),
        (["demo", "demo", "--json", "-", "--csv", "-"], 2, "--csv"),
        (["demo", "demo", "--json", "--csv", "-"], 2, "--csv"),
        (["demo", "demo", "--json", "no/such/folder/x.json"], 4, "no folder no/such/folder"),
        (["demo", "demo", "--html", "."], 4, "is a folder"),
        (["demo", "demo", *TEXT, "--logits", "no/such/folder/x"], 4, "no folder no/such/folder"),
        (["demo", "demo", "--device", "abacus"], 2, "device"),
        (["demo", "demo", "-Q", "x"], 2, "--quantizer-option"),
    ],
)
def test_mistakes_are_one_sentence(arguments, code, says, capsys):
    done = call(capsys, "compare", *arguments)
    assert done.code == code, done.err
    assert says in done.err
    sentence, *instead = done.err.splitlines()
    assert sentence.startswith("qformats: ")
    # At most the command line to type instead.
    assert all(line.startswith("  qformats compare ") for line in instead)
    assert done.out == ""


def test_help_loads_no_torch():
    program = f"{PROGRAM[2]}".replace("main()", "")
    check = "import sys; print(sorted({'torch', 'numba', 'transformers', 'triton'} & {*sys.modules}))"
    code = (
        f"{program}\nimport atexit\natexit.register(lambda: exec({check!r}))\n"
        "sys.argv = ['qformats', 'compare', '--help']\nmain()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment()
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("[]")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(tmp_path):
    tmp_path.chmod(0o500)
    done = run("compare", "demo", "--try", "gguf:q8_0", "--json", tmp_path / "x.json")
    assert done.code == 4
    assert "cannot be written" in done.err


def test_a_model_with_a_scale_that_is_no_number_is_not_called_exact(capsys, made, tmp_path):
    import gguf
    import numpy as np

    path = made("q4_0")
    content = bytearray(path.read_bytes())
    (tensor,) = (each for each in gguf.GGUFReader(path).tensors if each.name == "blk.1.attn_q.weight")
    content[tensor.data_offset : tensor.data_offset + 2] = np.float16(np.nan).tobytes()
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(content)
    done = call(capsys, "compare", path, bad, "--html", tmp_path / "page.html")
    assert done.code == 0, done.err
    (row,) = (line for line in done.out.splitlines() if line.startswith("bad "))
    assert "exact" not in row
    assert "0%" not in row
    assert "bad: Not compared: " in done.out
    assert "not finite" in " ".join(done.out.split())
    page = (tmp_path / "page.html").read_text()
    assert "practically lossless" not in page
    assert "Every compared weight has" not in page
