"""q4_0, q4_1, q5_0 and q5_1 with an importance matrix: the bytes of ``ggml_quantize_chunk``; q8_0 ignores it."""

import numpy as np
import pytest
import torch
from oracles import ggml

import qformats


def _weights():
    rng = np.random.default_rng(0)
    return {
        "normal": rng.normal(0, 0.02, (60, 512)),
        "heavy-tailed": rng.standard_t(2, (60, 512)),
        "positive": rng.random((8, 256)),
        "negative": -rng.random((8, 256)),
        "zero": np.zeros((2, 64)),
        "negative-zero": -np.zeros((2, 64)),
        "constant": np.full((2, 64), 0.3),
        "negative-constant": np.full((2, 64), -0.3),
        "too-small": rng.normal(0, 1e-16, (4, 64)),
        "tiny": rng.normal(0, 1e-9, (4, 64)),
        "large": rng.normal(0, 1e4, (4, 64)),
        "one-hot": np.eye(64) * 0.7,
        "lattice": rng.integers(-8, 8, (16, 128)) * 0.5,
        "short": rng.normal(0, 1, (1, 32)),
        # More blocks than the compiled loops take at a time, and not a multiple of that.
        "many": rng.normal(0, 1, (37, 352)),
    }


def _importances(columns):
    rng = np.random.default_rng(1)
    return {
        "even": np.ones(columns),
        "uneven": rng.random(columns) ** 8 * 1e3,
        "half": np.where(rng.random(columns) < 0.5, 0.0, 1.0),
        "none": np.zeros(columns),
    }


@pytest.mark.parametrize("data", _weights())
@pytest.mark.parametrize("kind", ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0"])
def test_bytes_are_ggmls(kind, data):
    weight = _weights()[data].astype(np.float32)
    packer = qformats.packer(f"gguf:{kind}")
    for name, importance in _importances(weight.shape[1]).items():
        importance = importance.astype(np.float32)
        found = packer.grid.quantize(torch.from_numpy(weight), torch.from_numpy(importance))
        stored = packer.pack(found).fields["blocks"].numpy()
        differing = int((stored != ggml.quantize(kind, weight, importance)).sum())
        assert not differing, f"{differing} of {stored.size} bytes with importances {name}"


def test_scales_beyond_float16_are_refused():
    with pytest.raises(qformats.QFormatsError, match="beyond f16"):
        qformats.quantize(torch.full((1, 32), 1e9), "gguf:q4_0", importance=torch.ones(32))
