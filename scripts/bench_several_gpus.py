"""What is written for several GPUs, on two of one host beside one: ranks, calibration, and models that are placed.

    python scripts/bench_several_gpus.py FOLDER                       all three; FOLDER is for the models, 60 GB
    python scripts/bench_several_gpus.py FOLDER --only calibration    one of ranks, calibration, placing
    python scripts/bench_several_gpus.py FOLDER --small               tiny models, on CPUs where there are no GPUs

Where there is one GPU, the table has only the column of one.

- Ranks: GLM-130B's layout under torchrun with 1 and 2 processes, int4 and float16, a prompt of 512 tokens and 64 more.
- Calibration: GPTQ of Llama 3 8B's shapes with 128 x 2048 tokens.
- Placing: `load_model(..., device_map="auto")`, of these shapes and of Llama 3.1 405B's in 4 bits, which no card holds.

Weights are random, and the layers of a model are the same bytes on disk. Results go to results.json in FOLDER, part by
part; a table of all parts that are there is printed at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# NVLink's multicast can put the GPUs of a host out of service for others.
os.environ["NCCL_NVLS_ENABLE"] = "0"
sys.path.insert(0, str(Path(__file__).parent))

import torch
import transformers
from several_gpus import calibrating, placing, ranks, table

PARTS: dict[str, Callable[..., list[dict[str, Any]]]] = {
    "ranks": ranks.measure,
    "calibration": calibrating.measure,
    "placing": placing.measure,
}


def main() -> int:
    """Measure the parts, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--small", action="store_true", help="tiny models, to try it")
    arguments = parser.parse_args()
    if not arguments.small and not torch.cuda.is_available():
        print("bench_several_gpus: found no GPU; expected two of one host", file=sys.stderr)
        return 1
    # With a single one, the first column of the table.
    counts = (1, 2) if arguments.small else tuple(range(1, min(2, torch.cuda.device_count()) + 1))
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    results = arguments.folder / "results.json"
    found: dict[str, Any] = json.loads(results.read_text()) if results.exists() else {}
    where = (
        f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
        if torch.cuda.is_available()
        else "CPU"
    )
    found["where"] = (
        f"{where}, torch {torch.__version__}, Transformers {transformers.__version__}, "
        f"Python {platform.python_version()}"
    )
    for name in arguments.only:
        found[name] = PARTS[name](arguments.folder, counts, small=arguments.small)
        results.write_text(json.dumps(found, indent=1))
    print(table.of(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
