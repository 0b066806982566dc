"""Models in the layout of SwissArmyTransformer, and its rules for ranks transcribed in numpy.

Nothing of qformats is used here: shards are cut with numpy's split and concatenate, codes are chosen in float16
arithmetic, and files are written by torch.save.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

LAYERS, HIDDEN, HEADS, INNER, VOCABULARY = 2, 32, 8, 64, 48
LINEAR = ("query_key_value", "attention.dense", "dense_h_to_4h", "dense_4h_to_h")
State = dict[str, np.ndarray]


def model(seed: int = 0, *, glu: bool = True, groups: int | None = None) -> State:
    """Whole tensors of a random model, float16; `groups` key and value heads stand for contiguous segments."""
    random = np.random.default_rng(seed)

    def values(*shape: int) -> np.ndarray:
        return random.standard_normal(shape).astype(np.float16)

    qkv = 3 * HIDDEN if groups is None else HIDDEN + 2 * groups * (HIDDEN // HEADS)
    up = 2 * INNER if glu else INNER
    state = {"transformer.word_embeddings.weight": values(VOCABULARY, HIDDEN)}
    for layer in range(LAYERS):
        prefix = f"transformer.layers.{layer}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            state |= {f"{prefix}{norm}.weight": values(HIDDEN), f"{prefix}{norm}.bias": values(HIDDEN)}
        if groups is None and glu:
            state[f"{prefix}attention.rotary_emb.inv_freq"] = values(HIDDEN // HEADS // 2)
        for name, shape in (
            ("attention.query_key_value", (qkv, HIDDEN)),
            ("attention.dense", (HIDDEN, HIDDEN)),
            ("mlp.dense_h_to_4h", (up, HIDDEN)),
            ("mlp.dense_4h_to_h", (HIDDEN, INNER)),
        ):
            state |= {f"{prefix}{name}.weight": values(*shape), f"{prefix}{name}.bias": values(shape[0])}
    for part in ("weight", "bias"):
        state[f"transformer.final_layernorm.{part}"] = values(HIDDEN)
    return state


def split(state: State, ranks: int, *, glu: bool = True, groups: int | None = None) -> list[State]:
    """What every rank holds: plain tensors, or quantized ones with ``_scale`` beside them."""
    parts: list[State] = [{} for _ in range(ranks)]
    for name, value in state.items():
        for rank, piece in enumerate(_pieces(name, value, ranks, glu, groups)):
            parts[rank][name] = piece
    return parts


def _pieces(name: str, value: np.ndarray, ranks: int, glu: bool, groups: int | None) -> list[np.ndarray]:
    key = name.removesuffix("_scale")
    if key.endswith(("attention.dense.weight", "dense_4h_to_h.weight")):
        return [value] * ranks if key != name else np.split(value, ranks, 1)
    if "dense_h_to_4h" in key and glu:
        chunks = np.split(value, 2 * ranks)
        return [np.concatenate([chunks[i], chunks[ranks + i]]) for i in range(ranks)]
    if "query_key_value" in key and groups is not None:
        width = HIDDEN // HEADS
        segments = np.split(value, [HIDDEN, HIDDEN + groups * width])
        each = [np.split(segment, ranks) for segment in segments]
        return [np.concatenate([segment[i] for segment in each]) for i in range(ranks)]
    divided = (
        "word_embeddings",
        "query_key_value",
        "dense_h_to_4h",
        "mixins.mlp.gate_proj",
        "mixins.lm.lm_head",
    )
    if any(part in key for part in divided):
        return np.split(value, ranks)
    return [value] * ranks


def quantize(state: State, bits: int) -> State:
    """Linear weights in upstream's rule, in float16 throughout; code -8 or -128 never appears here."""
    found: State = {}
    for name, value in state.items():
        if not name.endswith(".weight") or value.ndim != 2 or "embeddings" in name:
            found[name] = value
            continue
        top = np.float16(2 ** (bits - 1) - 1)
        scale = np.abs(value).max(1) / top
        codes = np.rint(value / scale[:, None]).astype(np.int8)
        if bits == 4:
            codes = (codes[:, 0::2] << 4) | (codes[:, 1::2] & 15)
        found[name], found[f"{name}_scale"] = codes, scale
    return found


def values_of(state: State, name: str) -> np.ndarray:
    """float32 value of a weight, quantized in int4 (half as many columns as `scale` rows tell) or plain."""
    weight = state[name]
    if weight.dtype != np.int8:
        return weight.astype(np.float32)
    scale = state[f"{name}_scale"].astype(np.float32)
    return weight.astype(np.float32) * scale[:, None]


def nibbles(packed: np.ndarray) -> np.ndarray:
    """Signed codes of packed bytes, the high nibble first."""
    pairs = np.stack([packed >> 4, (packed << 4).astype(np.int8) >> 4], -1)
    return pairs.reshape(packed.shape[0], -1)


def save(folder: Path, parts: list[State], *, iteration: str = "49300", **more: Any) -> Path:
    """Write ranks as upstream does; `more` goes beside ``module``."""
    import torch

    (folder / iteration).mkdir(parents=True)
    (folder / "latest").write_text(iteration)
    for rank, part in enumerate(parts):
        module = {name: torch.from_numpy(np.array(value)) for name, value in part.items()}
        torch.save({"module": module, **more}, folder / iteration / f"mp_rank_{rank:02d}_model_states.pt")
    return folder


def load(folder: Path, *, mmap: bool = True) -> list[State]:
    """Every rank's ``module``, by torch.load."""
    import torch

    parts = []
    for file in sorted((folder / (folder / "latest").read_text()).iterdir()):
        state = torch.load(file, weights_only=True, mmap=mmap)
        parts.append({name: value.numpy().copy() for name, value in state["module"].items()})
    return parts


def same(found: list[State], expected: list[State]) -> None:
    """Assert that ranks hold the same names, dtypes, shapes and bytes."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert sorted(one) == sorted(other)
        for name, value in other.items():
            assert one[name].dtype == value.dtype, name
            assert one[name].shape == value.shape, name
            assert one[name].tobytes() == value.tobytes(), name


def model_config(folder: Path, **content: Any) -> None:
    """Write ``model_config.json`` as training does."""
    (folder / "model_config.json").write_text(json.dumps(content))
