"""Folders of Transformers with bitsandbytes: read here, and ours read there."""

import json
import logging
import shutil
import warnings

import numpy as np
import pytest
import torch
from models import tiny
from safetensors.torch import load_file, save_file

import qformats
from qformats.errors import CheckpointError, WeightsError
from qformats_bitsandbytes.quant_state import KEY

IDS = [1, 5, 9, 33, 7, 2, 60, 12]


@pytest.fixture(scope="module")
def quiet(bnb):
    """Transformers' own warnings about its loading are not ours to judge."""
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield bnb
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny.build("llama", tmp_path_factory.mktemp("models") / "llama")


def _load(folder, **options):
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, info = AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation="eager", output_loading_info=True, local_files_only=True, **options
        )
    assert not any(info.values()), info
    return model.eval()


def _logits(model):
    """Running a model may change its weights, on some processors: bytes must be read before."""
    with torch.inference_mode():
        return model(torch.tensor([IDS]), use_cache=False).logits[0].float()


def _theirs(source, folder, variant, skip=None, dtype=torch.float32):
    """Quantize with Transformers and save, before anything runs."""
    from transformers import BitsAndBytesConfig

    kind, *more = variant.split("-")
    storage = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
    config = (
        BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)
        if kind == "int8"
        else BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=kind,
            bnb_4bit_use_double_quant="dq" in more,
            bnb_4bit_quant_storage=next((storage[m] for m in more if m in storage), torch.uint8),
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=skip,
        )
    )
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(
            source,
            quantization_config=config,
            dtype=dtype,
            attn_implementation="eager",
            local_files_only=True,
        )
        model.save_pretrained(folder)
    return folder


def _stored(folder):
    return load_file(folder / "model.safetensors")


def _bytes(tensor):
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _assert_same_content(ours, theirs, exact=True):
    """The same fields with the same bytes; descriptions differ in the spaces at their ends."""
    assert ours.keys() == theirs.keys()
    for name, field in theirs.items():
        assert ours[name].dtype == field.dtype, name
        if KEY in name:
            assert json.loads(bytes(ours[name].numpy())) == json.loads(bytes(field.numpy()))
            assert bytes(ours[name].numpy()).rstrip() == bytes(field.numpy()), name
        elif exact:
            assert ours[name].shape == field.shape, name
            assert _bytes(ours[name]) == _bytes(field), name


@pytest.mark.parametrize("variant", ["nf4", "int8", "nf4-bf16", "nf4-f32"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_folder_as_theirs(variant, dtype, tmp_path, quiet):
    source = tiny.build("llama", tmp_path / "source", dtype)
    theirs = _theirs(source, tmp_path / "theirs", variant, dtype=getattr(torch, dtype))
    report = qformats.export(source, tmp_path / "ours", format=f"bitsandbytes:{variant}")
    assert report is not None
    _assert_same_content(_stored(tmp_path / "ours"), _stored(theirs))
    ours, other = (json.loads((f / "config.json").read_text()) for f in (tmp_path / "ours", theirs))
    assert ours["dtype"] == other["dtype"] == dtype
    written = ours["quantization_config"] | {"llm_int8_skip_modules": None}
    if variant == "int8":
        # It plays no part there.
        written["bnb_4bit_compute_dtype"] = other["quantization_config"]["bnb_4bit_compute_dtype"]
    assert written == other["quantization_config"]
    assert list(written) == list(other["quantization_config"])
    options = {"dtype": getattr(torch, dtype)}
    assert torch.equal(_logits(_load(tmp_path / "ours", **options)), _logits(_load(theirs, **options)))


@pytest.mark.parametrize("variant", ["fp4", "nf4-dq", "fp4-dq", "nf4-bs128", "nf4-dq-bs32-bf16", "fp4-f16"])
def test_folders_that_transformers_loads(variant, llama, tmp_path, quiet):
    """Each weight there is what it is here."""
    qformats.export(llama, tmp_path / "ours", format=f"bitsandbytes:{variant}")
    model = _load(tmp_path / "ours", dtype=torch.float32)
    opened = qformats.open(tmp_path / "ours")
    packed = [name for name, t in opened.tensors.items() if t.format.startswith("bitsandbytes:")]
    assert len(packed) == 14
    for name in packed:
        assert opened.tensors[name].format == f"bitsandbytes:{variant}"
        weight = model.get_parameter(name)
        assert torch.equal(quiet.decode(weight.data, weight.quant_state), opened.read(name)), name
    if "bs128" not in variant:
        # Its code for AVX-512 cannot run rows that are not a whole number of blocks.
        assert bool(_logits(model).isfinite().all())


@pytest.mark.parametrize("variant", ["nf4", "fp4", "int8", "nf4-dq", "fp4-dq-bf16", "nf4-f16"])
def test_reading_theirs(variant, llama, tmp_path, quiet):
    theirs = _theirs(llama, tmp_path / "theirs", variant)
    opened = qformats.open(theirs)
    model = _load(theirs, dtype=torch.float32)
    source = qformats.open(llama)
    assert opened.tensors.keys() == source.tensors.keys()
    for name, tensor in opened.tensors.items():
        values = opened.read(name)
        if "_proj" not in name:
            assert tensor.format == "dense:f32"
            assert torch.equal(values, source.read(name))
            continue
        assert tensor.format == f"bitsandbytes:{variant}"
        weight = model.get_parameter(name)
        if variant == "int8":
            expected = weight.data.float() * (model.get_submodule(name[:-7]).weight.SCB / 127)[:, None]
        else:
            expected = quiet.decode(weight.data, weight.quant_state)
        assert torch.equal(values, expected), name


@pytest.mark.parametrize("variant", ["nf4", "fp4-dq", "int8", "nf4-bf16"])
def test_copying_theirs(variant, llama, tmp_path, quiet):
    """Same format, same bytes; and the same logits there."""
    theirs = _theirs(llama, tmp_path / "theirs", variant)
    qformats.export(theirs, tmp_path / "ours", format=f"bitsandbytes:{variant}", require_exact=True)
    _assert_same_content(_stored(tmp_path / "ours"), _stored(theirs))
    assert torch.equal(_logits(_load(tmp_path / "ours")), _logits(_load(theirs)))


@pytest.mark.parametrize(
    ("before", "after"), [("nf4-dq", "nf4"), ("nf4", "nf4-bs32"), ("fp4-dq", "fp4-bf16")]
)
def test_exact_transcoding(before, after, llama, tmp_path, quiet):
    theirs = _theirs(llama, tmp_path / "theirs", before)
    qformats.export(theirs, tmp_path / "ours", format=f"bitsandbytes:{after}", require_exact=True)
    one, other = qformats.open(theirs), qformats.open(tmp_path / "ours")
    for name in one.tensors:
        assert torch.equal(one.read(name), other.read(name)), name
    model = _load(tmp_path / "ours", dtype=torch.float32)
    name = "model.layers.1.mlp.down_proj.weight"
    weight = model.get_parameter(name)
    assert torch.equal(quiet.decode(weight.data, weight.quant_state), one.read(name))


def test_modules_left_plain(llama, tmp_path, quiet):
    """What a rule keeps plain is in the list of skipped modules, and lm_head too; theirs reads it so."""
    rules = {"o_proj": "dense:f32", "layers.0.mlp.up_proj": "dense:f32"}
    qformats.export(llama, tmp_path / "ours", format="bitsandbytes:nf4", tensor_types=rules)
    config = json.loads((tmp_path / "ours" / "config.json").read_text())["quantization_config"]
    plain = [
        "model.layers.0.self_attn.o_proj",
        "model.layers.0.mlp.up_proj",
        "model.layers.1.self_attn.o_proj",
        "lm_head",
    ]
    assert sorted(config["llm_int8_skip_modules"]) == sorted(plain)
    theirs = _theirs(llama, tmp_path / "theirs", "nf4", skip=plain)
    assert torch.equal(_logits(_load(tmp_path / "ours")), _logits(_load(theirs)))
    opened = qformats.open(theirs)
    assert {name for name in plain if opened.tensors[f"{name}.weight"].format == "dense:f32"} == {*plain}


def test_a_quantized_head(llama, tmp_path, quiet):
    """A list without lm_head makes Transformers quantize it; such folders are read too."""
    theirs = _theirs(llama, tmp_path / "theirs", "nf4", skip=["q_proj"])
    opened = qformats.open(theirs)
    assert opened.tensors["lm_head.weight"].format == "bitsandbytes:nf4"
    assert opened.tensors["model.layers.0.self_attn.q_proj.weight"].format == "dense:f32"


@pytest.mark.parametrize("variant", ["nf4", "int8"])
@pytest.mark.parametrize("name", ["gpt2", "llama-tied", "llama-bias", "qwen2"])
def test_other_models(name, variant, tmp_path, quiet):
    """Conv1D is transposed, tied embeddings stay plain, biases stay beside their modules."""
    source = tiny.build(name, tmp_path / "source")
    theirs = _theirs(source, tmp_path / "theirs", variant)
    qformats.export(source, tmp_path / "ours", format=f"bitsandbytes:{variant}")
    ours, others = _stored(tmp_path / "ours"), _stored(theirs)
    assert {n for n in ours if n.endswith("weight")} == {n for n in others if n.endswith("weight")}
    _assert_same_content(ours, others)
    assert torch.equal(_logits(_load(tmp_path / "ours")), _logits(_load(theirs)))
    back = qformats.open(theirs)
    for tensor, original in qformats.open(source).tensors.items():
        stored = back.tensors[tensor]
        assert stored.shape == original.shape, tensor
        if stored.format.startswith("bitsandbytes:"):
            error = (back.read(tensor) - qformats.open(source).read(tensor)).abs().mean()
            assert error < 0.02, tensor


@pytest.mark.parametrize("variant", ["nf4-dq", "int8", "fp4"])
def test_back_to_plain_numbers(variant, llama, tmp_path, quiet):
    theirs = _theirs(llama, tmp_path / "theirs", variant)
    qformats.export(theirs, tmp_path / "plain", format="dense:f32")
    opened = qformats.open(theirs)
    stored = _stored(tmp_path / "plain")
    assert "quantization_config" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    for name in opened.tensors:
        assert torch.equal(stored[name], opened.read(name)), name
    _load(tmp_path / "plain")


HOSTILE = {
    "no quant_state": ("nf4", lambda s, m: s.pop(f"{m}.{KEY}nf4"), "quant_state"),
    "short absmax": (
        "nf4",
        lambda s, m: s.update({f"{m}.weight.absmax": s[f"{m}.weight.absmax"][:-1].clone()}),
        "absmax",
    ),
    "NaN absmax": ("nf4", lambda s, m: s[f"{m}.weight.absmax"].fill_(float("nan")), "NaN"),
    "other table": ("nf4", lambda s, m: s[f"{m}.weight.quant_map"].mul_(2), "quant_map"),
    "SCB of columns": ("int8", lambda s, m: s.update({f"{m}.SCB": torch.ones(64)}), "SCB"),
    "other layout": ("int8", lambda s, m: s[f"{m}.weight_format"].fill_(1), "weight_format"),
    "no SCB": ("int8", lambda s, m: s.pop(f"{m}.SCB"), "SCB"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_folders(case, llama, tmp_path):
    """The error names the file and the tensor."""
    variant, damage, message = HOSTILE[case]
    qformats.export(llama, tmp_path / "model", format=f"bitsandbytes:{variant}")
    file, module = tmp_path / "model" / "model.safetensors", "model.layers.1.mlp.gate_proj"
    stored = {name: tensor.clone() for name, tensor in load_file(file).items()}
    damage(stored, module)
    save_file(stored, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match=message) as caught:
        qformats.open(tmp_path / "model").read(f"{module}.weight")
    assert "model.safetensors" in str(caught.value)
    assert module in str(caught.value)


def test_weights_that_cannot_be_written_are_named(llama, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(llama, copy)
    stored = {name: tensor.clone() for name, tensor in load_file(copy / "model.safetensors").items()}
    name = "model.layers.0.mlp.up_proj.weight"
    stored[name][3, 5] = 7e4
    save_file(stored, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsError, match=rf"{name}.*float16"):
        qformats.export(copy, tmp_path / "out", format="bitsandbytes:int8")
    assert not (tmp_path / "out").exists()
    qformats.export(copy, tmp_path / "out", format="bitsandbytes:nf4")
    stored[name][3, 5] = np.nan
    save_file(stored, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsError, match=rf"{name}.*1 of \d+ values are not finite"):
        qformats.export(copy, tmp_path / "again", format="bitsandbytes:nf4-dq")


def test_sizes_do_not_depend_on_weights(llama, tmp_path):
    from qformats.errors import ConfigError

    sizes = set()
    for factor in (1.0, 1.7e-9, 3.3e7):
        copy = tmp_path / f"in{factor}"
        shutil.copytree(llama, copy)
        stored = {
            n: t * factor if "_proj" in n else t for n, t in load_file(copy / "model.safetensors").items()
        }
        save_file(
            {n: t.contiguous() for n, t in stored.items()}, copy / "model.safetensors", {"format": "pt"}
        )
        qformats.export(copy, tmp_path / f"out{factor}", format="bitsandbytes:nf4-dq")
        sizes.add((tmp_path / f"out{factor}" / "model.safetensors").stat().st_size)
    assert len(sizes) == 1
    with pytest.raises(ConfigError, match="bitsandbytes"):
        qformats.export(
            llama, tmp_path / "x", format="bitsandbytes:nf4", tensor_types={"q_proj": "gguf:q4_0"}
        )
