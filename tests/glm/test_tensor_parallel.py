"""One model on several processes: the numbers are those of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cli.command import call
from models.glm_goldens import chatglm_6b, glm_130b, golden

import qformats
from qformats.errors import ConfigError

CLOSE = 1e-5
"""Largest difference of a logit, as a share of the largest: sums over several devices are added in another order, and
float32 has 24 bits. In float64 the two agree to 1e-12."""
HERE = Path(__file__).parent


def run(*arguments):
    paths = [str(HERE.parent), *(path for path in sys.path if path)]
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "USE_LIBUV": "0"},
    )


def difference(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("ranks", [2, 4])
def test_several_processes_compute_what_one_does(ranks, tmp_path):
    known = golden("glm-130b")
    ids = known["gmask.prefill.input_ids"]
    # Rank files for two: a process takes its share of any number of them.
    plain, packed = glm_130b(tmp_path / "plain"), glm_130b(tmp_path / "int4", 4)
    large = qformats.open(plain)
    runs = [
        ("plain", str(plain), {}),
        ("int8", str(glm_130b(tmp_path / "int8", 8)), {}),
        ("int4", str(packed), {}),
        ("while loading", str(plain), {"format": "glm:int4"}),
    ]
    (tmp_path / "wanted.json").write_text(json.dumps({"runs": runs, "ids": ids.tolist()}))
    done = run(HERE / "tensor_parallel.py", ranks, tmp_path / "wanted.json", tmp_path / "found.pt", "cpu")
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    for name, folder, options in runs[:3]:
        alone = qformats.load_model(folder, device="cpu", **options)
        with torch.no_grad():
            expected = alone(ids).logits
        assert difference(found[f"{name}.logits"], expected) < CLOSE, name
        if name == "plain":
            with torch.no_grad():
                assert difference(found["double.logits"], alone.double()(ids).logits) < 1e-12
            alone.float()
        assert torch.equal(found[f"{name}.tokens"], alone.generate(ids, max_new_tokens=8, do_sample=False))
    # Quantized after it was divided: each device has scales of its own, as GLM-130B's loader gave them.
    qformats.export(
        plain, tmp_path / "ranks", format="glm:int4", options={"tensor-parallel": str(ranks), "heads": "4"}
    )
    alone = qformats.load_model(tmp_path / "ranks", device="cpu", options={"heads": "4"})
    with torch.no_grad():
        assert difference(found["while loading.logits"], alone(ids).logits) < CLOSE
    # Norms, and biases that only one device adds, are small beside what is divided.
    assert found["plain.weights"] < large.parameters / ranks * 1.1


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs of one machine")
@pytest.mark.parametrize("bits", [0, 4])
def test_two_gpus_compute_what_one_does_in_captured_steps(bits, tmp_path):
    """And end: a graph that holds an exchange would keep NCCL waiting."""
    ids = golden("glm-130b")["gmask.prefill.input_ids"]
    folder = glm_130b(tmp_path / "in", bits)
    runs = [("model", str(folder), {"dtype": "f32"})]
    (tmp_path / "wanted.json").write_text(json.dumps({"runs": runs, "ids": ids.tolist()}))
    done = run(HERE / "tensor_parallel.py", 2, tmp_path / "wanted.json", tmp_path / "found.pt", "cuda")
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    alone = qformats.load_model(folder, device="cuda", dtype="f32")
    with torch.no_grad():
        assert difference(found["model.logits"], alone(ids.cuda()).logits.cpu()) < 10 * CLOSE
    assert found["model.captured"]
    own = alone.generate(ids.cuda(), max_new_tokens=8, do_sample=False)
    assert torch.equal(found["model.tokens"], own.cpu())


def test_generate_writes_once(tmp_path, capfd):
    """Under torchrun itself."""
    folder = chatglm_6b(tmp_path / "chatglm", 4)
    data = HERE.parent / "golden" / "glm_tokenizers"
    (folder / "ice_text.model").write_bytes((data / "ice_text.model").read_bytes())
    command = ["generate", folder, "Hello", "-n", "6", "--device", "cpu"]
    alone = call(capfd, *command)
    done = run(
        "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m", "qformats", *command
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == alone.out
    assert done.stderr.count("tokens written") == 1


def test_what_cannot_be_divided_is_said(monkeypatch):
    from qformats.runtime.parallel import own_share
    from qformats.work.processes import Processes, launched

    with pytest.raises(ConfigError, match="2 processes for llama; expected a model whose class"):
        own_share(qformats.open("demo"), Processes(0, 2, 0))
    for name, value in (("RANK", "2"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="RANK: found 2; expected less than WORLD_SIZE"):
        launched()
    monkeypatch.setenv("RANK", "x")
    with pytest.raises(ConfigError, match="RANK: found 'x'"):
        launched()


def test_heads_that_do_not_divide(tmp_path):
    from qformats.runtime.parallel import own_share
    from qformats.work.processes import Processes

    with pytest.raises(ConfigError, match="divides the 4 heads"):
        own_share(qformats.open(glm_130b(tmp_path / "in")), Processes(0, 3, 0))


def test_one_process_needs_no_group():
    model = qformats.load_model("demo", device="cpu", tensor_parallel=True)
    assert not torch.distributed.is_initialized()
    assert model.device.type == "cpu"
