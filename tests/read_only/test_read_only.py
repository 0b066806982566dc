"""HQQ, optimum-quanto and TorchAO: their own values, folders that declare them, and what is refused."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

import pytest
import torch
from models import tiny
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

import qformats
from qformats.errors import CheckpointError, ConfigError
from qformats.interfaces import ModuleFields
from qformats.numbers import dtype_name
from qformats_gptq.elsewhere import KNOWN
from qformats_hqq.family import HQQ
from qformats_quanto.family import Quanto
from qformats_torchao.family import TorchAO

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "read_only" / "layers.safetensors")
FAMILIES = {family.name: family() for family in (HQQ, Quanto, TorchAO)}
CASES = sorted({name.partition(".")[0] for name in GOLDEN})
MODULE = "model.layers.0.self_attn.k_proj"
IDS = torch.tensor([[1, 5, 9, 33, 7, 2, 60, 12]])


def layer(case):
    """Fields of a layer, and its values as the program decodes them."""
    fields = {name.partition(".")[2]: value for name, value in GOLDEN.items() if name.startswith(f"{case}.")}
    return fields, fields.pop("values")


def located(case, fields, shape=None):
    family = FAMILIES[case.partition("-")[0]]
    packer = family.detect({"quant_method": family.name})
    known = {name: value for name, value in fields.items() if name in family.suffixes(packer)}

    def read(name):
        return known[name].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()

    stored = {name: (tuple(value.shape), dtype_name(value.dtype)) for name, value in known.items()}
    own, shape = family.locate(packer, ModuleFields("m", stored, read, lambda: shape))
    return own.from_stored(known, shape)


@pytest.mark.parametrize("case", CASES)
def test_the_values_of_the_program(case):
    """Where it computes in float32, bit for bit; where in 16 bits, up to its two roundings."""
    fields, values = layer(case)
    # Of quanto's few bits a folder does not store the shape; the configuration tells it.
    found = located(case, fields, tuple(values.shape)).dequantize()
    assert found.shape == values.shape
    if values.dtype == torch.float32:
        assert torch.equal(found, values)
    else:
        step = torch.finfo(values.dtype).eps * found.abs().max()
        assert (found - values.float()).abs().max() <= 2 * step


def folder(case, target, source):
    """A llama of which one module is a layer of the program."""
    target.mkdir()
    fields, values = layer(case)
    tensors = load_file(source / "model.safetensors")
    del tensors[f"{MODULE}.weight"]
    more = {f"{MODULE}.{name}": value for name, value in fields.items()}
    save_file(tensors | more, target / "model.safetensors")
    config, name = json.loads((source / "config.json").read_text()), case.partition("-")[0]
    if name == "quanto":
        modules = {MODULE: {"weights": "qint8", "activations": "none"}}
        (target / "quanto_qmap.json").write_text(json.dumps(modules))
    else:
        config["quantization_config"] = {"quant_method": name}
    (target / "config.json").write_text(json.dumps(config))
    return values


@pytest.mark.parametrize(
    ("case", "variant"),
    [
        ("quanto-qint4-256", "qint4-128g"),
        ("quanto-qint2-256", "qint2-128g"),
        ("quanto-qint4-192", "qint4-96g"),
        ("quanto-qint4-160", "qint4-32g"),
        ("quanto-qint4-96", "qint4"),
    ],
)
def test_groups_of_quanto(case, variant):
    """The largest of 128, 96, 64 and 32 that divides rows of more than 128."""
    fields, values = layer(case)
    assert located(case, fields, tuple(values.shape)).format == f"quanto:{variant}"


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny.build("llama", tmp_path_factory.mktemp("models") / "llama", "float32")


@pytest.mark.parametrize(
    "case", ["hqq-4bit-axis1-float16", "quanto-qint8-64", "torchao-row-float32", "torchao-int4-float32"]
)
def test_folders_are_read_run_and_converted(case, llama, tmp_path):
    values = folder(case, tmp_path / "model", llama)
    model = qformats.open(tmp_path / "model")
    own = model.tensors[f"{MODULE}.weight"].format
    assert own.startswith(f"{case.partition('-')[0]}:")
    assert {tensor.format for tensor in model.tensors.values()} == {"dense:f32", own}
    qformats.export(tmp_path / "model", tmp_path / "plain", format="dense:f32")
    packed, plain = (qformats.load_model(tmp_path / name, dtype="f32") for name in ("model", "plain"))
    with torch.inference_mode():
        first, second = (each(IDS).logits for each in (packed, plain))
    assert torch.allclose(first, second, rtol=1e-5, atol=1e-5)
    if values.dtype == torch.float32 and "int4" not in case:
        # Bytes with float32 scales are the same numbers elsewhere.
        target = tmp_path / "ct"
        same = "compressed-tensors:w8a8-channel-f32"
        qformats.export(tmp_path / "model", target, format=same, require_exact=True)
        assert torch.equal(qformats.open(target).read(f"{MODULE}.weight"), values)


def test_the_shape_of_the_model_tells_groups_from_rows(tmp_path):
    """Of a model that is wide enough for groups; without a known class they are refused."""
    sizes = {"hidden_size": 256, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 32}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 1}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**sizes, **heads)).save_pretrained(tmp_path / "plain")
    values = folder("quanto-qint4-256", tmp_path / "model", tmp_path / "plain")
    model = qformats.open(tmp_path / "model")
    assert model.tensors[f"{MODULE}.weight"].format == "quanto:qint4-128g"
    assert torch.equal(model.read(f"{MODULE}.weight"), values)
    qformats.export(tmp_path / "model", tmp_path / "dense", format="dense:f32")
    ids = IDS % 32
    packed, plain = (qformats.load_model(tmp_path / name, dtype="f32") for name in ("model", "dense"))
    with torch.inference_mode():
        assert torch.allclose(packed(ids).logits, plain(ids).logits, rtol=1e-5, atol=1e-5)
    config = json.loads((tmp_path / "model" / "config.json").read_text()) | {"model_type": "of-ones-own"}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="64 groups of 128, of a weight whose shape is not stored"):
        qformats.open(tmp_path / "model")


def test_four_bits_in_bytes_are_those_of_other_formats(llama, tmp_path):
    """TorchAO stores them unpacked where they are to be exported; their numbers fit into 4 bits elsewhere."""
    values = folder("torchao-intx4", tmp_path / "model", llama)
    same, target = "compressed-tensors:w4a16-32g-f32", tmp_path / "ct"
    qformats.export(tmp_path / "model", target, format=same, require_exact=True)
    assert torch.equal(qformats.open(target).read(f"{MODULE}.weight"), values)


def test_four_bits_of_torchao_are_canonical():
    """Scale, minimum and codes from -8 are what other formats take; where float32 holds the minima, unchanged."""
    fields, values = layer("torchao-int4-float32")
    packed = located("torchao-int4-float32", fields)
    assert packed.format == "torchao:int4-32g"
    quantized = packed.packer.unpack(packed)
    assert torch.equal(quantized.scale, fields["_weight_scale"].t())
    assert torch.equal(quantized.minimum, fields["_weight_zero_point"].t())
    assert torch.equal(quantized.dequantize(), values)


def test_what_is_not_read_is_refused():
    fields, _ = layer("quanto-qint4-256")
    with pytest.raises(ConfigError, match="64 groups of 128, of a weight whose shape is not stored"):
        located("quanto", fields)
    for shape in ((32, 128), (64, 64), (128, 64)):
        with pytest.raises(ConfigError, match=f"64 groups of 128; expected those of {shape[0]} x {shape[1]}"):
            located("quanto", fields, shape)
    fields, _ = layer("hqq-4bit-axis1-float32")
    for name, told in (("quant_zero", "quantized themselves"), ("view_as_float", "a dtype of floats")):
        with pytest.raises(ConfigError, match=told):
            located("hqq", fields | {name: torch.ones_like(fields[name])})
    with pytest.raises(ConfigError, match="also shape"):
        located("hqq", {name: value for name, value in fields.items() if name != "shape"})
    with pytest.raises(ConfigError, match=r"W_q u8 \(16, 64\)"):
        located("hqq", fields | {"W_q": fields["W_q"][:16]})
    fields, _ = layer("torchao-row-float32")
    with pytest.raises(ConfigError, match=r"_weight_act_pre_scale f32 .* those of Int8Tensor, Int4Tensor or"):
        located("torchao", fields | {"_weight_act_pre_scale": torch.ones(64)})
    fields, _ = layer("torchao-int4-float32")
    # Words instead of bytes: of another device's layout.
    with pytest.raises(ConfigError, match=r"_weight_qdata i32 \(32, 8\)"):
        located("torchao", fields | {"_weight_qdata": fields["_weight_qdata"].view(torch.int32)})
    for field in ("_weight_scale", "_weight_zero_point"):
        broken = fields[field].clone()
        broken[1, 3] = torch.nan
        with pytest.raises(ConfigError, match=f"{field}.*1 values that are NaN"):
            located("torchao", fields | {field: broken})


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ("aqlm", "package aqlm"),
        ("vptq", "package vptq"),
        ("spqr", "package spqr_quant"),
        ("exl2", "exllamav2 and TabbyAPI"),
        ("exl3", "exllamav3 and TabbyAPI"),
        ("bitnet", "bitnet.cpp"),
        ("higgs", "package flute-kernel"),
        ("fp_quant", "package fp-quant"),
        ("quark", "package amd-quark"),
        ("sinq", "package sinq"),
    ],
)
def test_methods_that_no_plugin_reads_have_a_sentence(method, told, llama, tmp_path):
    config = json.loads((llama / "config.json").read_text()) | {
        "quantization_config": {"quant_method": method}
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((llama / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match=told):
        qformats.open(tmp_path)


def words(*shape, dtype=torch.int32):
    return torch.zeros(shape, dtype=dtype)


def halves(*shape):
    return torch.ones(shape, dtype=torch.float16)


FOREIGN = {
    "aqlm": {
        "codes": words(32, 8, 1, dtype=torch.int16),
        "codebooks": halves(1, 256, 1, 8),
        "scales": halves(32, 1, 1, 1),
    },
    "vptq-as-floats": {"indices": halves(1, 8, 16), "centroids.weight": halves(1, 64)},
    "vptq": {"indices": words(1, 8, 16), "centroids.weight": halves(1, 64), "perm": words(64)},
    "spqr": {
        "dense_weights": words(64, dtype=torch.int64),
        "row_offsets": words(33),
        "col_vals": words(5),
        "in_perm": words(64, dtype=torch.int64),
    },
    "exl2": {
        "q_weight": words(8, 32),
        "q_scale": words(2, 4),
        "q_scale_max": halves(2),
        "q_groups": words(4, dtype=torch.int16),
        "q_invperm": words(64, dtype=torch.int16),
    },
    "exl3": {"trellis": words(4, 2, 64, dtype=torch.int16), "suh": halves(64), "svh": halves(32)},
}


def foreign(name):
    """Tensors of a module: those of Transformers' own classes where it has them, else by the programs' names."""
    with warnings.catch_warnings():
        # The module compiles a function when it is imported, which loads what torch has deprecated itself.
        warnings.simplefilter("ignore", DeprecationWarning)
        from transformers.integrations.bitnet import BitLinear
    if name == "bitnet":
        return BitLinear(64, 32, False).state_dict()
    return FOREIGN[name]


@pytest.mark.parametrize("declared", [None, {}, {"bits": 4}])
@pytest.mark.parametrize("name", [*FOREIGN, "bitnet"])
def test_formats_that_no_plugin_reads_are_known_by_their_tensors(name, declared, llama, tmp_path):
    """Where config.json does not name the method; with the sentence of the method."""
    tensors = load_file(llama / "model.safetensors")
    del tensors[f"{MODULE}.weight"]
    tensors |= {f"{MODULE}.{field}": value.contiguous() for field, value in foreign(name).items()}
    save_file(tensors, tmp_path / "model.safetensors")
    config = json.loads((llama / "config.json").read_text())
    if declared is not None:
        config["quantization_config"] = declared
    (tmp_path / "config.json").write_text(json.dumps(config))
    name = name.removesuffix("-as-floats")
    told = rf"tensors of {re.escape(MODULE)} as {name} stores them: {re.escape(KNOWN[name])}"
    with pytest.raises(CheckpointError, match=told):
        qformats.open(tmp_path)
