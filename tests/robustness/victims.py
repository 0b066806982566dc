"""Small models of every container and format, made once, to be damaged."""

from __future__ import annotations

import shutil
from pathlib import Path

from glm_ranks import sat_oracle
from models import chatglm, tiny

import qformats

__all__ = ["EXPORTS", "build"]

EXPORTS = {
    "gguf": "gguf:q4_0",
    "gptq": "gptq:4bit-32g",
    "nf4": "bitsandbytes:nf4-dq",
    "int8": "bitsandbytes:int8",
    "glm": "glm:int4",
}
"""What the first model is exported to, by the name of the victim."""


def build(folder: Path) -> dict[str, Path]:
    """Write all of them into `folder`, each a folder of its own, by name."""
    found = {"folder": tiny.build("llama", folder / "folder", "float16")}
    found["sharded"] = tiny.build("qwen2", folder / "sharded", max_shard_size=100_000)
    found["bin"] = tiny.build("llama", folder / "bin", bin_shards=2, legacy_config=True)
    found["spm"] = tiny.build("llama-spm", folder / "spm", "float16")
    found["yarn"] = tiny.build("llama-rope-yarn", folder / "yarn", "float16", legacy_config=True)
    for name, format in EXPORTS.items():
        found[name] = folder / name
        file = found[name] / "model.gguf" if name == "gguf" else found[name]
        # Which codes are chosen does not matter here, so the cheapest quantizer serves.
        qformats.export(found["folder"], file, format=format, quantizer="rtn", workers=1)
    for name, model in (("spm", "spm"), ("rope", "llama-rope-llama3"), ("gpt2", "gpt2")):
        source = found.get(model) or tiny.build(model, folder / f"{model}-source", "float16")
        found[f"gguf-{name}"] = folder / f"gguf-{name}"
        qformats.export(source, found[f"gguf-{name}"] / "model.gguf", format="gguf:f16", workers=1)
    found["chatglm"] = folder / "chatglm"
    chatglm.save(chatglm.model(), found["chatglm"], bits=4)
    parts = sat_oracle.split(sat_oracle.quantize(sat_oracle.model(), 4), 2)
    found["ranks"] = sat_oracle.save(folder / "ranks", parts)
    sat_oracle.model_config(found["ranks"], num_attention_heads=4, model_parallel_size=2)
    # Damage is to be found by what reads it, not by a checksum.
    for record in folder.glob("*/*qformats.json"):
        record.unlink()
    return found


def copy(victim: Path, to: Path) -> Path:
    """A copy that may be damaged."""
    shutil.rmtree(to, ignore_errors=True)
    return Path(shutil.copytree(victim, to))
