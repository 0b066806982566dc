"""What upstream's code computes with tiny ChatGLM-6B and GLM-130B models: `tests/golden/glm`, see PROVENANCE.json."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

__all__ = ["FILES", "IDS_130B", "chatglm_6b", "glm_130b", "golden"]

FILES = Path(__file__).parents[1] / "golden" / "glm"
IDS_130B = {
    "mask_token_id": 700,
    "gmask_token_id": 701,
    "smask_token_id": 702,
    "bos_token_id": 704,
    "eos_token_id": [705, 22],
    "pad_token_id": 0,
}
"""Special ids of the tiny GLM-130B."""


def golden(name: str) -> dict[str, Any]:
    """Tensors of ``golden.safetensors``; ids and positions as int64."""
    import torch
    from safetensors.torch import load_file

    file = FILES / (name if name.endswith(".safetensors") else f"{name}/golden.safetensors")
    return {k: v.long() if v.dtype == torch.int32 else v for k, v in load_file(file).items()}


def chatglm_6b(folder: Path, bits: int = 0, **changes: Any) -> Path:
    """A ChatGLM-6B folder: plain numbers (float16), int8 or int4."""
    source = FILES / "chatglm-6b" / (f"int{bits}" if bits else "")
    folder.mkdir(parents=True)
    shutil.copyfile(source / "model.safetensors", folder / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def glm_130b(folder: Path, bits: int = 0, ranks: int = 2) -> Path:
    """The files of GLM-130B's ranks: plain numbers (float16), or int8 or int4 in two ranks."""
    import torch
    from safetensors.torch import load_file

    if bits:
        shutil.copytree(FILES / "glm-130b" / f"int{bits}", folder)
    else:
        (folder / "300").mkdir(parents=True)
        (folder / "latest").write_text("300")
        whole = load_file(FILES / "glm-130b" / "model.safetensors")
        for rank in range(ranks):
            module = {name: _share(name, value, rank, ranks) for name, value in whole.items()}
            torch.save({"module": module}, folder / "300" / f"mp_rank_{rank:02d}_model_states.pt")
    (folder / "model_config.json").write_text(json.dumps({"num_attention_heads": 4, **IDS_130B}))
    return folder


def _share(name: str, value: Any, rank: int, ranks: int) -> Any:
    """What a rank holds of a tensor, as GLM-130B:tools/convert_tp.py divides it."""
    import torch

    if "dense_h_to_4h" in name:
        halves = value.chunk(2 * ranks)
        return torch.cat([halves[rank], halves[ranks + rank]]).clone()
    if "query_key_value" in name or "word_embeddings" in name:
        return value.chunk(ranks)[rank].clone()
    if name.endswith(("attention.dense.weight", "dense_4h_to_h.weight")):
        return value.chunk(ranks, 1)[rank].clone()
    return value.clone()
