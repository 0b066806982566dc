"""Everything that comes with qformats passes the conformance kit."""

import pytest
from glm_ranks import sat_oracle
from models import chatglm

from qformats.registry import registry
from qformats.testing import checks, parametrize_with_checks
from qformats.testing.running import chosen_checks

FORMATS = registry().format_names()
UNLISTED = (
    "glm:int4-tp2",
    "bitsandbytes:nf4-bs128-bf16",
    "gptq:3bit-96g-asym-bf16",
    "compressed-tensors:w3a16-96g-asym-bf16",
    "awq:4bit-96g-bf16",
    "compressed-tensors:fp8-block-bf16",
    "fp8:block-64x32-f16",
    "gguf:q8_1",
    "gguf:f64",
)
"""Names that families understand and do not list."""
QUANTIZERS = [registry().quantizer(name) for name in registry().quantizer_names()]
LOADERS = [registry().loader(name) for name in ("huggingface", "gguf")]
OTHERS = ("chatglm", "sat")
"""Containers of other models than llama."""
READ_ONLY = ("mxfp4",)
"""Containers that write nothing, so that the kit has nothing to read: tests/gguf/test_mxfp4_folders.py checks them."""


@parametrize_with_checks(FORMATS)
def test_formats(check):
    check()


@parametrize_with_checks(UNLISTED)
def test_formats_that_are_not_listed(check):
    check()


@parametrize_with_checks(QUANTIZERS)
def test_quantizers(check):
    check()


@parametrize_with_checks(LOADERS)
def test_loaders(check):
    check()


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """A model for each container that holds no llama."""
    folder = tmp_path_factory.mktemp("models")
    ranks = sat_oracle.save(folder / "ranks", sat_oracle.split(sat_oracle.model(), 1))
    chatglm.save_6b(folder / "6b", container="safetensors")
    return {"chatglm": folder / "6b", "sat": ranks}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("check", checks("container"), ids=lambda check: check.name)
def test_loaders_of_other_models(name, check, models):
    check(registry().loader(name), models[name])


def test_everything_is_checked():
    loaders = {loader.name for loader in registry().loaders()}
    assert loaders == {loader.name for loader in LOADERS} | {*OTHERS, *READ_ONLY}
    assert len(chosen_checks(FORMATS)) == len(FORMATS) * len(checks("format"))
    assert len(FORMATS) > 50
