"""Damage to text in lines: vocabularies, merges, journals."""

from __future__ import annotations

import base64
from random import Random

from . import blobs

__all__ = ["WORDS", "change"]

WORDS = (
    *(
        "",
        " ",
        "x",
        "0",
        "1",
        "-1",
        "1e400",
        "nan",
        "null",
        "true",
        "{}",
        "[]",
        "a\0b",
        "\r",
        "\ufeff",
        "é" * 40,
        "▁",
    ),
    *(
        "../secret",
        "../../secret",
        "/etc/passwd",
        "../x",
        "a/b",
        ".",
        "..",
        "\ud800",
        "Ġ",
        "##x",
        "<s>",
        "[UNK]",
    ),
    *("<0x00>", "<|endoftext|>", "llama", "gpt2", "bert", "default", "x" * 300),
)
"""Words that stand for nothing where they come to stand, or for too much."""


def change(rng: Random, data: bytes) -> bytes:
    """Drop, double, move or spoil a line."""
    lines = data.split(b"\n")
    how, at = rng.random(), rng.randrange(len(lines))
    if how < 0.15:
        del lines[at]
    elif how < 0.3:
        lines.insert(rng.randrange(len(lines) + 1), lines[at])
    elif how < 0.4:
        other = rng.randrange(len(lines))
        lines[at], lines[other] = lines[other], lines[at]
    elif how < 0.7 and lines[at]:
        parts = lines[at].split(b" ")
        place = rng.randrange(len(parts))
        word = rng.choice(WORDS).encode("utf-8", "surrogatepass")
        if rng.random() < 0.3:
            word = base64.b64encode(word)
        elif rng.random() < 0.3:
            word = str(blobs.integer(rng)).encode()
        parts[place] = word
        lines[at] = b" ".join(parts)
    else:
        lines[at] = blobs.change(rng, lines[at])
    return b"\n".join(lines)
