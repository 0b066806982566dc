"""Damage to JSON: what stands at a key, which keys there are, and the text itself."""

from __future__ import annotations

import json
from functools import lru_cache
from random import Random
from typing import Any

from . import blobs
from .texts import WORDS

__all__ = ["DTYPES", "change", "spoil"]

_PLAIN: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        3,
        4,
        8,
        7,
        16,
        32,
        64,
        128,
        255,
        4096,
        2**31,
        2**32,
        2**63,
        2**64,
        -(2**63),
    ),
    *(0.0, 0.5, 1.0, 2.5, 1e-9, 1e39, 1e300, -1e300, float("nan"), float("inf"), float("-inf")),
)
_ROUND: tuple[str, ...] = (
    *(
        "[]",
        "[null]",
        "[1]",
        '["x"]',
        "[[]]",
        "[1180591620717411303424]",
        "[NaN]",
        "[[1,2],[3]]",
        "[0,0]",
        "[-1,4]",
    ),
    *("{}", '{"a":1}', '{"type":"x"}', '{"x":{"y":[]}}', '{"":null}', "[{}]", '{"weight":{"x":1}}'),
)
_LARGE: tuple[str, ...] = (
    "[" * 90 + "]" * 90,
    "[" * 3000 + "]" * 3000,
    '{"a":' * 300 + "1" + "}" * 300,
    "1" + "0" * 400,
    json.dumps("x" * 20_000),
    json.dumps([0] * 3000),
)
DTYPES = (
    "F32",
    "F16",
    "BF16",
    "I32",
    "I64",
    "U8",
    "I8",
    "BOOL",
    "F8_E4M3",
    "F8_E5M2",
    "F8_E8M0",
    "F4",
    "F64",
    "U16",
    "X",
)
"""Names of safetensors, and one that is none."""
_MODEL_WORDS = (
    *(
        "gptq",
        "awq",
        "compressed-tensors",
        "fp8",
        "bitsandbytes",
        "hqq",
        "quanto",
        "torchao",
        "modelopt",
        "mxfp4",
    ),
    *(
        "float-quantized",
        "int-quantized",
        "pack-quantized",
        "nvfp4-pack-quantized",
        "tensor",
        "channel",
        "group",
    ),
    *(
        "block",
        "token",
        "int",
        "float",
        "asymmetric",
        "symmetric",
        "gemm",
        "gemv",
        "marlin",
        "sym",
        "dynamic",
    ),
    *(
        "llama",
        "qwen2",
        "gpt2",
        "bert",
        "chatglm",
        "deepseek_v3",
        "gpt_oss",
        "LlamaForCausalLM",
        "Linear",
        "re:.*",
    ),
    *(
        "model.embed_tokens.weight",
        "lm_head",
        "model.layers.0.self_attn.q_proj",
        "*",
        "lm_head.weight",
        "re:(",
    ),
    *(
        "BPE",
        "Unigram",
        "WordPiece",
        "WordLevel",
        "ByteLevel",
        "Metaspace",
        "Sequence",
        "Split",
        "Regex",
        "String",
    ),
    *(
        "Prepend",
        "Replace",
        "NFC",
        "Lowercase",
        "ByteFallback",
        "Fuse",
        "Strip",
        "TemplateProcessing",
        "bfloat16",
    ),
    *(
        "float16",
        "float32",
        "uint8",
        "LORA",
        "yarn",
        "linear",
        "longrope",
        "rope_type",
        "E4M3",
        "ue8m0",
        "always",
    ),
)


def _any(rng: Random) -> Any:
    how = rng.random()
    if how < 0.4:
        return rng.choice(_PLAIN)
    if how < 0.55:
        return rng.choice(WORDS)
    if how < 0.75:
        return rng.choice(_MODEL_WORDS)
    if how < 0.8:
        return rng.choice(DTYPES)
    return json.loads(rng.choice(_ROUND))


def _near(rng: Random, old: Any) -> Any:
    """Something like what was there."""
    if isinstance(old, bool):
        return not old
    if isinstance(old, int):
        return rng.choice(
            (
                old + 1,
                old - 1,
                -old,
                old * 2,
                old // 2,
                float(old),
                str(old),
                [old],
                blobs.integer(rng, abs(old)),
            )
        )
    if isinstance(old, float):
        return rng.choice((int(old) if abs(old) < 2**60 else 0, -old, old * 1e30, str(old), 0.0))
    if isinstance(old, str):
        return rng.choice(
            (old + "x", old[:-1], old.upper(), f"../{old}", f"/{old}", old + "\0", [old], old * 2, f"{old}.x")
        )
    if isinstance(old, list):
        return rng.choice(
            (old[:1], old[:-1], old + old[:1], old[::-1], [old], [], dict(enumerate(map(str, old))))
        )
    if isinstance(old, dict):
        return rng.choice((list(old), list(old.values()), {"x": old}, {}, [old]))
    return _any(rng)


def _walk(rng: Random, value: Any) -> tuple[Any, Any] | None:
    """A container inside a value and a key of it, high up as often as deep down."""
    found: tuple[Any, Any] | None = None
    while isinstance(value, dict | list) and value:
        key = rng.choice([*value]) if isinstance(value, dict) else rng.randrange(len(value))
        found = value, key
        if rng.random() < 0.3:
            break
        value = value[key]
    return found


def spoil(rng: Random, value: Any) -> Any:
    """Change one thing inside a value, in place where there is one."""
    found = _walk(rng, value)
    if found is None or rng.random() < 0.01:
        return _any(rng)
    node, key = found
    how = rng.random()
    if how < 0.1:
        del node[key]
    elif how < 0.2 and isinstance(node, dict):
        node[rng.choice(WORDS + _MODEL_WORDS) if rng.random() < 0.6 else f"{key}x"] = node.pop(key)
    elif how < 0.3:
        # A thing from elsewhere in the same document.
        other = _walk(rng, value)
        if other is not None:
            # A copy of it: a value that held itself could not be written.
            node[key] = json.loads(json.dumps(other[0][other[1]]))
    elif how < 0.35:
        if isinstance(node, list):
            node.insert(rng.randrange(len(node) + 1), json.loads(json.dumps(node[key])))
        else:
            node[rng.choice(_MODEL_WORDS)] = _any(rng)
    elif how < 0.65:
        node[key] = _near(rng, node[key])
    else:
        node[key] = _any(rng)
    return value


@lru_cache(maxsize=256)
def _is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return False
    return True


def change(rng: Random, data: bytes) -> bytes:
    """Change one thing inside, or the text."""
    if rng.random() < 0.08 or not _is_json(data):
        return blobs.change(rng, data)
    value = spoil(rng, json.loads(data))
    text = json.dumps(value, ensure_ascii=rng.random() < 0.8)
    if rng.random() < 0.03:
        # What takes the parser itself long, or deep.
        at = [number for number, each in enumerate(text) if each == ":"]
        if at:
            start = rng.choice(at) + 1
            text = text[:start] + rng.choice(_LARGE) + "," + text[start:].lstrip("0123456789")
    elif rng.random() < 0.03 and text.startswith("{") and len(text) > 2:
        # A key twice: the last one counts.
        text = "{" + text[1:-1] + "," + text[1:]
    return text.encode("utf-8", "surrogatepass")
