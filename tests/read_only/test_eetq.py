"""EETQ: its four steps one by one, PyTorch's own version of them, folders, and what is refused."""

from __future__ import annotations

import inspect
import json
import warnings

import pytest
import torch
from models import tiny
from safetensors.torch import load_file, save_file

import qformats
from qformats.errors import CheckpointError, ConfigError
from qformats.interfaces import ModuleFields
from qformats.numbers import dtype_name
from qformats_eetq.family import EETQ

MODULE = "model.layers.0.mlp.gate_proj"
IDS = torch.tensor([[1, 5, 9, 33, 7, 2, 60, 12]])
ORDER = (0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15)


def in_steps(codes):
    """What EETQ stores for signed codes (K, N), byte by byte, in the order of its source."""
    columns, rows = codes.shape
    permuted = [
        [int(codes[16 * (column // 16) + ORDER[column % 16], row]) for row in range(rows)]
        for column in range(columns)
    ]
    transposed = [[permuted[column][row] for column in range(columns)] for row in range(rows)]
    line = [0] * (rows * columns)
    for row in range(rows):
        for column in range(columns):
            tile, within = divmod(column, 64)
            line[(row // 2) * 2 * columns + tile * 128 + (row % 2) * 64 + within] = transposed[row][column]
    line = [code + 128 for code in line]
    for start in range(0, len(line), 4):
        line[start + 1], line[start + 2] = line[start + 2], line[start + 1]
    return torch.tensor(line, dtype=torch.uint8).view(torch.int8).view(columns, rows)


def weight(rows, columns, seed=0):
    """Signed codes (N, K) with both ends, scales, fields, and values."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-128, 128, (rows, columns), generator=generator, dtype=torch.int8)
    codes[0, :2] = torch.tensor([-128, 127])
    scales = (torch.rand(rows, generator=generator) * 0.01).half()
    fields = {"weight": in_steps(codes.t()), "weight_scales": scales}
    return codes, fields, codes.float() * scales.float()[:, None]


def located(fields):
    about = {name: (tuple(value.shape), dtype_name(value.dtype)) for name, value in fields.items()}
    module = ModuleFields("m", about, lambda name: b"")
    family = EETQ()
    packer, shape = family.locate(family.detect({"quant_method": "eetq"}), module)
    return packer.from_stored(fields, shape)


@pytest.mark.parametrize(("rows", "columns"), [(64, 64), (128, 192), (64, 320)])
def test_codes_step_by_step(rows, columns):
    codes, fields, values = weight(rows, columns)
    packed = located(fields)
    assert (packed.format, packed.shape) == ("eetq:int8", (rows, columns))
    assert torch.equal(packed.unpack().codes.int() - 128, codes.int())
    assert torch.equal(packed.dequantize(), values)


def reordered():
    """PyTorch's own steps for ``_mixed_dtypes_linear``, whose kernels are the same; on a processor too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from torch.quantization import _quantized_conversions as conversions
    function = conversions.quantized_weight_reorder_for_mixed_dtypes_linear_cutlass
    source = inspect.getsource(function)
    checked = 'weight.device.type != "cuda"'
    assert source.count(checked) == 1
    made = {"torch": torch}
    # Its one obstacle here is that it asks for a GPU, which nothing in it needs.
    exec(source.replace(checked, "False"), made)
    return made[function.__name__]


def test_codes_as_pytorch_orders_them():
    codes, fields, values = weight(192, 256, seed=3)
    theirs = reordered()(codes.t().contiguous(), torch.int8)
    packed = located(fields | {"weight": theirs.view(torch.int8)})
    assert torch.equal(packed.unpack().codes.int() - 128, codes.int())
    assert torch.equal(packed.dequantize(), values)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny.build("llama", tmp_path_factory.mktemp("models") / "llama", "float32")


def folder(source, target, fields, declared):
    target.mkdir()
    tensors = load_file(source / "model.safetensors")
    shape = tensors.pop(f"{MODULE}.weight").shape
    save_file(
        tensors | {f"{MODULE}.{name}": each for name, each in fields.items()}, target / "model.safetensors"
    )
    config = json.loads((source / "config.json").read_text())
    if declared:
        config["quantization_config"] = declared
    (target / "config.json").write_text(json.dumps(config))
    return shape


@pytest.fixture(scope="module")
def fitting(llama):
    shape = load_file(llama / "model.safetensors")[f"{MODULE}.weight"].shape
    return weight(*shape)


def test_folders_are_read_run_and_converted(llama, fitting, tmp_path):
    _, fields, values = fitting
    declared = {"quant_method": "eetq", "weights": "int8", "modules_to_not_convert": None}
    folder(llama, tmp_path / "model", fields, declared)
    name = f"{MODULE}.weight"
    model = qformats.open(tmp_path / "model")
    assert model.tensors[name].format == "eetq:int8"
    assert torch.equal(model.read(name), values)
    qformats.export(tmp_path / "model", tmp_path / "plain", format="dense:f32")
    packed, plain = (qformats.load_model(tmp_path / each, dtype="f32") for each in ("model", "plain"))
    with torch.inference_mode():
        assert torch.allclose(packed(IDS).logits, plain(IDS).logits, rtol=1e-5, atol=1e-5)
    # The same numbers in another order: compressed-tensors has bytes with a scale per row too.
    same = "compressed-tensors:w8a16-channel-f16"
    qformats.export(tmp_path / "model", tmp_path / "ct", format=same, require_exact=True)
    assert torch.equal(qformats.open(tmp_path / "ct").read(name), values)


def test_folders_that_declare_nothing(llama, fitting, tmp_path):
    _, fields, values = fitting
    folder(llama, tmp_path / "model", fields, None)
    with pytest.warns(UserWarning, match="read as those of eetq"):
        model = qformats.open(tmp_path / "model")
    assert torch.equal(model.read(f"{MODULE}.weight"), values)


def test_what_does_not_fit_is_refused(llama, fitting, tmp_path):
    _, fields, _ = weight(64, 64)
    for name, value in (
        ("weight", fields["weight"].view(torch.uint8)),
        ("weight_scales", fields["weight_scales"].float()),
        ("weight_scales", fields["weight_scales"][:32]),
        ("weight", fields["weight"].view(1, 64, 64)),
    ):
        with pytest.raises(ConfigError, match=r"expected weight i8 \(in_features, out_features\)"):
            located(fields | {name: value})
    with pytest.raises(ConfigError, match="weight_scales f16"):
        located({"weight_scales": fields["weight_scales"]})
    narrow = {"weight": fields["weight"][:32].contiguous(), "weight_scales": fields["weight_scales"]}
    with pytest.raises(ConfigError, match="found 64 x 32 weights; expected multiples of 64"):
        located(narrow)
    broken = fields["weight_scales"].clone()
    broken[5] = torch.nan
    with pytest.raises(ConfigError, match=r"weight_scales.*1 values that are NaN or infinite"):
        located(fields | {"weight_scales": broken})
    folder(
        llama,
        tmp_path / "model",
        {"weight": fitting[1]["weight"], "weight_scales": fields["weight_scales"][:3]},
        {"quant_method": "eetq"},
    )
    with pytest.raises(CheckpointError, match="expected weight i8"):
        qformats.open(tmp_path / "model")
