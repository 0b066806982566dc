"""What exports must not pass on in silence: scales that are NaN, or beyond their dtype, and rows that become zeros."""

import json

import gguf
import numpy as np
import pytest
import torch
from cli.command import call
from safetensors.torch import load_file, save_file

import qformats
from qformats import PackedTensor
from qformats.errors import NonFiniteError, WeightsError
from qformats.exporting.sound import require_sound
from qformats_gguf.header import TensorInfo, serialize
from qformats_gguf.metadata import string
from qformats_gguf.packers import DECODE_ONLY, LISTED, packer_of
from qformats_gguf.superblocks.layout import LAYOUTS
from qformats_gguf.ternary import TERNARY
from qformats_gguf.types import by_name

NAME = "model.layers.1.mlp.down_proj.weight"
BLOCKS = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", *LAYOUTS, "mxfp4", "nvfp4", *TERNARY, *DECODE_ONLY)
TINY = 1e-9
"""Weights whose scales are zero in float16."""


def _packed(kind, blocks):
    width = blocks.shape[0] * kind.block_size
    fields = {"blocks": torch.from_numpy(blocks.reshape(1, -1))}
    more = {"scale": torch.ones(1)} if kind.name == "nvfp4" else {}
    return PackedTensor(packer_of(kind), (1, width), fields | more)


@pytest.mark.parametrize("name", BLOCKS)
def test_scales_tell_what_gguf_py_decodes_to_nan_or_infinity(name):
    kind = by_name(name)
    # Every byte is as likely, so that one block in 32 or so has an infinite or undefined scale.
    blocks = np.random.default_rng(7).integers(0, 256, (600, kind.block_bytes), np.uint8)
    with np.errstate(all="ignore"):
        values = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType(kind.id))
    sound = np.isfinite(values).all(1)
    for block, good in zip(blocks, sound, strict=True):
        packed = _packed(kind, block[None])
        if good:
            require_sound(packed)
        else:
            with pytest.raises(NonFiniteError, match="values are not finite; the first is"):
                require_sound(packed)
    assert 0 < sound.sum()
    # These two have scales of eight bits; every other type has one that can be infinite.
    assert (~sound).any() or name in ("mxfp4", "nvfp4")


def test_every_listed_type_is_covered():
    assert {packer.spec.variant for packer in LISTED} == {*BLOCKS, "f32", "f16", "bf16"}


def _file(path, name, spoil):
    """A tensor that exports copy whatever its type is; the last scale or minimum of its last block is `spoil`."""
    kind = by_name(name)
    info = TensorInfo("blk.0.ffn_gate_inp.weight", (4, 512), kind)
    header = serialize({"general.architecture": string("no-such-model")}, [info])
    rng = np.random.default_rng(3)
    blocks = rng.integers(0, 256, (4 * 512 // kind.block_size, kind.block_bytes), np.uint8)
    for at, _ in kind.scales:
        blocks[:, at : at + 2] = 0
    if spoil is not None:
        at = kind.scales[-1][0]
        blocks[-1, at : at + 2] = np.array([spoil], np.float16).view(np.uint8)
    path.write_bytes(header.data.ljust(header.offsets[0], b"\0") + blocks.tobytes() + bytes(64))
    return path


@pytest.mark.parametrize("value", [np.nan, -np.inf])
@pytest.mark.parametrize(
    "name", ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q4_k", "q6_k", "iq2_xxs", "q1_0"]
)
def test_a_scale_that_is_not_finite_is_not_copied(tmp_path, name, value):
    good = _file(tmp_path / "good.gguf", name, None)
    report = qformats.export(good, tmp_path / "copy.gguf", format="gguf:q4_0", workers=1)
    assert [(tensor.action, tensor.format) for tensor in report.tensors] == [("copied", f"gguf:{name}")]
    bad = _file(tmp_path / "bad.gguf", name, value)
    with pytest.raises(WeightsError, match=r"bad\.gguf: tensor 'blk\.0\.ffn_gate_inp\.weight': \d+ of \d+ "):
        qformats.export(bad, tmp_path / "out.gguf", format="gguf:q4_0", workers=1)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "bad.gguf",
        "copy.gguf",
        "copy.gguf.qformats.json",
        "good.gguf",
    ]


@pytest.fixture
def scaled(llama, tmp_path):
    """A copy of a model, one weight of which is multiplied; its first row stays zeros."""

    def make(factor):
        folder = tmp_path / "model"
        folder.mkdir()
        for file in llama.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        state = load_file(folder / "model.safetensors")
        state[NAME] = state[NAME].float() * factor
        state[NAME][0] = 0
        save_file(state, folder / "model.safetensors", {"format": "pt"})
        return folder

    return make


@pytest.mark.parametrize(
    "format",
    [
        *("gguf:q4_0", "gguf:q5_1", "gguf:q8_0", "dense:f16", "glm:int4", "bitsandbytes:int8"),
        *("gptq:4bit-32g", "gptq:4bit-32g-asym"),
    ],
)
def test_rows_that_become_zeros_are_counted(scaled, tmp_path, format):
    model, target = scaled(TINY), tmp_path / ("out.gguf" if format.startswith("gguf") else "out")
    with pytest.warns(UserWarning, match="63 of 64 rows became zeros"):
        report = qformats.export(model, target, format=format, quantizer="rtn", workers=1)
    lost = {tensor.source_name: tensor.vanished for tensor in report.tensors if tensor.vanished}
    assert lost == {NAME: 63}
    found = qformats.open(target).read(NAME)
    assert not found.any()


@pytest.mark.parametrize("format", ["gguf:f32", "dense:bf16", "bitsandbytes:nf4", "glm:int8-f32"])
def test_formats_with_wider_scales_lose_nothing(scaled, tmp_path, format):
    target = tmp_path / ("out.gguf" if format.startswith("gguf") else "out")
    report = qformats.export(scaled(TINY), target, format=format, workers=1)
    assert not [tensor for tensor in report.tensors if tensor.vanished]
    assert qformats.open(target).read(NAME)[1:].any(1).all()


@pytest.mark.filterwarnings("always::UserWarning")
@pytest.mark.parametrize("how", [[], ["--quiet"], ["--json"]], ids=["summary", "quiet", "json"])
def test_a_warning_names_the_tensor(how, scaled, tmp_path, capsys):
    """Whatever else is printed."""
    model = scaled(TINY)
    result = call(capsys, "export", model, "-f", "gguf:q4_0", "-o", tmp_path / "out.gguf", *how)
    assert result.code == 0
    told = "warning: blk.1.ffn_down.weight: 63 of 64 rows became zeros: their weights are too small for gguf:q4_0"
    assert told in result.err
    record = json.loads((tmp_path / "out.gguf.qformats.json").read_text())
    assert [t["vanished"] for t in record["tensors"] if t["source_name"] == NAME] == [63]


def test_quantizing_without_a_file_warns_too(scaled):
    """On the fly for a model that runs or is compared, and of a single tensor."""
    model = scaled(TINY)
    with pytest.warns(UserWarning, match=f"{NAME}: 63 of 64 rows became zeros"):
        qformats.compare(model, try_="gguf:q4_0")
    with pytest.warns(UserWarning, match=f"{NAME}: 63 of 64 rows became zeros"):
        qformats.load_model(model, format="gguf:q4_0", device="cpu")
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    weight[1] *= TINY
    weight[2] = 0
    with pytest.warns(UserWarning, match="1 of 4 rows became zeros"):
        qformats.quantize(weight, "gguf:q4_0")
    qformats.quantize(torch.zeros(4, 64), "gguf:q4_0")


@pytest.mark.parametrize(
    "format",
    [
        *("gguf:q4_0", "gguf:q4_1", "gguf:q5_0", "gguf:q5_1", "gguf:q8_0", "gguf:f16", "dense:f16"),
        *("gptq:4bit-32g", "gptq:4bit-32g-asym", "glm:int4", "glm:int8", "bitsandbytes:int8"),
    ],
)
def test_scales_beyond_their_dtype_are_refused(scaled, tmp_path, format):
    target = tmp_path / ("out.gguf" if format.startswith("gguf") else "out")
    with pytest.raises(WeightsError, match=rf"tensor '{NAME}': .*(beyond|too large)"):
        qformats.export(scaled(1e30), target, format=format, quantizer="rtn", workers=1)
    assert not target.exists()
