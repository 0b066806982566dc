"""The plugins that the tutorials build do what the tutorials say, and every command of theirs runs."""

from __future__ import annotations

import importlib
import os
import sys

import pytest
import torch
from cli.command import call
from docs.pages import DOCS, commands, install, python

import qformats
from qformats.errors import CheckpointError
from qformats.interfaces import ReplacedTensors
from qformats.registry import registry
from qformats.work.progress import Silent

MODULES = {"01-a-format": "five", "02-a-quantizer": "dice", "03-a-container": "box", "04-awq": "awq_scales"}
PAGES = {path.stem: path for path in sorted((DOCS / "tutorials").glob("*.md"))}


@pytest.fixture
def built(request, tmp_path, monkeypatch):
    """Install the plugin of a tutorial, in this process; gives its module."""

    def build(page: str):
        site = tmp_path / "site"
        site.mkdir()
        install(site, MODULES[page], python(PAGES[page]))
        monkeypatch.syspath_prepend(str(site))
        monkeypatch.chdir(tmp_path)
        registry.cache_clear()
        return importlib.import_module(MODULES[page])

    yield build
    registry.cache_clear()
    for module in MODULES.values():
        sys.modules.pop(module, None)


def test_every_tutorial_is_here():
    assert PAGES.keys() == MODULES.keys()


@pytest.mark.parametrize("page", MODULES)
def test_commands_run(built, capsys, page):
    built(page)
    told = {}
    assert commands(PAGES[page])
    for words in commands(PAGES[page]):
        done = call(capsys, *words)
        assert done.code == 0, (words, done.err)
        told[words[0]] = done.out
    if page == "01-a-format":
        assert "28 quantized tensors kept every value" in told["export"]
        text = python(PAGES[page]).partition("packer = Int5()")[0]
        assert len([line for line in text.splitlines() if line.strip()]) < 60


def test_the_container_notices_damage(built, capsys):
    built("03-a-container")
    qformats.export("demo", "demo.box", format="gguf:q4_0", container="box")
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(
        qformats.open("demo.box").read(name).dequantize(),
        qformats.packer("gguf:q4_0")
        .encode_reference(qformats.open("demo").read(name).dequantize())
        .dequantize(),
    )
    with open("demo.box", "r+b") as file:
        file.seek(-1000, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-1000, os.SEEK_END)
        file.write(bytes([byte ^ 1]))
    assert qformats.open("demo.box").architecture == "llama"
    with pytest.raises(CheckpointError, match="checksum"):
        qformats.open("demo.box", options={"verify": "yes"})


def test_awq_changes_no_output_and_outliers_cost_less(built):
    awq = built("04-awq")
    demo = qformats.open("demo")
    ids = qformats.load_tokenizer("demo")("We the people of the United States" * 8, return_tensors="pt")[
        "input_ids"
    ]
    # A few columns with inputs 30 times as large, and weights 30 times as small.
    factor = torch.ones(256)
    factor[[3, 77, 200]] = 30.0
    planted = {}
    for name, tensor in demo.tensors.items():
        block, _, kind = name.removesuffix(".weight").rpartition(".")
        if kind in awq.GROUPS:
            planted[name] = awq.changed(tensor, factor)
            for layer in awq.GROUPS[kind]:
                linear = f"{block}.{layer}.weight"
                planted[linear] = awq.changed(demo.tensors[linear], 1 / factor)
    source = ReplacedTensors(demo, planted)

    def predictions(model, **how):
        return qformats.load_model(model, device="cpu", **how)(ids).logits.log_softmax(-1)

    options = {"chunks": "2"}
    formats = {name: qformats.packer("gguf:q4_0") for name in source.tensors if "_proj" in name}
    changed = registry().quantizer("awq-scales", options).prepare(source, formats, None, Silent())
    assert (
        sum("norm" in name for name in changed.tensors if changed.tensors[name] is not source.tensors[name])
        == 8
    )
    base = predictions(demo)
    torch.testing.assert_close(predictions(changed), base, atol=5e-3, rtol=0)

    def lost(**how):
        found = predictions(source, format="gguf:q4_0", **how)
        return float((base.exp() * (base - found)).sum(-1).mean())

    plain, better = lost(), lost(quantizer="awq-scales", quantizer_options=options)
    assert better < plain / 2, (better, plain)
