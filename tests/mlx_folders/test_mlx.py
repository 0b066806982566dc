"""MLX: the program's own bytes and values, folders as mlx-lm has them, and what is exact with them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from models import tiny
from models.tensors import same, values
from safetensors.torch import load_file, save_file

import qformats
from qformats.errors import CheckpointError, ConfigError, InexactExportError

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "mlx" / "layers.safetensors")
MODES = ("mxfp4", "nvfp4", "mxfp8")
FLOATS = [f"{mode}-{dtype}" for mode in MODES for dtype in ("float32", "bfloat16")]
CASES = sorted({name.rpartition(".")[0] for name in GOLDEN} - {"", *FLOATS})
DTYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
UP, DOWN = "model.layers.0.mlp.up_proj", "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny.build("llama", tmp_path_factory.mktemp("models") / "llama", "float16")


@pytest.fixture(scope="module")
def folder(llama, tmp_path_factory):
    """Two widths in one folder, and a plain module; the embedding and the head quantized, as mlx-lm does."""
    out = tmp_path_factory.mktemp("folders") / "mixed"
    types = {"down_proj": "8bit-32g", "o_proj": "dense:f16", "embed_tokens|lm_head": "4bit-64g"}
    qformats.export(llama, out, format="mlx:4bit-64g", tensor_types=types)
    return out


def declared(folder):
    return json.loads((folder / "config.json").read_text())


def rewritten(folder, target, tensors=lambda stored: stored, **changes):
    target.mkdir()
    config = declared(folder)
    for key, value in changes.items():
        config.pop(key) if value is None else config.update({key: value})
    (target / "config.json").write_text(json.dumps(config))
    save_file(tensors(load_file(folder / "model.safetensors")), target / "model.safetensors")
    return target


@pytest.mark.parametrize("case", CASES)
def test_the_same_bytes_as_mlx(case):
    bits, group, dtype = re.fullmatch(r"(\d)bit-(\d+)g-(\w+)", case).groups()
    packer = qformats.packer(f"mlx:{bits}bit-{group}g-{DTYPES[dtype]}")
    packed = packer.encode_reference(GOLDEN["original"].to(getattr(torch, dtype)))
    for name in ("scales", "biases"):
        assert torch.equal(packed.fields[name], GOLDEN[f"{case}.{name}"])
    assert torch.equal(packed.fields["weight"].view(torch.int32), GOLDEN[f"{case}.weight"].view(torch.int32))
    if f"{case}.values" in GOLDEN:
        assert torch.equal(packed.dequantize(), GOLDEN[f"{case}.values"])


@pytest.mark.parametrize("case", FLOATS)
def test_the_same_floats_as_mlx(case):
    """Scales and codes of its own rule, and the values that it decodes; -0 is stored as 0."""
    mode, dtype = case.split("-")
    packer = qformats.packer(f"mlx:{mode}")
    packed = packer.encode_reference(GOLDEN["original"].to(getattr(torch, dtype)))
    assert torch.equal(packed.fields["scales"], GOLDEN[f"{case}.scales"])
    words = GOLDEN[f"{case}.weight"].view(torch.uint8)
    if mode == "mxfp8":
        words = torch.where(words == 128, 0, words)
    assert torch.equal(packed.fields["weight"].view(torch.uint8), words)
    fields = {name: GOLDEN[f"{case}.{name}"] for name in ("weight", "scales")}
    read = packer.from_stored(fields, tuple(GOLDEN["original"].shape))
    assert torch.equal(read.dequantize(), GOLDEN[f"{case}.values"])
    assert torch.equal(packed.dequantize(), GOLDEN[f"{case}.values"])


@pytest.mark.parametrize("mode", MODES)
def test_every_byte_of_a_float(mode):
    """All codes with all scales that are finite numbers, there and back; those of NaN are refused."""
    packer = qformats.packer(f"mlx:{mode}")
    last = 126 if mode == "nvfp4" else 254
    count = 32 if mode == "mxfp8" else packer.group_size // 2
    held = torch.arange(256, dtype=torch.uint8)
    held = held[(held & 127) != 127] if mode == "mxfp8" else held
    held = torch.cat([held, held[: -len(held) % count]]).view(-1, count)
    scales = torch.arange(last + 1, dtype=torch.uint8).repeat_interleave(len(held))[:, None]
    words = held.repeat(last + 1, 1).contiguous().view(torch.uint32)
    shape = (len(words), packer.group_size)
    read = packer.from_stored({"weight": words, "scales": scales}, shape)
    quantized = packer.unpack(read)
    scale = torch.exp2(scales.double() - 127) if last > 126 else scales.view(torch.float8_e4m3fn).double()
    elements = words.view(torch.uint8)
    if mode == "mxfp8":
        expected = elements.view(torch.float8_e4m3fn).double() * scale
    else:
        levels = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=torch.float64)
        codes = torch.stack([elements & 15, elements >> 4], -1).flatten(1).long()
        expected = torch.cat([levels, -levels])[codes] * scale
    assert torch.equal(quantized.dequantize(), expected.float())
    again = packer.pack(quantized)
    assert torch.equal(again.fields["scales"], scales)
    assert torch.equal(again.dequantize(), expected.float())
    for bad in range(last + 1, 256):
        with pytest.raises(ConfigError, match="1 codes of NaN"):
            packer.from_stored(
                {"weight": words[:1], "scales": torch.tensor([[bad]], dtype=torch.uint8)}, (1, shape[1])
            )


@pytest.mark.parametrize(
    ("mode", "others"),
    [
        ("mxfp4", ("gguf:mxfp4", "compressed-tensors:mxfp4")),
        ("nvfp4", ("gguf:nvfp4", "modelopt:nvfp4", "compressed-tensors:nvfp4")),
        ("mxfp8", ("fp8:block-1x32-ue8m0",)),
    ],
)
def test_folders_in_floats_and_what_is_exact_with_them(mode, others, llama, tmp_path):
    """One module in another width; into other formats of the same floats, and back, the same bytes."""
    first = tmp_path / "first"
    types = {"down_proj": "8bit-32g", "o_proj": "dense:f16"}
    qformats.export(llama, first, format=f"mlx:{mode}", tensor_types=types)
    config = declared(first)["quantization"]
    assert config["mode"] == mode
    assert config[DOWN] == {"group_size": 32, "bits": 8, "mode": "affine"}
    model = qformats.open(first)
    formats = {name: tensor.format for name, tensor in model.tensors.items()}
    assert (formats[f"{UP}.weight"], formats[f"{DOWN}.weight"]) == (f"mlx:{mode}", "mlx:8bit-32g")
    for other in others:
        between = tmp_path / (other.replace(":", "-") + (".gguf" if other.startswith("gguf") else ""))
        qformats.export(llama, tmp_path / "all", format=f"mlx:{mode}", force=True)
        qformats.export(tmp_path / "all", between, format=other, require_exact=True)
        before, after = values(tmp_path / "all"), values(between)
        linear = [name for name in before if "_proj" in name]
        assert len(linear) == 14
        assert all(torch.equal(before[name], after[name]) for name in linear)
        qformats.export(between, tmp_path / "back", format=f"mlx:{mode}", require_exact=True, force=True)
        own, back = (load_file(tmp_path / name / "model.safetensors") for name in ("all", "back"))
        for name in (f"{UP}.weight", f"{UP}.scales", f"{DOWN}.weight", f"{DOWN}.scales"):
            assert torch.equal(own[name].view(torch.uint8), back[name].view(torch.uint8))
    packed, plain = tmp_path / "all", tmp_path / "plain"
    qformats.export(packed, plain, format="dense:f32")
    ids = torch.tensor([[1, 5, 9, 33, 7, 2, 60, 12]])
    with torch.inference_mode():
        a, b = (qformats.load_model(path, dtype="f32")(ids).logits for path in (packed, plain))
    assert torch.allclose(a, b, rtol=1e-5, atol=1e-5)


def test_modules_declare_by_themselves(llama, tmp_path):
    """As in MLX, an entry of a module takes nothing over from the folder's: no mode is affine."""
    out = tmp_path / "floats"
    qformats.export(llama, out, format="mlx:nvfp4", tensor_types={"down_proj": "4bit-64g"})
    config = declared(out)["quantization"]
    for entry in ({"group_size": 64, "bits": 4}, {"bits": 4}, {"group_size": 64}):
        changed = config | {f"model.layers.{layer}.mlp.down_proj": entry for layer in (0, 1)}
        name = "-".join(entry)
        again = rewritten(out, tmp_path / name, quantization=changed, quantization_config=None)
        assert same(out, again)


def test_what_is_declared_and_read_again(folder):
    config = declared(folder)
    own = {"group_size": 32, "bits": 8, "mode": "affine"}
    modules = {f"model.layers.{layer}.mlp.down_proj": own for layer in (0, 1)}
    assert config["quantization"] == {"group_size": 64, "bits": 4, "mode": "affine"} | modules
    assert config["quantization_config"] == config["quantization"]
    model = qformats.open(folder)
    formats = {name: tensor.format for name, tensor in model.tensors.items()}
    assert (formats[f"{UP}.weight"], formats[f"{DOWN}.weight"]) == ("mlx:4bit-64g", "mlx:8bit-32g")
    assert formats["model.layers.0.self_attn.o_proj.weight"] == "dense:f16"
    assert {formats["model.embed_tokens.weight"], formats["lm_head.weight"]} == {"mlx:4bit-64g"}


def test_as_older_programs_and_mlx_lm_declare_it(folder, tmp_path):
    """One key, no mode; modules that are said to be plain, or quantized as usual."""
    config = declared(folder)["quantization"]
    del config["mode"]
    config |= {"model.layers.0.self_attn.o_proj": False, UP: True}
    older = rewritten(folder, tmp_path / "older", quantization=config, quantization_config=None)
    assert same(folder, older)


def test_another_format_leaves_no_trace_of_it(folder, tmp_path):
    qformats.export(folder, tmp_path / "plain", format="dense:f32")
    assert not {"quantization", "quantization_config"} & declared(tmp_path / "plain").keys()
    assert same(folder, tmp_path / "plain")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("gguf:q4_1", "mlx:4bit-32g"),
        ("gguf:q4_0", "mlx:4bit-32g"),
        ("gguf:q8_0", "mlx:8bit-32g"),
        ("gguf:q5_1", "mlx:5bit-32g"),
        ("mlx:4bit-64g", "gguf:q4_1"),
        ("awq:4bit-32g", "mlx:4bit-32g-f32"),
    ],
)
def test_there_and_back_unchanged(first, second, llama, tmp_path):
    """The values of every tensor, and no look at a weight that was not quantized."""
    paths = [
        tmp_path / f"{step}{'.gguf' if name.startswith('gguf') else ''}"
        for step, name in enumerate((first, second, first))
    ]
    qformats.export(llama, paths[0], format=first)
    qformats.export(paths[0], paths[1], format=second, require_exact=True)
    qformats.export(paths[1], paths[2], format=first, require_exact=True)
    before, between, after = map(values, paths)
    linear = [name for name in before if "_proj" in name]
    assert len(linear) == 14
    for name in linear:
        assert torch.equal(before[name], between[name])
        assert torch.equal(before[name], after[name])


def test_biases_that_are_no_whole_steps_are_not_integers(llama, tmp_path):
    qformats.export(llama, tmp_path / "mlx", format="mlx:4bit-64g")
    with pytest.raises(InexactExportError, match="a minimum of 0"):
        qformats.export(tmp_path / "mlx", tmp_path / "awq", format="awq:4bit-64g", require_exact=True)
    assert not (tmp_path / "awq").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"group_size": 64, "bits": 3}, "3 bits in groups of 64"),
        ({"group_size": 32, "bits": 4, "mode": "mxfp4"}, "biases.*expected weight and scales"),
        ({"group_size": 64, "bits": 4, "mode": "mxfp4"}, "group_size: found 64; expected 32, which is all"),
        (
            {"group_size": 32, "bits": 6, "mode": "mxfp6"},
            "mode: found .mxfp6.; expected affine, mxfp4, nvfp4, mxfp8",
        ),
        ({"group_size": 64, "bits": 7}, "bits: found 7"),
        ({"group_size": 48, "bits": 4}, "group_size: found 48"),
    ],
)
def test_what_is_not_read_is_refused(change, told, folder, tmp_path):
    broken = rewritten(folder, tmp_path / "broken", quantization=change)
    with pytest.raises(CheckpointError, match=told):
        qformats.open(broken)


def test_fields_that_are_missing_or_stacked(folder, tmp_path):
    lacking = rewritten(
        folder, tmp_path / "lacking", lambda t: {n: v for n, v in t.items() if n != f"{UP}.biases"}
    )
    with pytest.raises(CheckpointError, match="weight, scales and biases"):
        qformats.open(lacking)

    def stacked(tensors):
        fields = ("weight", "scales", "biases")
        return tensors | {
            f"m.switch_mlp.up_proj.{f}": tensors[f"{UP}.{f}"].expand(2, -1, -1).clone() for f in fields
        }

    with pytest.raises(CheckpointError, match="a stack of 2 matrices"):
        qformats.open(rewritten(folder, tmp_path / "stacked", stacked))


def test_runs_packed_with_the_values_of_the_plain_model(folder, tmp_path):
    qformats.export(folder, tmp_path / "plain", format="dense:f32")
    packed, plain = (qformats.load_model(path, dtype="f32") for path in (folder, tmp_path / "plain"))
    ids = torch.tensor([[1, 5, 9, 33, 7, 2, 60, 12]])
    with torch.inference_mode():
        first, second = (model(ids).logits for model in (packed, plain))
    assert torch.allclose(first, second, rtol=1e-5, atol=1e-5)
