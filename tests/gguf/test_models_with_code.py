"""Models whose code is in their folders: their files run, and come back as a model that Transformers runs itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models.architectures import WITH_CODE, build_with_code
from oracles import hf
from oracles.llama_cpp import LlamaCpp

import qformats
from qformats.errors import UnsupportedModelError
from qformats_gguf.architectures import Architecture
from qformats_gguf.metadata import Metadata

IDS = np.random.default_rng(0).integers(0, 500, 64).tolist()


@pytest.fixture(scope="module", params=WITH_CODE)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """Name, folder, and folder of the model that computes the same."""
    path = tmp_path_factory.mktemp("model")
    return request.param, build_with_code(request.param, path / "model", path / "twin"), path / "twin"


def test_llama_cpp_computes_the_numbers(model: tuple[str, Path, Path], tmp_path: Path) -> None:
    _, folder, twin = model
    qformats.export(folder, tmp_path / "m.gguf", format="gguf:f32")
    with LlamaCpp(tmp_path / "m.gguf") as gguf:
        assert np.abs(gguf.log_probs(IDS) - hf.log_probs(twin, IDS)).max() < 1e-4


@pytest.mark.parametrize("kind", ["f32", "q8_0"])
def test_a_file_comes_back_as_a_model_that_transformers_runs(
    kind: str, model: tuple[str, Path, Path], tmp_path: Path
) -> None:
    name, folder, twin = model
    qformats.export(folder, tmp_path / "m.gguf", format=f"gguf:{kind}")
    qformats.export(tmp_path / "m.gguf", tmp_path / "back", format="dense:f32")
    one, other = (json.loads((path / "config.json").read_text()) for path in (twin, tmp_path / "back"))
    assert other["model_type"] == one["model_type"] != name
    if kind == "f32":
        before, after = (qformats.open(path).tensors for path in (twin, tmp_path / "back"))
        assert before.keys() == after.keys()
        assert all(before[key].dequantize().equal(after[key].dequantize()) for key in before)
        # Factors of a file are float32: measured 1e-6.
        assert np.abs(hf.log_probs(tmp_path / "back", IDS) - hf.log_probs(twin, IDS)).max() < 1e-4
    else:
        theirs = hf.log_probs(tmp_path / "back", IDS)
        with LlamaCpp(tmp_path / "m.gguf") as gguf:
            ours = gguf.log_probs(IDS)
        # llama.cpp rounds activations to 8 bits.
        assert (np.exp(theirs.astype(np.float64)) * (theirs - ours)).sum(-1).mean() < 2e-2


def test_factors_that_older_files_lack_are_those_of_llama_cpp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = Architecture.metadata

    def without(self: Architecture, **given: Any) -> Metadata:
        found = written(self, **given)
        return {key: value for key, value in found.items() if not key.endswith("_scale")}

    monkeypatch.setattr(Architecture, "metadata", without)
    folder = build_with_code("minicpm", tmp_path / "model", tmp_path / "twin")
    qformats.export(folder, tmp_path / "m.gguf", format="gguf:f32")
    qformats.export(tmp_path / "m.gguf", tmp_path / "back", format="dense:f32")
    with LlamaCpp(tmp_path / "m.gguf") as gguf:
        ours = gguf.log_probs(IDS)
    assert np.abs(ours - hf.log_probs(tmp_path / "back", IDS)).max() < 1e-4
    assert np.abs(ours - hf.log_probs(tmp_path / "twin", IDS)).max() > 1e-2


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sparse_config", {"kernel_size": 32}),
        ("num_experts", 8),
        ("rope_scaling", {"type": "longrope"}),
        ("bias", True),
    ],
)
def test_keys_of_other_releases_are_refused(
    key: str, value: object, model: tuple[str, Path, Path], tmp_path: Path
) -> None:
    """Nothing says what the code in a folder ignores."""
    _, folder, _ = model
    changed = shutil.copytree(folder, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text()) | {key: value}
    (changed / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match="rope" if "rope" in key else key):
        qformats.export(changed, tmp_path / "m.gguf", format="gguf:f32")
    assert not (tmp_path / "m.gguf").exists()
