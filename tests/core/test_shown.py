"""Every public object says in a line, and in a small table for notebooks, what it is: no dump of its numbers."""

from __future__ import annotations

import html.parser
import re

import pytest
import torch

import qformats
from qformats.numbers import GridParams
from qformats.registry import registry
from qformats.work.shown import as_html, as_line

HOSTILE = "<script>alert(1)</script>\x1b[2J\u202e\n&\"'"


@pytest.fixture(scope="module")
def objects(tmp_path_factory):
    weight = torch.randn(64, 256)
    quantized = qformats.quantize(weight, "gguf:q4_0")
    model = qformats.open("demo")
    export = qformats.export(model, tmp_path_factory.mktemp("shown") / "x.gguf", format="gguf:q4_0")
    report = qformats.compare(model, try_="gguf:q4_0", text="demo", window=16, windows=2)
    return {
        "quantized": quantized,
        "packed": qformats.pack(quantized, "gguf:q4_0"),
        "dense": model.tensors["model.norm.weight"].read(),
        "model": model,
        "stored": model.tensors["model.layers.0.mlp.up_proj.weight"],
        "tried": qformats.open(export.target),
        "export": export,
        "report": report,
        "result": report.models[0],
        "weights": report.models[0].weights,
        "behaviour": report.models[0].behaviour,
        "change": report.models[0].behaviour.against,
        "loaded": qformats.load_model(model, device="cpu", format="gguf:q8_0").qformats_report,
        "packer": qformats.packer("gguf:q4_0"),
        "format": qformats.packer("gguf:q4_0").spec,
        "params": GridParams(torch.ones(2, 2)),
        "loader": next(iter(registry().loaders())),
        "quantizer": registry().quantizer("rtn"),
        "grid": qformats.packer("gguf:q4_0").grid,
    }


class Reader(html.parser.HTMLParser):
    """Elements, and whether each is closed."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_lines_are_short_and_hold_no_numbers_of_tensors(objects):
    for name, each in objects.items():
        line = repr(each)
        assert "\n" not in line, name
        assert "tensor(" not in line, name
        assert " at 0x" not in line, name
        assert len(line) < 250, (name, line)


def test_lines_say_what_things_are(objects):
    shown = {name: repr(each) for name, each in objects.items()}
    assert shown["quantized"] == (
        "<QuantizedTensor 64 x 256, uint8, blocks of 32 around 8, float16 scale 64 x 8>"
    )
    assert shown["packed"] == (
        "<PackedTensor gguf:q4_0, 64 x 256, 9,216 bytes, 4.5 bits per weight, blocks u8 64 x 144>"
    )
    assert (
        "up_proj.weight, 1024 x 256, dense:bf16, 524,288 bytes, 16 bits per weight, model.safe"
        in shown["stored"]
    )
    assert "demo-llama, llama, huggingface, 39 tensors, 4,983,040 weights, 9,966,080 bytes" in shown["model"]
    assert "gguf:q4_0, quantizer rtn, 39 tensors" in shown["export"]
    assert shown["report"].startswith("<CompareReport demo-llama, against gguf:q4_0, ")
    assert "error 6.11%" in shown["result"]
    assert "error 6.11%, of blocks 8.43%" in shown["weights"]
    assert "mean KL" in shown["change"]


def test_tables_for_notebooks_are_small_neutral_and_closed(objects):
    for name, each in objects.items():
        if name == "grid":
            continue
        source = each._repr_html_()
        assert set(Reader(source).tags) <= {
            "div",
            "strong",
            "table",
            "thead",
            "tbody",
            "tr",
            "th",
            "td",
            "p",
        }, name
        # The notebook's own colours, light or dark.
        assert not re.search(r"color|background|#[0-9a-f]{3}", source.replace("colours", "")), name
        assert len(source) < 4000, name
    model = objects["tried"]._repr_html_()
    assert "<td>gguf:q4_0</td><td>29</td>" in model
    assert "<td>gguf:q4_0</td>" in objects["report"]._repr_html_()


def test_what_files_hold_is_only_text():
    source = as_html(HOSTILE, {HOSTILE: HOSTILE, "long": "x" * 999}, [(HOSTILE,), *[(HOSTILE,)] * 30])
    assert "script" not in Reader(source).tags
    assert not re.search("[\x00-\x1f\u202e]", source)
    assert "x" * 81 not in source
    assert source.count("<tr>") == 2 + 1 + 12
    assert "and 18 more" in source
    line = as_line("Thing", {"name": HOSTILE})
    assert line.isprintable()


def test_a_model_with_a_hostile_name(objects, monkeypatch):
    model = qformats.open("demo")
    model.name = HOSTILE
    assert "<script>" not in model._repr_html_()
    assert repr(model).isprintable()


def test_packers_and_models_that_are_not_finished_are_shown_too():
    class Unfinished(qformats.Packer):
        def __init__(self):
            assert repr(self) == "<Unfinished without a descriptor>"

    Unfinished()
    meta = qformats.QuantizedTensor(
        torch.empty(4, 8, dtype=torch.uint8, device="meta"), torch.empty(4, 1, device="meta"), (1, 8)
    )
    assert repr(meta) == "<QuantizedTensor 4 x 8, uint8, blocks of 8, float32 scale 4 x 1, meta>"
