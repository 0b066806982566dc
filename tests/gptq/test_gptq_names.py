"""GPTQ folders that do not say what they are as AutoGPTQ does: other names of the method, few keys, or none at all."""

import json
import re
import warnings

import pytest
import torch
from models import tiny
from safetensors.torch import load_file, save_file

import qformats
from qformats.errors import CheckpointError

UP, DOWN = "model.layers.1.mlp.up_proj", "model.layers.1.mlp.down_proj"
ROUND = {"bits": 4, "group_size": 32, "data_type": "int"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Symmetric (stored as v1) and asymmetric (as v2) weights of one model, by kind."""
    folder = tmp_path_factory.mktemp("named")
    source = tiny.build("llama", folder / "source")
    for kind in ("4bit-32g", "4bit-32g-asym", "3bit-64g"):
        qformats.export(source, folder / kind, format=f"gptq:{kind}", quantizer="rtn")
    return folder


def declaring(folder, target, config, tensors=None):
    """A copy of a folder with another ``quantization_config``, and without the file that repeats it."""
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    (target / "quantize_config.json").unlink()
    whole = json.loads((target / "config.json").read_bytes())
    whole["quantization_config"] = config
    if config is None:
        del whole["quantization_config"]
    (target / "config.json").write_text(json.dumps(whole))
    if tensors:
        weights = target / "model.safetensors"
        save_file(tensors(load_file(weights)), weights)
    return target


def same(folder, expected):
    """Whether two folders hold the same quantized weights."""
    one, other = qformats.open(folder), qformats.open(expected)
    assert one.tensors[f"{UP}.weight"].packer.quantizes
    return all(torch.equal(one.read(name), other.read(name)) for name in other.tensors)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("4bit-32g", {"bits": 4, "group_size": 32, "quant_method": "GPTQ"}),
        ("4bit-32g", {"bits": 4, "group_size": 32, "quant_method": "gptqmodel"}),
        ("4bit-32g", {"bits": 4, "group_size": 32}),
        # Capitals, lists of one, and numbers as some JSON writers put them.
        (
            "4bit-32g",
            {"bits": 4.0, "group_size": 32.0, "quant_method": ["gptq"], "checkpoint_format": ["GPTQ"]},
        ),
        ("4bit-32g", {"bits": 4, "group_size": 32, "quant_method": "gptq", "checkpoint_format": "GPTQ"}),
        ("4bit-32g", {"bits": 4, "group_size": 32, "quant_method": "gptq", "pack_dtype": "INT32"}),
        (
            "4bit-32g-asym",
            {"bits": 4, "group_size": 32, "sym": False, "quant_method": "GPTQ", "format": ["GPTQ_v2"]},
        ),
        ("4bit-32g", {**ROUND, "data_type": "INT", "quant_method": "Auto-Round"}),
        ("4bit-32g-asym", {"bits": 4, "group_size": 32, "sym": False, "checkpoint_format": "gptq_v2"}),
        ("4bit-32g", {**ROUND, "quant_method": "auto-round", "packing_format": "auto_round:auto_gptq"}),
        ("4bit-32g", {**ROUND, "quant_method": "intel/auto-round", "backend": "auto_round:gptq:exllamav2"}),
        ("4bit-32g", {**ROUND, "quant_method": "auto-round"}),
        (
            "4bit-32g-asym",
            {**ROUND, "quant_method": "auto-round", "sym": False, "packing_format": "auto_round"},
        ),
        (
            "4bit-32g-asym",
            {**ROUND, "quant_method": "auto_round", "sym": False, "packing_format": "auto_round:gptqmodel"},
        ),
    ],
)
def test_other_names(kind, config, folders, tmp_path):
    folder = declaring(folders / kind, tmp_path / "m", config)
    assert same(folder, folders / kind)


@pytest.mark.parametrize("word", [["gptq", "gptq_v2"], [], ["marlin"], 5])
def test_two_words_or_another_one_are_refused(word, folders, tmp_path):
    config = {"bits": 4, "group_size": 32, "quant_method": "gptq", "checkpoint_format": word}
    with pytest.raises(CheckpointError, match="checkpoint_format: found"):
        qformats.open(declaring(folders / "4bit-32g", tmp_path / "m", config))


def test_what_is_odd_in_every_tensor_is_said_once(folders, tmp_path):
    config = {"bits": 4, "group_size": 32, "quant_method": "gptq", "checkpoint_format": "gptq_v2"}
    folder = declaring(folders / "4bit-32g", tmp_path / "m", config)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        source = qformats.open(folder)
    modules = sum(tensor.packer.quantizes for tensor in source.tensors.values())
    (said,) = [str(each.message) for each in caught]
    assert said.startswith("GPTQ zero points are 7, as checkpoint_format 'gptq' stores them")
    assert said.endswith(f" (and {modules - 1} more tensors alike)")


def test_warnings_that_differ_in_the_name_only_are_alike(folders, tmp_path):
    config = {
        "bits": 4,
        "group_size": 32,
        "sym": True,
        "quant_method": "gptq",
        "checkpoint_format": "gptq_v2",
    }
    folder = declaring(folders / "4bit-32g-asym", tmp_path / "m", config)
    with pytest.warns(UserWarning, match="although the model is declared symmetric") as caught:
        qformats.open(folder)
    (said,) = [str(each.message) for each in caught]
    assert re.search(r"model\.layers\.\d\.\S+ is read as asymmetric \(and 13 more tensors alike\)$", said)


@pytest.mark.parametrize("kind", ["4bit-32g", "3bit-64g"])
def test_nothing_declared(kind, folders, tmp_path):
    """Names and shapes leave no doubt; that it was a guess is said, with the option that overrides it."""
    folder = declaring(folders / kind, tmp_path / "m", None)
    with pytest.warns(UserWarning, match=r"declares no quantization.*gptq.*-O quantization-config="):
        assert same(folder, folders / kind)


def test_nothing_declared_and_no_order(folders, tmp_path):
    """GPTQ-for-LLaMa wrote neither a configuration nor ``g_idx``."""
    folder = declaring(
        folders / "3bit-64g",
        tmp_path / "m",
        None,
        lambda tensors: {name: t for name, t in tensors.items() if not name.endswith("g_idx")},
    )
    with pytest.warns(UserWarning, match="declares no quantization"):
        assert same(folder, folders / "3bit-64g")


@pytest.mark.parametrize("format", ["bitsandbytes:nf4-dq", "bitsandbytes:fp4", "bitsandbytes:int8"])
def test_other_families_are_recognised_too(format, folders, tmp_path):
    qformats.export(folders / "source", tmp_path / "b", format=format)
    config = json.loads((tmp_path / "b" / "config.json").read_bytes())
    expected = {name: qformats.open(tmp_path / "b").read(name) for name in (f"{UP}.weight", "lm_head.weight")}
    del config["quantization_config"]
    (tmp_path / "b" / "config.json").write_text(json.dumps(config))
    with pytest.warns(UserWarning, match="those of bitsandbytes"):
        model = qformats.open(tmp_path / "b")
    assert model.tensors[f"{UP}.weight"].format == format
    assert all(torch.equal(model.read(name), value) for name, value in expected.items())


def test_widths_that_differ_and_are_not_declared(folders, tmp_path):
    """AutoRound's `extra_config` gives modules their own width, and writes no ``g_idx``."""
    other = load_file(folders / "3bit-64g" / "model.safetensors")

    def mixed(tensors):
        tensors |= {name: tensor for name, tensor in other.items() if DOWN in name}
        return {name: tensor for name, tensor in tensors.items() if not name.endswith("g_idx")}

    config = {**ROUND, "quant_method": "auto-round", "extra_config": {DOWN: {"bits": 3, "group_size": 64}}}
    folder = declaring(folders / "4bit-32g", tmp_path / "m", config, mixed)
    model = qformats.open(folder)
    assert model.tensors[f"{DOWN}.weight"].format == "gptq:3bit-64g"
    assert torch.equal(
        model.read(f"{DOWN}.weight"), qformats.open(folders / "3bit-64g").read(f"{DOWN}.weight")
    )
    assert torch.equal(model.read(f"{UP}.weight"), qformats.open(folders / "4bit-32g").read(f"{UP}.weight"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {**ROUND, "quant_method": "auto-round", "packing_format": "auto_round:auto_awq"},
            "the layout of GPTQ",
        ),
        ({**ROUND, "quant_method": "auto-round", "data_type": "mx_fp4"}, "data_type: found 'mx_fp4'"),
        ({**ROUND, "quant_method": "auto-round", "sym": False}, "packing_format: found none, of an asymm"),
        ({"bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}, "quantization method None"),
    ],
)
def test_what_is_not_known_to_be_gptq_is_refused(config, message, folders, tmp_path):
    with pytest.raises(CheckpointError, match=message):
        qformats.open(declaring(folders / "4bit-32g", tmp_path / "m", config))


def test_the_layout_of_awq_is_named(folders, tmp_path):
    """It gives its tensors the same names; its codes lie the other way round."""

    def awq(tensors):
        for name in [name for name in tensors if name.endswith("qweight")]:
            words, outputs = tensors[name].shape
            tensors[name] = torch.zeros(8 * words, outputs // 8, dtype=torch.int32)
        return tensors

    folder = declaring(folders / "4bit-32g", tmp_path / "m", {"bits": 4, "group_size": 32}, awq)
    with pytest.raises(CheckpointError, match="the layout of AWQ"):
        qformats.open(folder)


@pytest.mark.parametrize("parts", [1, 2])
def test_files_named_as_autogptq_does(parts, folders, tmp_path):
    """``gptq_model-4bit-128g`` in place of ``model``, whole or in parts with an index."""
    kept = folders / "4bit-32g"
    folder = declaring(kept, tmp_path / "m", {"bits": 4, "group_size": 32, "quant_method": "gptq"})
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    stem = "gptq_model-4bit-128g"
    names = sorted(weights)
    if parts == 1:
        save_file(weights, folder / f"{stem}.safetensors")
    else:
        index = {}
        for number in range(parts):
            file = f"{stem}-0000{number + 1}-of-0000{parts}.safetensors"
            save_file({name: weights[name] for name in names[number::parts]}, folder / file)
            index |= dict.fromkeys(names[number::parts], file)
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert same(folder, kept)


def test_a_plain_weight_beside_packed_fields_is_refused(folders, tmp_path):
    """Nobody can tell which of the two the model is."""

    def both(tensors):
        return tensors | {f"{UP}.weight": torch.zeros(192, 64)}

    folder = declaring(folders / "4bit-32g", tmp_path / "m", {"bits": 4, "group_size": 32}, both)
    with pytest.raises(CheckpointError, match=rf"{UP}\.weight.* both as plain numbers and in gptq:4bit-32g"):
        qformats.open(folder)


@pytest.mark.parametrize("format", ["dense:f32", "gguf:f32", "gptq:4bit-32g", None])
def test_codes_without_their_scales_are_said_to_be_that(format, folders, tmp_path):
    """Whatever is to be made of them; without a declaration nothing else says that weights are quantized."""
    folder = declaring(
        folders / "4bit-32g",
        tmp_path / "m",
        None,
        lambda tensors: {
            name: t for name, t in tensors.items() if not name.endswith((".scales", ".qzeros", ".g_idx"))
        },
    )
    with pytest.raises(
        CheckpointError, match=r"qweight': is a field of a quantized weight, but config\.json"
    ):
        qformats.export(folder, tmp_path / "out", format=format) if format else qformats.load_model(folder)
    assert not (tmp_path / "out").exists()
