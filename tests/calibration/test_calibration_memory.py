"""How much memory a calibration takes."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qformats.work.memory import return_freed

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "measure_memory.py"
SIZE = ["--hidden", "384", "--intermediate", "1536", "--layers", "12", "--vocabulary", "2048"]
OPTIONS = {
    "samples": "4",
    "sequence-length": "128",
    "rounds": "0",
    "search": "no",
    "compute-dtype": "f32",
    "activation-memory": "1MB",
}
# A third of what the twelve blocks take.
SLACK = "35"


def _anonymous():
    text = Path("/proc/self/status").read_text()
    return int(text.partition("RssAnon:")[2].split()[0]) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_peak_is_within_the_bound(tmp_path):
    """Blocks come and go: of twelve, never more than one and its unquantized copy are in memory."""
    options = [part for name, value in OPTIONS.items() for part in ("-Q", f"{name}={value}")]
    command = [sys.executable, str(SCRIPT), "--folder", str(tmp_path), "--slack", SLACK, *SIZE, *options]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "block 12 of 12: mlp.down_proj" in found.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_freed_memory_goes_back_to_the_system():
    """Arrays from the heap of which every hundredth stays: glibc keeps what was between them until it is asked."""
    return_freed()
    before = _anonymous()
    # Below glibc's least threshold for memory of its own.
    arrays = [np.ones(100_000, np.uint8) for _ in range(1000)]
    kept = arrays[::100]
    assert _anonymous() - before > 90e6
    del arrays
    return_freed()
    assert _anonymous() - before < 20e6
    assert len(kept) == 10
