"""Importance matrices where a model is quantized without being written: while loaded, or tried in a comparison."""

import pytest
import torch
from cli.command import call

import qformats


@pytest.fixture(scope="module")
def imatrix(tmp_path_factory):
    target = tmp_path_factory.mktemp("imatrix") / "imatrix.gguf"
    qformats.imatrix("demo", target, chunks=2, chunk_size=64, device="cpu")
    return target


def test_loading_gives_what_an_export_holds(imatrix, tmp_path):
    qformats.export("demo", tmp_path / "out", format="gptq:4bit-32g", quantizer="rtn", imatrix=imatrix)
    loaded = {
        weighed: qformats.load_model(
            "demo", device="cpu", format="gptq:4bit-32g", quantizer="rtn", imatrix=files
        )
        for weighed, files in ((True, imatrix), (False, ()))
    }
    name = "model.layers.1.mlp.up_proj"
    written = qformats.open(tmp_path / "out").read(f"{name}.weight")
    assert torch.equal(loaded[True].get_submodule(name).packed().dequantize(), written)
    assert not torch.equal(loaded[False].get_submodule(name).packed().dequantize(), written)


def test_comparisons_weigh_the_formats_that_are_tried(imatrix, capsys):
    plain, weighed = (
        qformats.compare("demo", try_=["gguf:q4_0", "dense:f16"], imatrix=files) for files in ((), imatrix)
    )
    assert plain.models[0].weights.linears.sqnr_db != weighed.models[0].weights.linears.sqnr_db
    assert plain.models[1].weights.linears.sqnr_db == weighed.models[1].weights.linears.sqnr_db
    result = call(capsys, "compare", "demo", "--try", "gguf:q4_0", "--imatrix", imatrix, "--json")
    assert result.code == 0, result.err
