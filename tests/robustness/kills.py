"""Exports of every kind killed at any moment, again and again: nothing half under the final name, and the same bytes.

``cd tests && python -m robustness.kills ROUNDS [SEED [KINDS]]`` runs for longer than the test does. A round is a chain:
up to three kills of exports into one target, then one that is not disturbed. Kinds by Ray convert on a cluster of two
nodes: the process that asks for the export is killed, and its tasks are left alone. Some upload to a store.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from hashlib import sha256
from pathlib import Path

from cluster.nodes import two_nodes
from export.store import Store, running
from models import tiny
from robustness.killing import ended

import qformats
from qformats.exporting.again import again_from
from qformats.exporting.rerun import rerun

__all__ = ["KINDS", "Work", "chain", "prepared"]

_MOST_KILLS = 3
_SHARE_OF_STEPS = 0.7
"""Of kills at a call of the file system; the others come after some time."""
_SEALING = 40
_NEVER = 1 << 60
_CALIBRATED = {"samples": "4", "sequence-length": "32", "device": "cpu"}


class Work:
    """Models to read, and what each kind of export writes undisturbed.

    Attributes
    ----------
    folder : Path
        Where all of it lies.
    source, adapter, recipe : Path
        A model, an adapter for it, and an export whose record is run again.
    address : str
        Of a Ray cluster, for the kinds that need one.
    store : Store or None
        A server, for the kinds that need one.
    """

    def __init__(self, folder: Path, address: str = "", store: Store | None = None) -> None:
        self.folder, self.address, self.store = folder, address, store
        self.source = tiny.build("llama", folder / "source", "float16")
        self.adapter = _adapter(folder / "adapter", self.source)
        self.recipe = folder / "recipe" / "out.gguf"
        qformats.export(self.source, self.recipe, format="gguf:q5_0", quantizer="rtn", workers=1)
        self.clean: dict[str, dict[str, str]] = {}
        self.older: dict[str, dict[str, str]] = {}
        self.seconds: dict[str, float] = {}
        self.steps: dict[str, int] = {}


def _adapter(folder: Path, base: Path) -> Path:
    import torch
    from safetensors.torch import save_file

    width = json.loads((base / "config.json").read_text())["hidden_size"]
    folder.mkdir()
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["q_proj"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(base)}))
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    generator = torch.Generator().manual_seed(0)
    halves = {f"{module}.lora_A.weight": (2, width), f"{module}.lora_B.weight": (width, 2)}
    tensors = {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in halves.items()}
    for layer in range(1, json.loads((base / "config.json").read_text())["num_hidden_layers"]):
        tensors |= {
            name.replace(".0.", f".{layer}."): value.clone() for name, value in [*tensors.items()][:2]
        }
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def _export(format: str, quantizer: str, work: Work, target: Path, **more: object) -> None:
    qformats.export(work.source, target, format=format, quantizer=quantizer, workers=2, force=True, **more)  # type: ignore[arg-type]


def _merge(work: Work, target: Path) -> None:
    qformats.merge_adapter(
        work.adapter, target, source=work.source, format="dense:f16", force=True, workers=2
    )


def _recipe(work: Work, target: Path) -> None:
    rerun(again_from(work.recipe), qformats.open(work.source), target, force=True, workers=2)


def _by_ray(format: str, work: Work, target: Path, **more: object) -> None:
    # Each node has one core.
    ray = {"engine": "ray", "address": work.address}
    qformats.export(work.source, target, format=format, quantizer="rtn", workers=1, force=True, **ray, **more)  # type: ignore[arg-type]


def _into_store(write: Callable[..., None], format: str, work: Work, target: Path, **more: object) -> None:
    """A path stands for the place in the store."""
    assert work.store is not None
    os.environ |= work.store.environment | {"QFORMATS_SCRATCH": str(_scratch(target.parent))}
    write(format, work, _url(target), **more)


def _url(target: Path) -> str:
    return f"s3://bucket/{target.parent.parent.name}-{target.parent.name}/{target.name}"


def _scratch(place: Path) -> Path:
    return place.with_name("scratch")


_SPLIT = {"max-shard-size": "60KB"}
KINDS: Mapping[str, tuple[str, Callable[[Work, Path], None]]] = {
    "file": ("out.gguf", partial(_export, "gguf:q4_0", "rtn")),
    "split": ("out.gguf", partial(_export, "gguf:q8_0", "rtn", options=_SPLIT)),
    "folder": ("out", partial(_export, "bitsandbytes:nf4", "rtn")),
    "gptq": ("out", partial(_export, "gptq:4bit-32g", "gptq", quantizer_options=_CALIBRATED)),
    "awq": ("out", partial(_export, "awq:4bit-32g", "awq", quantizer_options=_CALIBRATED)),
    "merge": ("out", _merge),
    "recipe": ("out.gguf", _recipe),
    "ray": ("out.gguf", partial(_by_ray, "gguf:q8_0", options=_SPLIT)),
    "ray-store": ("out", partial(_into_store, _by_ray, "dense:f16", options=_SPLIT)),
}
"""Name of the target, and what writes it."""
BY_RAY = ("ray", "ray-store")
"""Kinds that need a cluster."""
IN_STORE = ("ray-store",)
"""Kinds whose target is a URL."""


def _stored(format: str, work: Work, target: Path, **more: object) -> None:
    _export(format, "rtn", work, target, **more)


_OLDER = {
    "out.gguf": partial(_export, "gguf:f16", "rtn"),
    "out": partial(_export, "dense:bf16", "rtn"),
}


def _content(place: Path, store: Store | None) -> dict[str, str]:
    """Checksums of all files that are not hidden, those in folders too."""
    if store is not None:
        client, root = store.client(), _url(place / "x").removeprefix("s3://").removesuffix("/x")
        return {
            file.removeprefix(f"{root}/"): sha256(client.cat_file(file)).hexdigest()
            for file in client.find(root)
        }
    files = [file for file in sorted(place.rglob("*")) if file.is_file()]
    found = {str(file.relative_to(place)): sha256(file.read_bytes()).hexdigest() for file in files}
    return {name: digest for name, digest in found.items() if not name.startswith(".")}


def prepared(work: Work, kind: str) -> None:
    """Run a kind undisturbed, once, and what it replaces."""
    target, act = KINDS[kind]
    there = work.store if kind in IN_STORE else None
    for found, made in ((work.older, _old(kind)), (work.clean, act)):
        place = work.folder / "undisturbed"
        place.mkdir()
        began, log = time.monotonic(), work.folder / "log"
        code = ended(partial(made, work, place / target), step=_NEVER, log=log)
        assert code == 0, log.read_text()
        work.seconds[kind] = time.monotonic() - began
        work.steps[kind] = int(log.read_text().split()[-1])
        found[kind] = _content(place, there)
        shutil.rmtree(place)
        if there is not None:
            _emptied(there, place)


def _emptied(store: Store, place: Path) -> None:
    store.client().rm(_url(place / "x").removesuffix("/x"), recursive=True)


def _old(kind: str) -> Callable[[Work, Path], None]:
    if kind in IN_STORE:
        return partial(_into_store, _stored, "dense:bf16", options=_SPLIT)
    # A split model is replaced by one of as many parts: the same names, so that a mixture is possible.
    if kind in ("split", "ray"):
        return partial(_export, "gguf:q5_1", "rtn", options={"max-shard-size": "40KB"})
    return _OLDER[KINDS[kind][0]]


def _whole(kind: str, found: Mapping[str, str], states: list[dict[str, str]]) -> None:
    """What a reader may see: one of the two models, and nothing only where the documentation says so."""
    if found in states:
        return
    if kind in IN_STORE:
        # What readers of folders open first goes first and comes last.
        assert "out/config.json" not in found, f"{kind}: {sorted(found)} is no model"
        return
    first = [name for name in found if name == "out.gguf" or "-00001-of-" in name]
    if kind in ("split", "ray") and not first:
        # Between renames: no program opens the rest.
        return
    # A file without its record, for the moment in which they change.
    records = [
        {name: state[name] for name in state if not name.endswith("qformats.json")} for state in states
    ]
    assert found in records, f"{kind}: {sorted(found)} is no model"


def chain(work: Work, kind: str, rng: random.Random) -> Counter[str]:
    """Kill exports into one target, then finish; gives what happened."""
    if kind not in work.clean:
        prepared(work, kind)
    target, act = KINDS[kind]
    there = work.store if kind in IN_STORE else None
    told: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(dir=work.folder) as name:
        place, log = Path(name) / "place", Path(name) / "log"
        place.mkdir()
        states = [work.clean[kind], {}]
        if replaced := rng.random() < 0.7:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                _old(kind)(work, place / target)
            assert _content(place, there) == work.older[kind]
            states[1] = work.older[kind]
        told["replacing" if replaced else "new"] += 1
        for _ in range(rng.randint(1, _MOST_KILLS)):
            if rng.random() < _SHARE_OF_STEPS:
                code = ended(partial(act, work, place / target), step=_step(rng, work.steps[kind]), log=log)
            else:
                after = rng.uniform(0, 1.1) * work.seconds[kind]
                code = ended(partial(act, work, place / target), after=after, log=log)
            assert code in (0, -signal.SIGKILL), log.read_text()
            told["killed" if code else "finished before"] += 1
            found = _content(place, there)
            _whole(kind, found, states)
            told["not there until the next run"] += replaced and found not in states and kind != "file"
            if found == work.clean[kind]:
                break
        code = ended(partial(act, work, place / target), log=log)
        assert code == 0, log.read_text()
        assert _content(place, there) == work.clean[kind]
        assert not _scratch(place).exists()
        if there is not None:
            _emptied(there, place)
        assert [path.name for path in place.iterdir() if path.name.startswith(".")] == []
    return told


def _step(rng: random.Random, calls: int) -> int:
    """A call at which a kill falls: as often among the last ones, which put the output in place, as among all."""
    return rng.randint(1 if rng.random() < 0.5 else max(1, calls - _SEALING), calls)


@contextlib.contextmanager
def _needed(kinds: list[str], folder: Path) -> Iterator[tuple[str, Store | None]]:
    """Address of a cluster and a store, where kinds need them."""
    with contextlib.ExitStack() as stack:
        address = stack.enter_context(two_nodes(folder)).address if {*kinds} & {*BY_RAY} else ""
        store = stack.enter_context(running()) if {*kinds} & {*IN_STORE} else None
        yield address, store


def main(rounds: int, seed: int, only: str) -> None:
    """Print what happened, by kind."""
    rng = random.Random(seed)
    kinds = only.split(",") if only else [kind for kind in KINDS if kind not in BY_RAY]
    totals: dict[str, Counter[str]] = {kind: Counter() for kind in kinds}
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name,
        _needed(kinds, Path(name)) as needed,
    ):
        work = Work(Path(name), *needed)
        began = time.monotonic()
        for number in range(rounds):
            kind = kinds[number % len(kinds)]
            totals[kind] += chain(work, kind, rng)
            if number % len(kinds) == len(kinds) - 1:
                print(
                    f"{time.monotonic() - began:.0f} s", {k: dict(v) for k, v in totals.items()}, flush=True
                )
    print(
        sum(each["killed"] for each in totals.values()),
        "kills in",
        rounds,
        "chains: all finished with the same bytes",
    )


if __name__ == "__main__":
    main(
        int(sys.argv[1]),
        int(sys.argv[2]) if len(sys.argv) > 2 else 0,
        sys.argv[3] if len(sys.argv) > 3 else "",
    )
