"""Quantizers that work on the whole model first: their work is used, found again after a kill, and removed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import torch

import qformats
from qformats.errors import ConfigError
from qformats.interfaces.option import Option
from qformats.interfaces.packer import Packer
from qformats.interfaces.quantizer import Quantizer
from qformats.interfaces.rows import cut
from qformats.registry import registry


class Doubling(Quantizer):
    """Packs twice the weight, so that its work cannot be taken for anybody else's."""

    name = "doubling"
    options = (Option("fail-at", "tensor to fail at"),)
    prepares = True
    read: list[str] = []  # noqa: RUF012

    def prepare(self, source, formats: Mapping[str, Packer], work: Path, progress):
        for name, packer in formats.items():
            file = work / f"{name}.pt"
            if file.exists():
                continue
            if self.given.get("fail-at") == name:
                raise KeyboardInterrupt
            self.read.append(name)
            packed = packer.encode_reference(source.read(name) * 2)
            torch.save(dict(packed.fields), file)

        def stored(name: str, packer: Packer):
            old = source.tensors[name]

            def load(start: int, stop: int):
                fields = torch.load(work / f"{name}.pt")
                return cut(qformats.PackedTensor(packer, old.shape, fields), start, stop)

            step = packer.row_step(old.shape)
            return replace(old, packer=packer, origin=old.stored_packer, load=load, step=step)

        source.tensors = dict(source.tensors) | {
            name: stored(name, packer) for name, packer in formats.items()
        }
        return source

    def quantize(self, weight, packer, importance=None):
        raise AssertionError("everything was prepared")


@pytest.fixture
def _doubling(monkeypatch):
    own = next(record for record in registry().plugins if record.name == "framework")
    monkeypatch.setitem(registry()._quantizers, "doubling", (Doubling, own))
    monkeypatch.setattr(Doubling, "read", [])


@pytest.mark.usefixtures("_doubling")
def test_what_is_prepared_is_written(llama, tmp_path):
    report = qformats.export(llama, tmp_path / "out.gguf", format="gguf:q8_0", quantizer="doubling")
    actions = {t.source_name: t.action for t in report.tensors if t.format == "gguf:q8_0"}
    assert set(actions.values()) == {"quantized"}
    assert sorted(Doubling.read) == sorted(actions)
    before = qformats.open(llama)
    (found,) = (
        t for t in gguf.GGUFReader(tmp_path / "out.gguf").tensors if t.name == "blk.1.ffn_down.weight"
    )
    values = torch.from_numpy(gguf.quants.dequantize(found.data, found.tensor_type))
    assert torch.allclose(values, 2 * before.read("model.layers.1.mlp.down_proj.weight"), atol=0.02)
    # Queries and keys in llama.cpp's order all the same.
    again = qformats.open(tmp_path / "out.gguf").read("model.layers.1.self_attn.q_proj.weight")
    assert torch.allclose(again, 2 * before.read("model.layers.1.self_attn.q_proj.weight"), atol=0.02)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.gguf", "out.gguf.qformats.json"]


@pytest.mark.usefixtures("_doubling")
def test_work_is_found_again_unless_something_changed(llama, tmp_path):
    from qformats.exporting import Recipe, make_plan
    from qformats.exporting.run import execute

    last = "model.layers.1.mlp.down_proj.weight"

    def export(recipe: Recipe, keep: bool = True):
        source = qformats.open(llama)
        return execute(make_plan(source, tmp_path / "out.gguf", recipe, {}), keep_partial=keep, force=True)

    failing = Recipe("gguf:q8_0", quantizer="doubling", quantizer_options=(("fail-at", last),))
    with pytest.raises(KeyboardInterrupt):
        export(failing)
    done = len(Doubling.read)
    assert done > 3
    with pytest.raises(KeyboardInterrupt):
        export(failing)
    assert len(Doubling.read) == done
    # Other options, other work.
    export(Recipe("gguf:q8_0", quantizer="doubling"))
    assert len(Doubling.read) > 2 * done
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.gguf", "out.gguf.qformats.json"]


@pytest.mark.usefixtures("_doubling")
def test_interrupted_work_is_removed(llama, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        qformats.export(
            llama,
            tmp_path / "out.gguf",
            format="gguf:q8_0",
            quantizer="doubling",
            quantizer_options={"fail-at": "model.layers.1.mlp.down_proj.weight"},
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("_doubling")
def test_options_that_the_quantizer_does_not_know(llama, tmp_path):
    with pytest.raises(
        ConfigError, match="option of the quantizer doubling: found 'x'; expected one of fail-at"
    ):
        qformats.export(
            llama, tmp_path / "a", format="gguf:q8_0", quantizer="doubling", quantizer_options={"x": "1"}
        )
    with pytest.raises(ConfigError, match="expected one of search"):
        qformats.export(llama, tmp_path / "a", format="gguf:q8_0", quantizer_options={"x": "1"})
