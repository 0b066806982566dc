"""Exports by a real Ray cluster of two nodes: the same bytes as here, whatever happens to a node."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from cli.command import ended, run, start
from cluster.nodes import Nodes, two_nodes
from export.store import running
from models import tiny
from robustness import kills

pytest.importorskip("ray", reason="Ray has no wheel for this version of Python")

FORMAT = ("-f", "gguf:q8_0", "-O", "max-shard-size=4MB")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A llama of 12 million weights in several files' worth of tensors."""
    import numpy as np

    llama = tiny.build("llama", tmp_path_factory.mktemp("models") / "llama")
    folder = tmp_path_factory.mktemp("models") / "wide"
    shutil.copytree(llama, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 4, "dtype": "bfloat16"}
    config |= {"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 64}
    (folder / "config.json").write_text(json.dumps(config))
    vocabulary = config["vocab_size"]
    shapes = {"model.embed_tokens.weight": (vocabulary, 512), "lm_head.weight": (vocabulary, 512)}
    shapes["model.norm.weight"] = (512,)
    for i in range(4):
        layer = f"model.layers.{i}."
        shapes |= {f"{layer}{name}_layernorm.weight": (512,) for name in ("input", "post_attention")}
        shapes |= {f"{layer}self_attn.{name}_proj.weight": (512, 512) for name in "qkvo"}
        shapes |= {f"{layer}mlp.{name}_proj.weight": (1536, 512) for name in ("gate", "up")}
        shapes[f"{layer}mlp.down_proj.weight"] = (512, 1536)
    header, offset = {}, 0
    for name, shape in shapes.items():
        nbytes = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + nbytes]}
        offset += nbytes
    text = json.dumps(header).encode()
    noise = np.random.default_rng(0).standard_normal(offset // 2, np.float32)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.write((noise.view(np.uint32) >> 16).astype(np.uint16).tobytes())
    return folder


@pytest.fixture(scope="module")
def nodes(tmp_path_factory) -> Iterator[Nodes]:
    with two_nodes(tmp_path_factory.mktemp("ray")) as cluster:
        yield cluster


def content(place: Path) -> dict[str, str]:
    """Checksums of all files; the record is among them."""
    return {file.name: sha256(file.read_bytes()).hexdigest() for file in place.iterdir()}


@pytest.fixture(scope="module")
def clean(model, tmp_path_factory) -> dict[str, str]:
    """What this machine writes alone."""
    place = tmp_path_factory.mktemp("clean")
    assert run("export", model, *FORMAT, "-o", place / "out.gguf").code == 0
    found = content(place)
    assert len(found) >= 4
    return found


def test_the_same_bytes_and_record(model, nodes, clean, tmp_path):
    result = run(
        "export",
        model,
        *FORMAT,
        "-o",
        tmp_path / "out.gguf",
        "--engine",
        "ray",
        "--address",
        nodes.address,
        timeout=120,
    )
    assert (result.code, result.err) == (0, "")
    assert content(tmp_path) == clean


def sliced(place: Path) -> int:
    """Slices that the journal of a running export holds."""
    try:
        return (place / ".out.gguf.qformats-partial" / "journal.jsonl").read_bytes().count(b"\n") - 1
    except FileNotFoundError:
        return 0


def workers(node: int) -> list[int]:
    """Processes of a node that are writing just now: Ray puts the task into their title."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            title = (folder / "cmdline").read_bytes()
        except (OSError, ValueError, IndexError):
            continue
        if parent == node and title.startswith(b"ray::write"):
            found.append(int(folder.name))
    return found


def test_a_killed_node_loses_nothing(model, clean, tmp_path):
    """The process of one node is killed while one of its workers is at a part, which the other node then does."""
    place = tmp_path / "out"
    place.mkdir()
    with two_nodes(tmp_path) as nodes:
        process = start(
            "export", model, *FORMAT, "-o", place / "out.gguf", "--engine", "ray", "--address", nodes.address
        )
        deadline = time.monotonic() + 120
        held: list[int] = []
        while not held:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            for worker in workers(nodes.other):
                os.kill(worker, signal.SIGSTOP)
            # One that stands still and is still at it has not finished.
            held = workers(nodes.other)
        os.kill(nodes.other, signal.SIGKILL)
        for worker in held:
            os.kill(worker, signal.SIGKILL)
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert "a part of the work was lost and is done again" in err
    assert content(place) == clean


def test_engines_go_on_with_each_others_work(model, nodes, clean, tmp_path):
    """Killed by SIGKILL here, gone on with there, and the other way round."""
    place = tmp_path / "out.gguf"
    by_ray = ("--engine", "ray", "--address", nodes.address)
    for first, then in (((), by_ray), (by_ray, ())):
        process = start("export", model, *FORMAT, "-o", place, "-j", "1", *first)
        while sliced(tmp_path) < 3:
            assert process.poll() is None, process.communicate()
            time.sleep(0.001)
        assert ended(process, signal.SIGKILL)[0] == -signal.SIGKILL
        assert os.listdir(tmp_path) == [".out.gguf.qformats-partial"]
        result = run("export", model, *FORMAT, "-o", place, *then, timeout=120)
        assert result.code == 0, result.err
        assert result.err.startswith("qformats: going on with an interrupted export: ")
        assert content(tmp_path) == clean
        for file in tmp_path.iterdir():
            file.unlink()


@pytest.fixture(scope="module")
def work(nodes, tmp_path_factory) -> Iterator[kills.Work]:
    """Small models, the cluster and a store, for chains of kills."""
    pytest.importorskip("s3fs")
    pytest.importorskip("moto")
    with running() as store:
        yield kills.Work(tmp_path_factory.mktemp("kills"), nodes.address, store)


@pytest.mark.parametrize("kind", kills.BY_RAY)
def test_killed_at_any_moment(work, kind):
    """Exports that are killed while their tasks go on, and run again: ``robustness.kills`` does it for longer."""
    told = kills.chain(work, kind, random.Random(5))
    assert told["killed"]
    if kind == "ray":
        kills.prepared(work, "split")
        assert work.clean["ray"] == work.clean["split"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(model, nodes, tmp_path, number):
    process = start(
        "export",
        model,
        *FORMAT,
        "-o",
        tmp_path / "deep" / "out.gguf",
        "--engine",
        "ray",
        "--address",
        nodes.address,
    )
    while sliced(tmp_path / "deep") < 1:
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)
    code, err = ended(process, number)
    assert (code, err) == (128 + number, "qformats: interrupted; the target is unchanged\n")
    assert os.listdir(tmp_path) == []


def test_what_is_wrong_with_the_model_is_said_once(model, nodes, tmp_path):
    broken = Path(shutil.copytree(model, tmp_path / "in"))
    with (broken / "model.safetensors").open("r+b") as file:
        file.seek(-1000, os.SEEK_END)
        file.write(b"\xff\xff" * 8)
    made = tmp_path / "out"
    by_ray = ("--engine", "ray", "--address", nodes.address)
    there = run("export", broken, *FORMAT, "-o", made / "out.gguf", *by_ray, timeout=120)
    here = run("export", broken, *FORMAT, "-o", made / "out.gguf")
    assert there.code == here.code != 0
    assert there.err == here.err
    assert "model.layers.3.mlp.down_proj.weight" in there.err
    assert not made.exists()
