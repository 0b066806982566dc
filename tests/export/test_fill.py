"""Packers that break their word are told so, and memory is bounded by weights."""

from __future__ import annotations

import importlib
import os
import threading

import pytest

import qformats
from qformats.errors import ConfigError
from qformats.exporting import Recipe, fill, make_plan
from qformats.exporting.engines import local
from qformats.interfaces.packer import PackedTensor

engine = importlib.import_module("qformats.exporting.run")


@pytest.fixture
def plan(llama, tmp_path):
    return make_plan(qformats.open(llama), tmp_path / "out.gguf", Recipe("gguf:q8_0"), {})


@pytest.mark.parametrize("size", [5_000, 1 << 22], ids=["slices", "whole"])
@pytest.mark.parametrize("wrong", ["short", "long", "renamed"])
def test_packer_that_gives_other_bytes(plan, tmp_path, monkeypatch, wrong, size):
    """Too few bytes would leave a hole in the file, and too many would fall into the next rows."""
    import torch

    tensor = next(t for t in plan.tensors if t.name == "blk.1.ffn_down.weight")
    packer = type(tensor.packer)
    original = packer.encode_reference

    def encode_reference(self, dense) -> PackedTensor:
        packed = original(self, dense)
        if self.name != "gguf:q8_0":
            return packed
        ((name, data),) = packed.fields.items()
        fields = {
            "short": {name: data[:-1]},
            "long": {name: torch.cat([data, data[:1]])},
            "renamed": {"other": data},
        }[wrong]
        return PackedTensor(packed.packer, packed.shape, fields)

    monkeypatch.setattr(packer, "encode_reference", encode_reference)
    monkeypatch.setattr(fill, "SLICE_WEIGHTS", size)
    with pytest.raises(ConfigError) as caught:
        engine.execute(plan, workers=1)
    message = str(caught.value)
    assert message.startswith("gguf:q8_0: ")
    assert "of tensor 'token_embd.weight'" in message or "of tensor 'output.weight'" in message
    assert ("found ['other']" if wrong == "renamed" else "bytes of ") in message
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("size", "free"), [(64, 0), (64, 1 << 40), (20_000, 0)])
def test_weights_in_flight_are_bounded(plan, monkeypatch, size, free):
    """Tensors that are larger than all slices together are converted one at a time, or as many as memory holds."""
    lock, flying, highest, count = threading.Lock(), [], [], []
    original, pieces = fill.convert, fill.slices_of(plan)
    workers = 4

    def convert(plan, piece, files, check):
        weights = fill.weights_of(plan, piece)
        with lock:
            flying.append(weights)
            highest.append(sum(flying) if len(flying) > 1 else 0)
            count.append(len(flying))
        try:
            # Long enough for others to come in, if they may.
            threading.Event().wait(0.002)
            return original(plan, piece, files, check)
        finally:
            with lock:
                flying.remove(weights)

    largest = max(fill.weights_of(plan, piece) for piece in pieces)
    monkeypatch.setattr(local, "convert", convert)
    monkeypatch.setattr(fill, "SLICE_WEIGHTS", size)
    monkeypatch.setattr(fill, "available_nbytes", lambda: free)
    monkeypatch.setattr(engine, "slices_of", lambda _plan: pieces)
    engine.execute(plan, workers=workers)
    assert len(count) == len(pieces)
    together = workers if free else 1
    assert max(highest) <= max(2 * workers * size, together * largest)
    assert max(count) <= workers
    if size == 64:
        assert largest > 2 * workers * size
    if free or size != 64:
        assert max(count) > 1
