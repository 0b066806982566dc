"""The choice of types is llama.cpp's, tensor by tensor; see ``tests/golden/gguf_mixes``."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from models.mixes import MODELS, tensors, write, write_importance

import qformats
from qformats.errors import ConfigError
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
        if letters is None:
            continue
        base = MIXES[mix].base if mix in MIXES else mix
        chosen = choose(mix, eligible, bool(MODELS[model].get("tied")), facts(model, variant == "imatrix"))
        if variant == "pure":
            chosen = {}
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


@pytest.mark.parametrize(
    ("model", "key"),
    [(model, key) for model, entry in GOLDEN["models"].items() for key in entry["sha256"]],
)
def test_files_have_llama_cpps_bytes(model, key, tmp_path):
    source = write(model, tmp_path / "source.gguf")
    mix, _, variant = key.partition(" ")
    files = [write_importance(model, tmp_path / "imatrix.gguf")] if variant == "imatrix" else []
    report = qformats.export(source, tmp_path / "out.gguf", format=f"gguf:{mix}", imatrix=files)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(report.target).tensors}
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + np.ascontiguousarray(tensors[name].data).tobytes())
    assert digest.hexdigest() == GOLDEN["models"][model]["sha256"][key]
    metadata = qformats.open(report.target).native
    assert metadata["general.file_type"].data == (MIXES[mix].file_type if mix in MIXES else 30)


@pytest.mark.parametrize("name", ["q4_k_m", "Q4_K_M", "gguf:q4_k_m"])
def test_a_mix_is_a_format_of_models_and_not_of_tensors(name):
    packer = qformats.packer(name)
    assert (packer.name, packer.typical.name) == ("gguf:q4_k_m", "gguf:q4_k")
    with pytest.raises(ConfigError, match=r"a choice of formats.*such as gguf:q4_k"):
        qformats.quantize(torch.zeros(2, 256), name)
    with pytest.raises(ConfigError, match="the type of one tensor, such as gguf:q4_k"):
        qformats.export("demo", "never.gguf", format="gguf:q4_0", tensor_types={"attn": name})


def test_pure_files_and_rules_of_users(tmp_path):
    pure = qformats.export("demo", tmp_path / "pure.gguf", format="q4_k_m", pure=True)
    assert pure.types == {"gguf:q4_k": 30, "gguf:f32": 9}
    ruled = qformats.export("demo", tmp_path / "r.gguf", format="q4_k_m", tensor_types={"attn_v": "q5_1"})
    assert ruled.types == {"gguf:q4_k": 23, "gguf:f32": 9, "gguf:q6_k": 3, "gguf:q5_1": 4}
    # llama-quantize's short name for the mix of medium size.
    short = qformats.export("demo", tmp_path / "short.gguf", format="q4_k")
    assert short.types == qformats.export("demo", tmp_path / "m.gguf", format="q4_k_m").types


def test_a_mix_made_from_importances_only_is_refused_without(tmp_path):
    with pytest.raises(ConfigError, match=r"gguf:q2_k_s without an importance matrix.*q2_k, or another mix"):
        qformats.export("demo", tmp_path / "out.gguf", format="q2_k_s")
    assert not list(tmp_path.iterdir())


def test_experts_in_mxfp4(tmp_path):
    report = qformats.export(
        write("experts8", tmp_path / "in.gguf"), tmp_path / "out.gguf", format="mxfp4_moe"
    )
    small = {tensor.name for tensor in report.tensors if tensor.format == "gguf:mxfp4"}
    golden = GOLDEN["models"]["experts8"]
    pairs = zip(golden["tensors"].split(), golden["types"]["mxfp4_moe"], strict=True)
    assert small == {name for name, letter in pairs if GOLDEN["letters"][letter] == "mxfp4"}
