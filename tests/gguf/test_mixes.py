"""The choice of types is llama.cpp's, tensor by tensor; see ``tests/golden/gguf_mixes``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from models.mixes import MODELS, tensors

from qformats_gguf import policy
from qformats_gguf.mixes import MIXES, Facts, choose
from qformats_gguf.types import by_name

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "gguf_mixes" / "types.json").read_text())
FITTING = {
    **dict.fromkeys(("q2_k", "q3_k", "tq1_0", "tq2_0"), "q4_0"),
    **{"q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0", "iq4_xs": "iq4_nl"},
}
"""Types for rows that do not divide into 256: a table of llama.cpp's own."""


def facts(model, importance=False):
    said = MODELS[model]
    return Facts(
        said.get("architecture", "llama"),
        said["layers"],
        said.get("experts", 0),
        said["heads"] // said["groups"],
        importance,
    )


@pytest.mark.parametrize("model", MODELS)
def test_every_type_is_llama_cpps(model):
    golden, shapes = GOLDEN["models"][model], dict(tensors(model))
    names = golden["tensors"].split()
    eligible = {name: shapes[name] for name in names if policy.keep(name, len(shapes[name])) is None}
    checked = 0
    for key, letters in golden["types"].items():
        mix, _, variant = key.partition(" ")
        if letters is None or variant == "pure":
            continue
        base = MIXES[mix].base if mix in MIXES else mix
        chosen = choose(mix, eligible, bool(MODELS[model].get("tied")), facts(model, variant == "imatrix"))
        for name, letter in zip(names, letters, strict=True):
            kind = chosen.get(name, (base, ""))[0] if name in eligible else "f32"
            if shapes[name][-1] % by_name(kind).block_size:
                kind = FITTING[kind]
            assert kind == GOLDEN["letters"][letter], (mix, variant, name)
            checked += 1
    assert checked > 1000 or model == "odd"


def test_which_files_need_an_importance_matrix():
    for model in GOLDEN["models"].values():
        refused = {key for key, letters in model["types"].items() if letters is None}
        assert refused == {"q2_k_s", "q2_k_s pure"}
    assert [mix.name for mix in MIXES.values() if mix.weighted] == ["q2_k_s"]
