"""What is known of activations: carried where the output can say the same, named where it cannot."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch
from models import tiny
from models.records import forget
from oracles.llama_cpp import LlamaCpp
from safetensors.torch import load_file, save_file

import qformats
from qformats.errors import CheckpointError
from qformats.interfaces import Scheme
from qformats.registry import registry

CT = "compressed-tensors"
LAYER = "model.layers.0.self_attn"
MODULES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
MODULES += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
NAMES = [f"model.layers.{layer}.{module}" for layer in (0, 1) for module in MODULES]
STATIC = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor", "dynamic": False}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny.build("llama", tmp_path_factory.mktemp("models") / "llama", "float16")


@pytest.fixture(scope="module")
def sources(llama, tmp_path_factory):
    """Folders of several families, without numbers for activations."""
    out = tmp_path_factory.mktemp("sources")
    for name in (f"{CT}:fp8-tensor", f"{CT}:nvfp4", f"{CT}:w8a8-channel", "modelopt:nvfp4", "fp8:block"):
        qformats.export(llama, out / name.replace(":", "-"), format=name)
    return out


def declared(folder):
    return json.loads((folder / "config.json").read_text())["quantization_config"]


def tensors(folder):
    return load_file(folder / "model.safetensors")


def steps(folder, *endings):
    return {name: float(value) for name, value in tensors(folder).items() if name.endswith(endings)}


def added(folder, target, more, change=lambda declared: declared):
    """A copy with further tensors and another declaration."""
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = change(config["quantization_config"])
    (target / "config.json").write_text(json.dumps(config))
    save_file(tensors(folder) | more, target / "model.safetensors")
    return forget(target)


def numbers(ending, start=1, shape=(1,)):
    """A different number for each layer, none of them a power of two."""
    return {f"{name}.{ending}": torch.full(shape, 3.0 + start * i / 7) for i, name in enumerate(NAMES)}


def cached(shape=(1,), between=""):
    return {
        f"model.layers.{layer}.self_attn.{between and kind + between}{kind}_scale": torch.full(shape, value)
        for layer in (0, 1)
        for kind, value in (("k", 0.3 + layer), ("v", 0.7 + layer))
    }


def static(config):
    for group in config["config_groups"].values():
        group["input_activations"] = dict(STATIC)
    return config | {"kv_cache_scheme": dict(STATIC)}


def converted(source, target, format, **more):
    report = qformats.export(source, target, format=format, require_exact=True, **more)
    return [note for note in report.notes if note.startswith("the source quantizes")], report


def test_static_fp8_of_inputs_and_of_the_cache(sources, tmp_path):
    """compressed-tensors to ModelOpt and back, and through its own copy: the same numbers, and what declares them."""
    before = numbers("input_scale") | cached()
    source = added(sources / f"{CT}-fp8-tensor", tmp_path / "static", before, static)
    told, report = converted(source, tmp_path / "modelopt", "modelopt:fp8", program="vllm")
    assert not told
    assert not report.left_out
    found = declared(tmp_path / "modelopt")
    assert found["config_groups"]["group_0"]["input_activations"]["dynamic"] is False
    assert found["kv_cache_scheme"] == {"dynamic": False, "num_bits": 8, "type": "float"}
    beside = json.loads((tmp_path / "modelopt" / "hf_quant_config.json").read_text())["quantization"]
    assert (beside["quant_algo"], beside["kv_cache_quant_algo"]) == ("FP8", "FP8")
    stored = tensors(tmp_path / "modelopt")
    assert stored[f"{LAYER}.k_proj.k_scale"].shape == stored[f"{LAYER}.q_proj.input_scale"].shape == ()
    assert stored[f"{LAYER}.v_proj.v_scale"] == before[f"{LAYER}.v_scale"]
    assert not any("no scales of activations" in note for note in report.notes)
    converted(tmp_path / "modelopt", tmp_path / "back", f"{CT}:fp8-tensor")
    qformats.export(source, tmp_path / "copy", format=f"{CT}:fp8-tensor")
    for folder in (tmp_path / "back", tmp_path / "copy"):
        own = tensors(folder)
        assert all(torch.equal(own[name], value) for name, value in before.items())
        scheme = declared(folder)
        wanted = {**STATIC, "observer": "minmax", "group_size": None}
        assert scheme["config_groups"]["group_0"]["input_activations"] == scheme["kv_cache_scheme"] == wanted


def test_the_library_reads_what_is_declared(sources, tmp_path):
    from oracles import package_folder

    package_folder("compressed-tensors", "compressed_tensors", "0.20.0")
    from compressed_tensors.quantization import QuantizationConfig

    source = added(sources / f"{CT}-fp8-tensor", tmp_path / "in", numbers("input_scale") | cached(), static)
    qformats.export(source, tmp_path / "out", format=f"{CT}:fp8-tensor")
    read = QuantizationConfig.model_validate(declared(tmp_path / "out"))
    assert not read.config_groups["group_0"].input_activations.dynamic
    assert read.kv_cache_scheme.num_bits == 8
    four = added(sources / "modelopt-nvfp4", tmp_path / "four", numbers("input_scale", shape=()))
    qformats.export(four, tmp_path / "nvfp4", format=f"{CT}:nvfp4")
    read = QuantizationConfig.model_validate(declared(tmp_path / "nvfp4"))
    assert str(read.config_groups["group_0"].input_activations.dynamic).endswith("local")


def test_nvfp4_has_the_number_the_other_way_up(sources, tmp_path):
    before = numbers("input_scale", shape=())
    algorithm = lambda config: config | {"quant_algo": "NVFP4"}  # noqa: E731
    source = added(sources / "modelopt-nvfp4", tmp_path / "in", before, algorithm)
    report = qformats.export(source, tmp_path / "ct", format=f"{CT}:nvfp4")
    assert not [note for note in report.notes if "quantizes inputs" in note]
    stored = steps(tmp_path / "ct", "input_global_scale")
    assert len(stored) == len(before)
    for name, value in before.items():
        own = stored[name.replace("input_scale", "input_global_scale")]
        assert own == float(torch.reciprocal(value))
    assert declared(tmp_path / "ct")["config_groups"]["group_0"]["input_activations"]["dynamic"] == "local"
    qformats.export(tmp_path / "ct", tmp_path / "back", format="modelopt:nvfp4")
    back = steps(tmp_path / "back", "input_scale")
    assert all(abs(back[name] / float(value) - 1) < 2**-22 for name, value in before.items())
    assert declared(tmp_path / "back")["quant_algo"] == "NVFP4"
    # GGUF has a place for it too.
    report = qformats.export(source, tmp_path / "m.gguf", format="gguf:nvfp4", require_exact=True)
    assert not [note for note in report.notes if "quantizes" in note]
    assert not report.left_out
    with LlamaCpp(tmp_path / "m.gguf") as model:
        assert np.isfinite(model.logits([1, 5, 9])).all()
    qformats.export(tmp_path / "m.gguf", tmp_path / "again", format="modelopt:nvfp4", require_exact=True)
    assert steps(tmp_path / "again", "input_scale") == {name: float(value) for name, value in before.items()}
    assert declared(tmp_path / "again")["quant_algo"] == "NVFP4"
    for bad in (0.0, float("inf")):
        target = tmp_path / str(bad)
        one = {NAMES[0] + ".input_scale": torch.tensor(bad)}
        broken = added(sources / "modelopt-nvfp4", target, before | one, algorithm)
        with pytest.raises(CheckpointError, match="has no reciprocal"):
            qformats.export(broken, tmp_path / "none", format=f"{CT}:nvfp4")
        assert not (tmp_path / "none").exists()


def test_int8_of_inputs_stays_static_or_dynamic_or_absent(sources, tmp_path):
    whole = {**STATIC, "type": "int"}

    def scheme(inputs):
        def change(config):
            config["config_groups"]["group_0"]["input_activations"] = inputs
            return config

        return change

    folder, format = sources / f"{CT}-w8a8-channel", f"{CT}:w8a8-channel"
    before = numbers("input_scale")
    qformats.export(added(folder, tmp_path / "a", before, scheme(whole)), tmp_path / "static", format=format)
    assert steps(tmp_path / "static", "input_scale") == {name: float(value) for name, value in before.items()}
    assert declared(tmp_path / "static")["config_groups"]["group_0"]["input_activations"]["dynamic"] is False
    for name, inputs in (("none", None), ("dynamic", {**whole, "dynamic": True, "strategy": "token"})):
        qformats.export(
            added(folder, tmp_path / f"b-{name}", {}, scheme(inputs)), tmp_path / name, format=format
        )
        assert declared(tmp_path / name)["config_groups"]["group_0"]["input_activations"] == inputs
    # A zero point belongs to such a number; without it the number says nothing.
    sided = added(folder, tmp_path / "c", before, scheme({**whole, "symmetric": False}))
    report = qformats.export(sided, tmp_path / "sided", format=format)
    assert {each.name for each in report.left_out} == {*before}


def test_numbers_for_some_layers_only_are_left_out(sources, tmp_path):
    some = dict(list(numbers("input_scale").items())[1:])
    source = added(sources / f"{CT}-fp8-tensor", tmp_path / "in", some, static)
    told, report = converted(source, tmp_path / "out", f"{CT}:fp8-tensor")
    assert {each.name for each in report.left_out} == {*some}
    assert not steps(tmp_path / "out", "input_scale")
    assert len(told) == 2
    assert declared(tmp_path / "out")["config_groups"]["group_0"]["input_activations"]["dynamic"] is True


@pytest.mark.parametrize(
    "format",
    ["dense:bf16", "gguf:q8_0", "gptq:8bit-32g", "awq:4bit-32g", "fp8:block", "glm:int8", "mlx:8bit-64g"],
)
def test_what_an_output_cannot_say_is_told(format, sources, tmp_path):
    before = numbers("input_scale") | cached()
    source = added(sources / f"{CT}-fp8-tensor", tmp_path / "in", before, static)
    plan = qformats.export(source, tmp_path / "out", format=format)
    told = [note for note in plan.notes if note.startswith("the source quantizes")]
    own = "with scales of its own; the output declares nothing of the kind, and weights do without"
    assert told == [
        f"the source quantizes {what} in FP8, {own}"
        for what in ("inputs of layers", "keys and values in the cache")
    ]
    held = {"fp8:block": {*cached()}}.get(format, set())
    assert {each.name for each in plan.left_out} == {*before} - held


def test_numbers_of_the_cache_of_fp8(sources, tmp_path):
    """``fp8`` declares nothing of a cache, and programs look for its numbers where they are asked to use FP8."""
    source = added(sources / "fp8-block", tmp_path / "in", cached())
    report = qformats.export(source, tmp_path / "out", format=f"{CT}:fp8-block", require_exact=True)
    assert not report.left_out
    assert steps(tmp_path / "out", "k_scale", "v_scale").keys() == cached().keys()
    assert declared(tmp_path / "out")["kv_cache_scheme"]["type"] == "float"


def test_names_with_what_a_wrapper_has_added(sources, tmp_path):
    source = added(sources / f"{CT}-fp8-tensor", tmp_path / "in", numbers("input_scale") | cached(), static)
    wrapped = {f"module.{name}": value for name, value in tensors(source).items()}
    save_file(wrapped, source / "model.safetensors")
    forget(source)
    report = qformats.export(source, tmp_path / "out", format=f"{CT}:fp8-tensor")
    assert not report.left_out
    assert steps(tmp_path / "out", "input_scale", "k_scale").keys() >= {f"{NAMES[0]}.input_scale"}


@pytest.mark.parametrize(
    ("family", "config", "found"),
    [
        (CT, {"config_groups": {"W8A8": ["Linear"]}, "format": "x"}, [Scheme("input", "int8")]),
        (CT, {"config_groups": {"W4A16": ["Linear"]}, "format": "x"}, []),
        (
            CT,
            {"config_groups": {"NVFP4": ["Linear"]}, "format": "x"},
            [Scheme("input", "nvfp4", dynamic=False)],
        ),
        (CT, {"config_groups": {"MXFP4XFP8": ["Linear"]}, "format": "x"}, [Scheme("input", "fp8")]),
        ("fp8", {"quant_method": "fp8", "activation_scheme": "dynamic"}, [Scheme("input", "fp8")]),
        (
            "fp8",
            {"quant_method": "fp8", "activation_scheme": "static"},
            [Scheme("input", "fp8", dynamic=False)],
        ),
        ("fp8", {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}, [Scheme("input", "fp8")]),
        ("modelopt", {"quant_algo": "FP8_PER_CHANNEL_PER_TOKEN"}, [Scheme("input", "fp8")]),
        ("modelopt", {"quant_algo": "FP8_PB_WO"}, []),
        ("modelopt", {"quant_algo": "W4A16_NVFP4"}, []),
        (
            "modelopt",
            {"quantization": {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8"}},
            [Scheme("input", "nvfp4", dynamic=False), Scheme("cache", "fp8", dynamic=False)],
        ),
        (
            "gptq",
            {"quant_method": "auto-round", "bits": 4, "group_size": 128, "sym": True, "act_bits": 8},
            [Scheme("input", "int8")],
        ),
        ("gptq", {"quant_method": "gptq", "bits": 4, "group_size": 128}, []),
        (
            "awq",
            {
                "quant_method": "auto-round",
                "packing_format": "auto_round:auto_awq",
                "bits": 4,
                "act_bits": 16,
            },
            [],
        ),
        ("quanto", {"quant_method": "quanto", "weights": "int8", "activations": None}, []),
        (
            "quanto",
            {"quant_method": "quanto", "weights": "int8", "activations": "int8"},
            [Scheme("input", "int8", dynamic=False)],
        ),
        (
            "quanto",
            {"model.layers.0.mlp.up_proj": {"weights": "qint4", "activations": "qfloat8_e4m3fn"}},
            [Scheme("input", "fp8", dynamic=False)],
        ),
        (
            "torchao",
            {
                "quant_method": "torchao",
                "quant_type": {"default": {"_type": "Int8DynamicActivationInt8WeightConfig"}},
            },
            [Scheme("input", "int8")],
        ),
        (
            "torchao",
            {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig"}}},
            [],
        ),
    ],
)
def test_what_each_family_declares(family, config, found):
    own = next(each for each in registry().families() if each.name == family)
    assert own.schemes(config) == tuple(found)


def test_weight_only_folders_say_nothing(sources, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = qformats.export(sources / f"{CT}-nvfp4", tmp_path / "m.gguf", format="gguf:nvfp4")
    assert not [note for note in report.notes if "quantizes" in note]
