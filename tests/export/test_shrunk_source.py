"""A source that becomes shorter while it is mapped: one sentence with its name, and nothing under the target's."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cli.command import run

import qformats

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only there is the signal answered")

PROGRAM = """
import os, sys
import qformats.exporting.fill as fill
from qformats.cli import main
encode, source = fill.encode, sys.argv[1]
def shortened(*args, **more):
    os.truncate(source, 4096)
    return encode(*args, **more)
fill.encode = shortened
sys.argv = ["qformats", "export", *sys.argv[2:]]
main()
"""


def disturbed(*arguments):
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_file_is_named_and_the_target_is_not_there(threads, tmp_path):
    demo = Path(qformats.open("demo").path)
    source = shutil.copytree(demo, tmp_path / "model")
    weights, target = source / "model.safetensors", tmp_path / "out.gguf"
    line = [source, "--format", "gguf:q4_0", "-o", target, "--threads", threads]
    done = disturbed(weights, *line)
    assert done.returncode == 3, done.stderr
    said = done.stderr.strip().splitlines()[-1]
    assert said.endswith(
        f"{weights}: became shorter while it was read. Write it again, then repeat the command"
    )
    assert "Traceback" not in done.stderr
    assert not target.exists()
    # As the sentence says: written again, the command gives what it would have given.
    shutil.copy2(demo / "model.safetensors", weights)
    assert run("export", *line).code == 0
    qformats.export(demo, tmp_path / "undisturbed.gguf", format="gguf:q4_0")
    assert os.path.getsize(target) == os.path.getsize(tmp_path / "undisturbed.gguf")
    mine, other = qformats.open(target), qformats.open(tmp_path / "undisturbed.gguf")
    for name, tensor in other.tensors.items():
        assert (mine.tensors[name].dequantize() == tensor.dequantize()).all(), name
