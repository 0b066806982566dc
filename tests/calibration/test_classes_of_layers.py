"""Layers whose class is their own, and blocks whose parts end in the same module, are calibrated like others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from models.architectures import build, build_wide
from models.text import CORPUS
from oracles import hf

import qformats
from qformats.calibration.skeleton import Skeleton
from qformats.calibration.stream import observe
from qformats.runtime.linears import is_linear


@pytest.mark.parametrize("name", ["falcon", "phi"])
def test_calibrated_models_predict_better_than_rounded_ones(name: str, tmp_path: Path) -> None:
    folder, text = build_wide(name, tmp_path / "model"), tmp_path / "text.txt"
    text.write_text(CORPUS)
    options = {"calibration": str(text), "samples": "24", "sequence-length": "48"}
    reference, errors = hf.load(folder), {}
    # Windows of the text: on anything else a model of random weights tells little.
    ids = qformats.load_tokenizer(folder)(CORPUS)["input_ids"]
    windows = [ids[start : start + 48] for start in range(0, 4 * 48, 48)]
    for quantizer in ("gptq", "rtn"):
        qformats.export(
            folder,
            tmp_path / quantizer,
            format="gptq:4bit-32g",
            quantizer=quantizer,
            quantizer_options=options if quantizer == "gptq" else {},
        )
        packed = qformats.load_model(tmp_path / quantizer, device="cpu", dtype="f32")
        changes = [hf.log_probs(packed, each) - hf.log_probs(reference, each) for each in windows]
        errors[quantizer] = np.concatenate(changes).std()
    assert 0 < errors["gptq"] < 0.7 * errors["rtn"]


def test_a_dropout_that_ends_two_parts_ends_neither(tmp_path: Path) -> None:
    """Phi sends the outputs of attention and of its network through one dropout, which gives what it is given."""
    source = qformats.open(build("phi", tmp_path / "phi"))
    skeleton = Skeleton(source, torch.float32, torch.device("cpu"))
    with torch.inference_mode(), skeleton.loading_on_use():
        states, arguments = next(iter(skeleton.batches(torch.arange(24).view(2, 12), 2)))
        skeleton.load_block(0)
        course = observe(skeleton.blocks[0], skeleton.linears(0), states, arguments[0])
    assert {local: child for local, (child, _) in course.ends.items()} == {
        "self_attn.dense": "self_attn",
        "mlp.fc2": "mlp",
    }


def test_what_a_class_computes_decides() -> None:
    from torch import nn
    from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4GroupedLinear
    from transformers.models.falcon.modeling_falcon import FalconLinear
    from transformers.models.llama4.modeling_llama4 import Llama4Router

    class Doubled(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(input)

    found = {kind: is_linear(kind) for kind in (FalconLinear, Llama4Router, DeepseekV4GroupedLinear, Doubled)}
    assert [kind for kind, linear in found.items() if linear] == [FalconLinear]


def test_falcons_layers_stay_packed(tmp_path: Path) -> None:
    packed = qformats.load_model(build("falcon", tmp_path / "m"), format="gguf:q8_0", device="cpu")
    kinds = {type(module).__name__ for module in packed.transformer.h.modules() if hasattr(module, "weight")}
    assert kinds == {"QuantLinear", "LayerNorm"}
