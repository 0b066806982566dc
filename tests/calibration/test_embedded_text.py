"""What a calibration sends into the first block is the embedded text, whatever the model's code does around it."""

import pytest
import torch
from models.architectures import build

import qformats
from qformats.calibration.skeleton import Skeleton


@pytest.mark.parametrize(
    ("name", "scale"), [("llama4", 1.0), ("gpt_oss", 1.0), ("granite", None), ("gemma3", None)]
)
def test_rows_of_the_table(name, scale, tmp_path):
    """Llama 4 sends the ids to where the table is, which is nowhere before it is loaded."""
    source = qformats.open(build(name, tmp_path / name))
    skeleton = Skeleton(source, torch.float32, torch.device("cpu"))
    tokens = torch.arange(24).view(2, 12)
    with torch.inference_mode(), skeleton.loading_on_use():
        found = torch.cat([states for states, _ in skeleton.batches(tokens, 1)])
    rows = source.tensors["model.embed_tokens.weight"].dequantize()[tokens]
    if scale is None:
        # Some models scale them.
        scale = found.norm() / rows.norm()
        assert 0.5 < scale < 100
    assert torch.allclose(found, rows * scale, rtol=1e-5)
