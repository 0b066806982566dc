"""What the page for plugin authors shows does what the framework relies on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import qformats
from qformats.testing import parametrize_with_checks

PAGE = Path(__file__).resolve().parents[2] / "docs" / "plugin_hooks.md"


def _shown() -> dict[str, object]:
    names: dict[str, object] = {}
    exec("\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)), names)
    return names


SHOWN = _shown()


@parametrize_with_checks([SHOWN["Bytes"](), SHOWN["Clip"]()])
def test_examples_pass_every_check(check):
    check()


@pytest.mark.parametrize(
    "format", ["gguf:q4_0", "gguf:q5_1", "glm:int4", "bitsandbytes:nf4-dq", "gptq:4bit-32g-asym"]
)
def test_the_quantizer_is_never_worse_than_the_rule_of_the_format(format):
    weight = torch.randn(32, 256, generator=torch.Generator().manual_seed(5))
    packer = qformats.packer(format)

    def error(quantized):
        return float((quantized.dequantize() - weight).square().sum())

    assert error(SHOWN["Clip"]().quantize(weight, packer)) <= error(packer.grid.quantize(weight))
