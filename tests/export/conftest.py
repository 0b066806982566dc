"""Models that many tests of this folder read and none changes, and small file systems."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from models import tiny


@pytest.fixture(scope="session")
def llama(tmp_path_factory) -> Path:
    return tiny.build("llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="session")
def tied(tmp_path_factory) -> Path:
    return tiny.build("llama-tied", tmp_path_factory.mktemp("models") / "tied")


@pytest.fixture
def copy(llama, tmp_path) -> Path:
    """A model that the test may damage; nothing else lies beside it."""
    return Path(shutil.copytree(llama, tmp_path / "in" / "model"))


@pytest.fixture(scope="session")
def large(llama, tmp_path_factory) -> Path:
    """A llama of 50 million weights, so that an export takes long enough to be killed in the middle."""
    import numpy as np

    folder = tmp_path_factory.mktemp("models") / "large"
    shutil.copytree(llama, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 3, "dtype": "bfloat16"}
    config |= {"num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 64}
    (folder / "config.json").write_text(json.dumps(config))
    vocabulary = config["vocab_size"]
    shapes = {"model.embed_tokens.weight": (vocabulary, 1024), "lm_head.weight": (vocabulary, 1024)}
    shapes["model.norm.weight"] = (1024,)
    for i in range(3):
        layer = f"model.layers.{i}."
        shapes |= {f"{layer}{name}_layernorm.weight": (1024,) for name in ("input", "post_attention")}
        shapes |= {f"{layer}self_attn.{name}_proj.weight": (1024, 1024) for name in "qkvo"}
        shapes |= {f"{layer}mlp.{name}_proj.weight": (4096, 1024) for name in ("gate", "up")}
        shapes[f"{layer}mlp.down_proj.weight"] = (1024, 4096)
    header, offset = {}, 0
    for name, shape in shapes.items():
        nbytes = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + nbytes]}
        offset += nbytes
    text = json.dumps(header).encode()
    # One block of noise; every tensor begins somewhere else in it, so that no two have the same bytes.
    noise = np.random.default_rng(0).standard_normal(1 << 20, np.float32)
    block = (noise.view(np.uint32) >> 16).astype(np.uint16).tobytes() * 5
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for i, entry in enumerate(header.values()):
            begin, end = entry["data_offsets"]
            file.write(block[2 * i : 2 * i + end - begin])
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def mount(tmp_path):
    """Mounts small file systems in memory, and removes them."""
    mounted: list[Path] = []

    def make(name: str, options: str) -> Path:
        place = tmp_path / name
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            pytest.skip("no mount command")
        if done.returncode:
            pytest.skip(f"mounting a file system is not permitted: {done.stderr.strip()}")
        mounted.append(place)
        return place

    yield make
    for place in mounted:
        # Lazily: a failed test may still hold a file open, and must not leave the mount behind.
        subprocess.run(["umount", "--lazy", str(place)], check=True)
