"""The kernels, fast branch included, compile for a GPU where there is none."""

import os
import subprocess
import sys
from pathlib import Path


def test_every_mode_compiles_to_machine_code_of_an_h100(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("compile_for_gpu.py"))],
        capture_output=True,
        text=True,
        env={**environment, "TRITON_CACHE_DIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert len(lines) == 38
    assert all(int(line.rpartition(": ")[2]) > 1000 for line in lines)
