"""Folders: written, opened again, converted, and as other programs lay them out."""

import json
import re
import shutil
import warnings

import numpy as np
import pytest
import torch
from models import tiny
from models.records import forget
from oracles import hf
from safetensors.torch import load_file, save_file

import qformats
from qformats.errors import CheckpointError, ConfigError
from qformats.exporting.footprint import footprint
from qformats.exporting.recipe import Recipe
from qformats.folder import FolderCheckpoint
from qformats.folder.outline import outline
from qformats_gptq.family import GPTQFamily
from qformats_gptq.zeros import pack_zeros, unpack_zeros

IDS = [1, 5, 9, 33, 7, 2, 60, 12]
DOWN = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny.build("llama", tmp_path_factory.mktemp("models") / "llama", "float16")


def change(folder, tensors=None, **config):
    """Rewrite parts of a folder; ``None`` removes a key of its quantization_config."""
    path = folder / "config.json"
    content = json.loads(path.read_text())
    declared = content["quantization_config"] | config
    content["quantization_config"] = {key: value for key, value in declared.items() if value is not None}
    path.write_text(json.dumps(content))
    if tensors:
        save_file(tensors(load_file(folder / "model.safetensors")), folder / "model.safetensors")
    return forget(folder)


def values(folder):
    model = qformats.open(folder)
    return {name: model.read(name) for name in model.tensors}


@pytest.mark.parametrize(
    "variant", ["4bit-128g", "4bit-32g-asym", "3bit-64g", "2bit--1g-asym", "8bit-1024g-actorder"]
)
def test_written_and_opened_again(variant, llama, tmp_path):
    report = qformats.export(llama, tmp_path / "out", format=f"gptq:{variant}", quantizer="rtn")
    assert report is not None
    stored = load_file(tmp_path / "out" / "model.safetensors")
    source = load_file(llama / "model.safetensors")
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    packer = qformats.packer(f"gptq:{variant}")
    assert GPTQFamily().detect(config).name == packer.name
    assert config["quant_method"] == config["method"] == "gptq"
    assert config["checkpoint_format"] == config["format"] == packer.version
    assert config["bits"] == packer.bits
    assert config["desc_act"] is packer.actorder
    assert config["sym"] is packer.symmetric
    assert config["lm_head"] is False
    assert "dynamic" not in config
    assert re.fullmatch(r"qformats:\d.*", config["meta"]["quantizer"][0])
    linear = [name for name in source if "_proj" in name]
    assert len(linear) == 14
    for name in source:
        module = name.removesuffix(".weight")
        if name in linear:
            assert {f"{module}.{f}" for f in packer.stored((32, 32))} <= stored.keys()
            packed = packer.encode_reference(source[name])
            assert all(torch.equal(stored[f"{module}.{f}"], v) for f, v in packed.fields.items())
        else:
            assert torch.equal(stored[name], source[name])
    again = qformats.open(tmp_path / "out")
    # Order is what the columns say: none was changed.
    plain = variant.replace("-actorder", "")
    assert {t.format for n, t in again.tensors.items() if n in linear} == {f"gptq:{plain}"}
    for name in linear:
        wanted = packer.dequantize(packer.encode_reference(source[name]))
        assert torch.equal(again.read(name), wanted)
    copied = qformats.export(tmp_path / "out", tmp_path / "copy", format=f"gptq:{variant}", quantizer="rtn")
    assert copied is not None
    assert (tmp_path / "copy" / "config.json").read_bytes() == (tmp_path / "out" / "config.json").read_bytes()
    copies = load_file(tmp_path / "copy" / "model.safetensors")
    assert copies.keys() == stored.keys()
    assert all(torch.equal(copies[name], value) for name, value in stored.items())


def test_modules_that_stay_plain_are_listed(llama, tmp_path):
    qformats.export(
        llama, tmp_path / "out", format="gptq:4bit-32g", quantizer="rtn", tensor_types={DOWN: "dense:f16"}
    )
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    (pattern,) = config["dynamic"]
    assert pattern.startswith("-:")
    assert re.match(pattern[2:], DOWN)
    assert not re.match(pattern[2:], DOWN.replace("1", "0"))
    assert qformats.open(tmp_path / "out").tensors[f"{DOWN}.weight"].format == "dense:f16"
    assert config["lm_head"] is False
    assert (
        GPTQFamily().to_config(qformats.packer("gptq"), packed_modules=["model.x", "lm_head"])["lm_head"]
        is True
    )


def test_the_second_file_says_the_same(llama, tmp_path):
    qformats.export(llama, tmp_path / "out", format="gptq:4bit-32g", quantizer="rtn")
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    extra = GPTQFamily().extra_files(qformats.packer("gptq:4bit-32g"), config)
    assert list(extra) == ["quantize_config.json"]
    assert json.loads(extra["quantize_config.json"]) == config


@pytest.mark.parametrize("variant", ["4bit-128g", "3bit-32g-asym"])
@pytest.mark.parametrize("shards", [0, 2])
def test_from_bin_files(variant, shards, llama, tmp_path):
    """Read without running any code; the same tensors in the same format."""
    qformats.export(llama, tmp_path / "out", format=f"gptq:{variant}", quantizer="rtn")
    expected = values(tmp_path / "out")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    (tmp_path / "out" / "model.safetensors").unlink()
    if shards:
        files = {f"pytorch_model-{i}.bin": dict(list(stored.items())[i::shards]) for i in range(shards)}
        table = {name: file for file, part in files.items() for name in part}
        (tmp_path / "out" / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": table}))
    else:
        files = {"pytorch_model.bin": stored}
    for file, part in files.items():
        torch.save(part, tmp_path / "out" / file)
    found = values(tmp_path / "out")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize(
    ("variant", "target"),
    [("4bit-128g", "q4_0"), ("4bit--1g-asym", "q5_0"), ("3bit-32g-asym", "q4_0"), ("8bit-64g", "q8_0")],
)
def test_to_gguf_and_back_without_any_change(variant, target, llama, tmp_path):
    qformats.export(llama, tmp_path / "out", format=f"gptq:{variant}", quantizer="rtn")
    report = qformats.export(
        tmp_path / "out", tmp_path / "m.gguf", format=f"gguf:{target}", require_exact=True
    )
    assert report is not None
    before, after = values(tmp_path / "out"), values(tmp_path / "m.gguf")
    assert all(torch.equal(after[name] + 0.0, value + 0.0) for name, value in before.items() if name in after)
    qformats.export(tmp_path / "m.gguf", tmp_path / "back", format="gptq:8bit-32g", require_exact=True)
    back = values(tmp_path / "back")
    assert all(
        torch.equal(back[name] + 0.0, value + 0.0) for name, value in before.items() if "_proj" in name
    )


def test_logits_are_those_of_the_plain_model_with_its_values(llama, tmp_path):
    qformats.export(llama, tmp_path / "out", format="gptq:4bit-64g-asym", quantizer="rtn")
    qformats.export(tmp_path / "out", tmp_path / "plain", format="dense:f32")
    qformats.export(tmp_path / "out", tmp_path / "m.gguf", format="gguf:q5_0", require_exact=True)
    qformats.export(tmp_path / "m.gguf", tmp_path / "other", format="dense:f32")
    first, second = hf.logits(tmp_path / "plain", IDS), hf.logits(tmp_path / "other", IDS)
    assert np.array_equal(first, second)


def test_a_folder_of_auto_gptq_without_an_order(llama, tmp_path):
    """No g_idx, few keys, zero points of version 1."""
    qformats.export(llama, tmp_path / "out", format="gptq:4bit-64g-asym", quantizer="rtn")
    expected = values(tmp_path / "out")

    def older(tensors):
        kept = {}
        for name, tensor in tensors.items():
            if name.endswith(".qzeros"):
                # A zero point of 0 becomes what AutoGPTQ's other half reads as 0.
                tensor = pack_zeros((unpack_zeros(tensor, 4, "gptq_v2") - 1) & 15, 4, "gptq_v2")
            if not name.endswith(".g_idx"):
                kept[name] = tensor
        return kept

    keys = dict.fromkeys(("method", "checkpoint_format", "format", "pack_dtype", "meta", "lm_head"))
    change(tmp_path / "out", older, **keys)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "GPTQ zero points are stored as")
        found = values(tmp_path / "out")
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_folder_that_declares_nothing(llama, tmp_path):
    """The user names the format."""
    qformats.export(llama, tmp_path / "out", format="gptq:3bit-32g", quantizer="rtn")
    expected = values(tmp_path / "out")
    path = tmp_path / "out" / "config.json"
    config = json.loads(path.read_text())
    del config["quantization_config"]
    path.write_text(json.dumps(config))
    model = FolderCheckpoint(tmp_path / "out", (GPTQFamily(), qformats.packer("gptq:3bit-32g")))
    assert all(torch.equal(model.read(name), value) for name, value in expected.items())


def test_a_mislabelled_folder_is_read_rightly_and_written_rightly(llama, tmp_path):
    qformats.export(llama, tmp_path / "out", format="gptq:4bit-32g", quantizer="rtn")
    expected = values(tmp_path / "out")

    def second(tensors):
        return {
            name: torch.full_like(tensor, -0x77777778) if name.endswith(".qzeros") else tensor
            for name, tensor in tensors.items()
        }

    change(tmp_path / "out", second)
    with pytest.warns(UserWarning, match="is declared: they are read as"):
        model = qformats.open(tmp_path / "out")
    assert all(torch.equal(model.read(name), value) for name, value in expected.items())
    with pytest.warns(UserWarning, match="is declared: they are read as"):
        qformats.export(tmp_path / "out", tmp_path / "copy", format="gptq:4bit-32g", quantizer="rtn")
    words = load_file(tmp_path / "copy" / "model.safetensors")[f"{DOWN}.qzeros"]
    assert bool((words == 0x77777777).all())


def test_who_knows_better_than_the_label_says_so(llama, tmp_path):
    """A wrong version, or no declaration at all; zero points of 0 in version 1."""
    out = tmp_path / "out"
    qformats.export(llama, out, format="gptq:8bit-32g-asym", quantizer="rtn")
    expected = values(out)
    change(out, checkpoint_format="gptq", format="gptq")
    first = values(out)
    assert not any(torch.equal(first[name], value) for name, value in expected.items() if "_proj" in name)
    told = {"quantization-config": '{"checkpoint_format": "gptq_v2"}'}
    model = qformats.open(out, options=told)
    assert all(torch.equal(model.read(name), value) for name, value in expected.items())
    qformats.export(out, tmp_path / "copy", format="gptq:8bit-32g-asym", quantizer="rtn", options=told)
    assert all(torch.equal(value, expected[name]) for name, value in values(tmp_path / "copy").items())

    config = json.loads((out / "config.json").read_text())
    declared = {**config.pop("quantization_config"), "checkpoint_format": "gptq_v2"}
    (out / "config.json").write_text(json.dumps(config))
    (out / "quantize_config.json").unlink()
    model = qformats.open(out, options={"quantization-config": json.dumps(declared)})
    assert all(torch.equal(model.read(name), value) for name, value in expected.items())

    told["quantization-config"] = json.dumps({**declared, "checkpoint_format": "gptq", "zeros": "nomsk"})
    with pytest.raises(CheckpointError, match="zeros: found 'nomsk'; expected mask, word, nomask"):
        qformats.open(out, options=told)
    told["quantization-config"] = json.dumps({**declared, "checkpoint_format": "gptq", "zeros": "nomask"})
    file = out / "model.safetensors"
    save_file({n: t.fill_(-1) if n.endswith(".qzeros") else t for n, t in load_file(file).items()}, file)
    with pytest.raises(CheckpointError, match="which stands for 256 unless masked"):
        qformats.open(out, options=told).read(f"{DOWN}.weight")
    for text in ("word", "[1]", '{"bits":'):
        with pytest.raises(
            ConfigError, match=r"quantization-config: found .*; expected a JSON object such as"
        ):
            qformats.open(out, options={"quantization-config": text})


def test_modules_of_different_formats(llama, tmp_path):
    """GPTQModel's `dynamic` gives modules their own width and groups."""
    qformats.export(llama, tmp_path / "a", format="gptq:4bit-32g", quantizer="rtn")
    qformats.export(llama, tmp_path / "b", format="gptq:8bit-64g-asym", quantizer="rtn")
    other = load_file(tmp_path / "b" / "model.safetensors")
    first = {n: t for n, t in load_file(tmp_path / "a" / "model.safetensors").items() if DOWN not in n}
    first |= {name: tensor for name, tensor in other.items() if DOWN in name}
    shutil.copytree(tmp_path / "a", tmp_path / "mixed")
    change(tmp_path / "mixed", lambda _: first, checkpoint_format="gptq_v2", format="gptq_v2", sym=None)
    with pytest.warns(UserWarning, match="is declared: they are read as"):
        model = qformats.open(tmp_path / "mixed")
    assert model.tensors[f"{DOWN}.weight"].format == "gptq:8bit-64g-asym"
    assert model.tensors[f"{DOWN.replace('down', 'up')}.weight"].format == "gptq:4bit-32g"
    assert torch.equal(model.read(f"{DOWN}.weight"), qformats.open(tmp_path / "b").read(f"{DOWN}.weight"))


def test_several_formats_are_written_and_read_again(llama, tmp_path):
    """In the words of GPTQModel, patterns that match one module each; the copy says the same."""
    up = DOWN.replace("down", "up")
    types = {"down_proj": "8bit-64g", "layers.1.mlp.up_proj": "3bit-32g", "v_proj": "dense:f16"}
    target = tmp_path / "out"
    qformats.export(llama, target, format="gptq:4bit-32g", quantizer="rtn", tensor_types=types)
    config = json.loads((target / "config.json").read_text())["quantization_config"]
    for name, bits, group in ((DOWN, 8, 64), (up, 3, 32)):
        (own,) = [
            value for key, value in config["dynamic"].items() if key[:2] == "+:" and re.match(key[2:], name)
        ]
        assert own == {"bits": bits, "group_size": group, "sym": True, "desc_act": False}
    assert sum(key.startswith("-:") for key in config["dynamic"]) == 2
    assert (config["bits"], config["group_size"]) == (4, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = qformats.open(target)
    assert model.tensors[f"{DOWN}.weight"].format == "gptq:8bit-64g"
    assert model.tensors[f"{up}.weight"].format == "gptq:3bit-32g"
    assert model.tensors[f"{up.replace('1', '0')}.weight"].format == "gptq:4bit-32g"
    plain = load_file(llama / "model.safetensors")[f"{up}.weight"]
    expected = qformats.packer("gptq:3bit-32g").encode_reference(plain).dequantize()
    assert torch.equal(model.read(f"{up}.weight"), expected)
    # Without g_idx, which tells how wide a code is, the entries do.
    stored = {n: t for n, t in load_file(target / "model.safetensors").items() if not n.endswith("g_idx")}
    save_file(stored, target / "model.safetensors")
    bare = qformats.open(target).tensors
    assert {name: tensor.format for name, tensor in bare.items()} == {
        n: t.format for n, t in model.tensors.items()
    }
    with pytest.raises(ConfigError, match="zero points of one kind"):
        qformats.export(
            llama,
            tmp_path / "no",
            format="gptq:4bit-32g",
            quantizer="rtn",
            tensor_types={"down_proj": "8bit-64g-asym"},
        )
    with pytest.raises(ConfigError, match="one width and group for all modules"):
        qformats.export(
            llama,
            tmp_path / "no",
            format="gptq:4bit-32g",
            quantizer="rtn",
            tensor_types={"down_proj": "8bit-64g"},
            program="transformers",
        )
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("field", "damage", "message"),
    [
        ("scales", lambda t: t * torch.inf, "NaN or infinite"),
        ("qweight", lambda t: t[:8], "of the 192 columns in g_idx"),
        ("qzeros", lambda t: t.long(), "a matrix of i32"),
        ("g_idx", lambda t: t + 100, "expected 0 to 2, one for each row of scales"),
        ("scales", None, "expected qweight, qzeros and scales"),
    ],
)
def test_a_damaged_folder_names_file_and_tensor(field, damage, message, llama, tmp_path):
    qformats.export(llama, tmp_path / "out", format="gptq:4bit-64g", quantizer="rtn")

    def damaged(tensors):
        name = f"{DOWN}.{field}"
        tensor = tensors.pop(name)
        return tensors | ({name: damage(tensor).contiguous()} if damage else {})

    change(tmp_path / "out", damaged)
    with pytest.raises(CheckpointError, match=message) as caught:
        qformats.open(tmp_path / "out").read(f"{DOWN}.weight")
    assert "model.safetensors" in str(caught.value)
    assert f"{DOWN}.weight" in str(caught.value)


@pytest.mark.parametrize(
    "config", [{"bits": 7}, {"pack_dtype": "int8"}, {"format": "marlin", "checkpoint_format": None}]
)
def test_a_layout_that_is_not_supported(config, llama, tmp_path):
    qformats.export(llama, tmp_path / "out", format="gptq:4bit-64g", quantizer="rtn")
    with pytest.raises(CheckpointError, match=r"config\.json: quantization_config"):
        qformats.open(change(tmp_path / "out", **config))


LLAMA_2_13B = {
    "model_type": "llama",
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "num_key_value_heads": 40,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
}


@pytest.fixture(scope="module")
def llama_13b(tmp_path_factory):
    path = tmp_path_factory.mktemp("13b") / "config.json"
    return outline(LLAMA_2_13B, path)


@pytest.mark.parametrize(
    ("variant", "nbytes"),
    [
        ("4bit-128g", 7_255_009_280),
        ("4bit-128g-actorder-asym", 7_255_009_280),
        ("4bit-32g", 7_998_433_280),
        ("4bit-64g", 7_502_817_280),
        ("4bit-1024g", 7_038_433_280),
        ("4bit--1g", 7_012_526_080),
        ("2bit-128g", 4_058_286_080),
        ("3bit-128g", 5_656_647_680),
        ("8bit-128g", 13_648_455_680),
    ],
)
def test_sizes_of_a_published_model(variant, nbytes, llama_13b):
    """As its files are, without the biases of zeros that AutoGPTQ adds."""
    assert footprint(llama_13b, Recipe(f"gptq:{variant}"), {}).nbytes == nbytes
