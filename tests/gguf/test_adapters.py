"""LoRA adapters as GGUF files: llama.cpp with ``--lora`` computes what PEFT computes."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from cli.command import call
from models import tiny
from models.architectures import build
from numpy.typing import NDArray
from oracles.llama_cpp import LlamaCpp, LlamaCppError
from safetensors.torch import load_file, save_file

import qformats
from qformats.errors import CheckpointError, ConfigError, QFormatsError, UnsupportedModelError

IDS = list(range(3, 60))
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Folder and file of each base."""
    path, found = tmp_path_factory.mktemp("bases"), {}
    for name in ("llama", "qwen2", "falcon-40b", "granitemoeshared"):
        folder = path / name
        tiny.build(name, folder) if name in ("llama", "qwen2") else build(name, folder)
        qformats.export(folder, path / f"{name}.gguf", format="gguf:f32")
        found[name] = folder, path / f"{name}.gguf"
    return found


def train(base: Path, target: Path, **settings: Any) -> NDArray[np.float64]:
    """Save an adapter as PEFT does; log-probabilities of the base under it."""
    torch.manual_seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.AutoModelForCausalLM.from_pretrained(
            base, dtype=torch.float32, attn_implementation="eager"
        )
        config = peft.LoraConfig(**{"task_type": "CAUSAL_LM", "r": 4, "init_lora_weights": False, **settings})
        adapted = peft.get_peft_model(model, config).eval()
        adapted.save_pretrained(target)
    with torch.no_grad():
        return adapted(torch.tensor([IDS])).logits[0].double().log_softmax(-1).numpy()


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("llama", {"target_modules": ALL}),
        ("qwen2", {"target_modules": ALL, "lora_alpha": 5}),
        ("llama", {"target_modules": [*ALL, "lm_head", "embed_tokens"], "use_rslora": True}),
        (
            "qwen2",
            {
                "target_modules": ["q_proj", "down_proj"],
                "rank_pattern": {"layers.1.self_attn.q_proj": 7},
                "alpha_pattern": {"down_proj": 3},
            },
        ),
        ("falcon-40b", {"target_modules": ["query_key_value", "dense_h_to_4h"]}),
        ("granitemoeshared", {"target_modules": ["input_linear", "output_linear", "q_proj"]}),
    ],
    ids=["llama", "qwen2", "tables", "patterns", "regrouped", "split"],
)
def test_llama_cpp_computes_what_peft_computes(
    name: str, settings: dict[str, Any], bases: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    folder, file = bases[name]
    theirs = train(folder, tmp_path / "adapter", **settings)
    qformats.export(tmp_path / "adapter", tmp_path / "lora.gguf", format="gguf:f32")
    with LlamaCpp(file) as plain, LlamaCpp(file, adapter=tmp_path / "lora.gguf") as adapted:
        # A table of 16-bit floats is GELU in llama.cpp.
        assert np.abs(adapted.log_probs(IDS) - theirs).max() < (2e-2 if "falcon" in name else 1e-4)
        assert np.abs(plain.log_probs(IDS) - theirs).max() > 0.1


def test_the_command_line_writes_a_file_for_lora(
    bases: dict[str, tuple[Path, Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the usual type; with a base that is elsewhere by now, of which config.json is enough."""
    folder, file = bases["llama"]
    moved = shutil.copytree(folder, tmp_path / "moved")
    theirs = train(moved, tmp_path / "adapter", target_modules=ALL)
    (tmp_path / "base").mkdir()
    shutil.copy(folder / "config.json", tmp_path / "base")
    shutil.rmtree(moved)
    told = ["export", str(tmp_path / "adapter"), "--format", "gguf", "-o", str(tmp_path / "lora.gguf")]
    refused = call(capsys, *told)
    assert refused.code == 3
    assert "--base" in refused.err
    assert not (tmp_path / "lora.gguf").exists()
    done = call(capsys, *told, "--base", str(tmp_path / "base"))
    assert done.code == 0, done.err
    assert "--lora" in done.out + done.err
    with LlamaCpp(file, adapter=tmp_path / "lora.gguf") as adapted:
        ours = adapted.log_probs(IDS)
    assert (np.exp(theirs) * (theirs - ours)).sum(-1).mean() < 2e-2


def test_an_adapter_of_another_model_is_refused_by_llama_cpp(
    bases: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    train(bases["qwen2"][0], tmp_path / "adapter", target_modules=["q_proj"])
    qformats.export(tmp_path / "adapter", tmp_path / "lora.gguf", format="gguf:f16")
    with pytest.raises(LlamaCppError, match="does not apply"):
        LlamaCpp(bases["llama"][1], adapter=tmp_path / "lora.gguf")


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"lora_bias": True}, "lora_bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
    ],
)
def test_what_is_more_than_a_product_is_refused(
    settings: dict[str, Any], key: str, bases: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    train(bases["llama"][0], tmp_path / "adapter", target_modules=["q_proj"], **settings)
    with pytest.raises(UnsupportedModelError, match=key):
        qformats.export(tmp_path / "adapter", tmp_path / "lora.gguf", format="gguf:f32")
    assert not (tmp_path / "lora.gguf").exists()


def test_an_adapter_of_a_tied_embedding_is_refused(
    bases: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    """llama.cpp would change the output layer too."""
    train(bases["qwen2"][0], tmp_path / "adapter", target_modules=["embed_tokens", "q_proj"])
    with pytest.raises(UnsupportedModelError, match="both embedding and output"):
        qformats.export(tmp_path / "adapter", tmp_path / "lora.gguf", format="gguf:f32")


def test_whole_weights_are_left_out_if_they_are_the_bases_own(
    bases: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    folder, target = tmp_path / "adapter", tmp_path / "lora.gguf"
    train(bases["llama"][0], folder, target_modules=["lm_head"])
    report = qformats.export(folder, target, format="gguf:f32")
    assert {(entry.name, entry.reason) for entry in report.left_out} >= {
        ("base_model.model.lm_head.base_layer.weight", "a copy of the base's weight")
    }
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors["base_model.model.lm_head.base_layer.weight"][0, 0] += 1
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(UnsupportedModelError, match="differs from the base's"):
        qformats.export(folder, tmp_path / "other.gguf", format="gguf:f32")


def test_broken_adapters_are_refused(bases: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    folder, target = tmp_path / "adapter", tmp_path / "lora.gguf"
    train(bases["llama"][0], folder, target_modules=["q_proj"])
    config = json.loads((folder / "adapter_config.json").read_text())
    with pytest.raises(ConfigError, match="q8_0 for an adapter"):
        qformats.export(folder, target, format="gguf:q4_k")
    changes: list[tuple[dict[str, Any], type[QFormatsError], str]] = [
        ({"r": 5}, CheckpointError, "rank 4"),
        ({"rank_pattern": {"(": 3}}, CheckpointError, "regular expressions"),
        ({"peft_type": "LOHA"}, UnsupportedModelError, "LOHA"),
        ({"some_new_key": True}, UnsupportedModelError, "some_new_key"),
        ({"init_lora_weights": "pissa"}, UnsupportedModelError, "pissa"),
        ({"base_model_name_or_path": str(bases["falcon-40b"][0])}, CheckpointError, "unknown"),
        ({"base_model_name_or_path": None}, CheckpointError, "no base_model_name_or_path"),
    ]
    for change, error, message in changes:
        (folder / "adapter_config.json").write_text(json.dumps(config | change))
        with pytest.raises(error, match=message):
            qformats.export(folder, target, format="gguf:f32")
    assert not target.exists()


def test_other_formats_hold_no_adapters(bases: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    train(bases["llama"][0], tmp_path / "adapter", target_modules=["q_proj"])
    for format in ("dense", "nf4", "gptq"):
        with pytest.raises(QFormatsError, match="an adapter \\(LORA\\)"):
            qformats.export(tmp_path / "adapter", tmp_path / "out", format=format)
    with pytest.raises(QFormatsError, match="an adapter \\(LORA\\)"):
        qformats.open(tmp_path / "adapter")
    assert len(qformats.open(tmp_path / "adapter", adapter=True).tensors) > 2
