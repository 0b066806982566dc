"""Run by torchrun: each process loads its share of a model, and the first one saves what they compute together.

Arguments are a JSON file with ``runs`` (a name, a folder and options of ``load_model`` each) and ``ids``, and the file
for the results.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

import qformats


def main() -> None:
    """Compute logits, and eight tokens, of every run."""
    wanted = json.loads(Path(sys.argv[1]).read_text())
    found = {}
    ids = torch.tensor(wanted["ids"])
    for name, folder, options in wanted["runs"]:
        model = qformats.load_model(folder, device="cpu", tensor_parallel=True, **options)
        with torch.no_grad():
            found[f"{name}.logits"] = model(ids).logits
        found[f"{name}.tokens"] = model.generate(ids, max_new_tokens=8, do_sample=False)
        found[f"{name}.weights"] = torch.tensor(sum(p.numel() for p in model.parameters()))
        if name == "plain":
            with torch.no_grad():
                found["double.logits"] = model.double()(ids).logits
    if os.environ["RANK"] == "0":
        torch.save(found, sys.argv[2])


main()
