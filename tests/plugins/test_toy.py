"""The example plugin of the documentation, as a third party would install it, through every door."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from models import tiny
from safetensors.torch import load_file, save_file

import qformats
from qformats.errors import CheckpointError, ConfigError, NonFiniteError, ShapeError, UnknownFormatError
from qformats.exporting import fill
from qformats.registry import registry

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "qformats-toy"
Q_PROJ = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """What ``pip install`` would leave behind: the module (by its folder) and metadata from pyproject.toml."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    site = tmp_path_factory.mktemp("site")
    info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    head = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (info / "METADATA").write_text(head)
    points = [f"{name} = {target}" for name, target in project["entry-points"]["qformats"].items()]
    (info / "entry_points.txt").write_text("\n".join(["[qformats]", *points]))
    return [site, EXAMPLE]


@pytest.fixture
def _toy(site, monkeypatch):
    """The plugin in this process."""
    for folder in site:
        monkeypatch.syspath_prepend(str(folder))
    registry.cache_clear()
    yield
    registry.cache_clear()
    sys.modules.pop("qformats_toy", None)


@pytest.fixture(scope="module")
def folder(site, tmp_path_factory):
    """The demo model in the toy format, written by the command line."""
    target = tmp_path_factory.mktemp("models") / "demo-toy"
    done = _qformats(site, "export", "demo", "--format", "toy", "-o", str(target), "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert {t["format"] for t in report["tensors"]} == {"toy:int6", "dense:bf16"}
    return target


def _qformats(site, *words):
    path = os.pathsep.join([*map(str, site), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
    return subprocess.run(
        [sys.executable, "-c", "from qformats.cli import main; main()", *words],
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def _by_hand(tensors, module, columns):
    """Values of a module, from its stored tensors and the format's description alone."""
    packed, scale = tensors[f"{module}.weight"].numpy(), tensors[f"{module}.weight_scale"].numpy()
    bits = np.unpackbits(packed, axis=1, bitorder="little")[:, : columns * 6].reshape(len(packed), columns, 6)
    codes = (bits * (1 << np.arange(6))).sum(-1)
    return scale.astype(np.float32)[:, None] * (codes - 32).astype(np.float32)


@pytest.mark.usefixtures("_toy")
@pytest.mark.parametrize("shape", [(64, 256), (1, 4), (5, 123), (3, 3), (7, 1)])
def test_round_trip_on_tensors(shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 0.1
    quantized = qformats.quantize(weight, "toy")
    packed = qformats.pack(quantized, "toy:int6")
    assert packed.fields["weight"].dtype == torch.uint8
    assert packed.fields["weight_scale"].dtype == torch.float16
    assert (
        packed.nbytes == qformats.packer("toy").spec.nbytes(*shape) == shape[0] * (-(-shape[1] * 6 // 8) + 2)
    )
    again = packed.unpack()
    assert torch.equal(again.codes, quantized.codes)
    assert torch.equal(again.dequantize(), quantized.dequantize())
    module = {f"m.{name}": tensor for name, tensor in packed.fields.items()}
    np.testing.assert_array_equal(packed.dequantize().numpy(), _by_hand(module, "m", shape[1]))
    # The float16 scale is rounded, so the largest weight may lie a little beyond the last level.
    step = weight.abs().amax(1, keepdim=True) / 31
    assert ((packed.dequantize() - weight).abs() <= step * 0.53).all()
    reference = qformats.packer("toy").encode_reference(weight)
    assert all(torch.equal(reference.fields[name], tensor) for name, tensor in packed.fields.items())


@pytest.mark.usefixtures("_toy")
def test_bad_weights_are_refused():
    weight = torch.zeros(4, 8)
    weight[2, 3] = torch.nan
    with pytest.raises(NonFiniteError, match="1 of 32 values are not finite; the first is nan at index 19"):
        qformats.quantize(weight, "toy")
    weight[2, 3] = 1e9
    with pytest.raises(NonFiniteError, match="1 of 4 blocks need a scale beyond f16"):
        qformats.packer("toy").encode_reference(weight)
    with pytest.raises(UnknownFormatError, match=r"toy:int7.*toy:int6"):
        qformats.packer("toy:int7")


def test_the_folder_holds_what_the_format_says(folder):
    config = json.loads((folder / "config.json").read_text())
    assert config["quantization_config"] == {"quant_method": "toy", "bits": 6}
    tensors = load_file(folder / "model.safetensors")
    assert tensors[f"{Q_PROJ}.weight"].shape == (256, 192)
    assert tensors[f"{Q_PROJ}.weight_scale"].shape == (256,)
    original = load_file(qformats.open("demo").path / "model.safetensors")[f"{Q_PROJ}.weight"].float()
    values = torch.from_numpy(_by_hand(tensors, Q_PROJ, 256))
    sqnr = 10 * torch.log10(original.square().sum() / (values - original).square().sum())
    assert sqnr > 25


@pytest.mark.usefixtures("_toy")
def test_the_folder_is_read_back(folder):
    model = qformats.open(folder)
    assert model.container == "huggingface"
    assert {t.format for t in model.tensors.values()} == {"toy:int6", "dense:bf16"}
    stored = model.tensors[f"{Q_PROJ}.weight"]
    assert stored.shape == (256, 256)
    tensors = load_file(folder / "model.safetensors")
    expected = torch.from_numpy(_by_hand(tensors, Q_PROJ, 256))
    assert torch.equal(model.read(f"{Q_PROJ}.weight"), expected)
    assert torch.equal(stored.read(100, 103).dequantize(), expected[100:103])
    assert list(model.tensors) == list(qformats.open("demo").tensors)
    assert model.parameters == qformats.open("demo").parameters


@pytest.mark.usefixtures("_toy")
def test_to_plain_numbers(folder, tmp_path):
    report = qformats.export(folder, tmp_path / "dense", format="dense")
    assert report.types == {"dense:f32": 39}
    config = json.loads((tmp_path / "dense" / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["dtype"] == "float32"
    dense, packed = (
        load_file(tmp_path / "dense" / "model.safetensors"),
        load_file(folder / "model.safetensors"),
    )
    for module in (Q_PROJ, "model.layers.3.mlp.down_proj"):
        columns = dense[f"{module}.weight"].shape[1]
        np.testing.assert_array_equal(dense[f"{module}.weight"].numpy(), _by_hand(packed, module, columns))
    assert not [name for name in dense if name.endswith("weight_scale")]
    assert torch.equal(dense["model.norm.weight"], packed["model.norm.weight"].float())


def test_to_gguf_by_the_command_line(site, folder, tmp_path):
    import gguf

    target = tmp_path / "toy.gguf"
    done = _qformats(site, "export", str(folder), "--format", "gguf", "--type", "q4_0", "-o", str(target))
    assert done.returncode == 0, done.stderr
    assert "tensors (blk." in done.stdout
    assert "rounded again, the first because " in done.stdout
    tensors = {t.name: t for t in gguf.GGUFReader(target).tensors}
    down = tensors["blk.3.ffn_down.weight"]
    assert down.tensor_type == gguf.GGMLQuantizationType.Q4_0
    values = _by_hand(load_file(folder / "model.safetensors"), "model.layers.3.mlp.down_proj", 1024)
    np.testing.assert_array_equal(np.array(down.data), gguf.quants.quantize(values, down.tensor_type))


def test_inspect_shows_it(site, folder):
    done = _qformats(site, "inspect", str(folder), "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert {kind["format"]: kind["tensors"] for kind in facts["types"]} == {"toy:int6": 28, "dense:bf16": 11}
    assert facts["file_nbytes"] == sum(
        file.stat().st_size for file in folder.iterdir() if file.name != "qformats.json"
    )


@pytest.mark.usefixtures("_toy")
def test_it_is_listed_among_the_formats():
    (spec,) = (spec for spec in qformats.formats() if spec.family == "toy")
    assert spec.name == "toy:int6"
    assert spec.bits_per_weight == pytest.approx(6 + 16 / 4096)
    assert qformats.packer("toy").writable


@pytest.mark.usefixtures("_toy")
def test_slices_give_the_same_bytes(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(fill, "SLICE_WEIGHTS", 5000)
    qformats.export("demo", tmp_path / "sliced", format="toy", workers=3)
    assert (tmp_path / "sliced" / "model.safetensors").read_bytes() == (
        folder / "model.safetensors"
    ).read_bytes()
    qformats.export(folder, tmp_path / "copied", format="toy:int6")
    assert (tmp_path / "copied" / "model.safetensors").read_bytes() == (
        folder / "model.safetensors"
    ).read_bytes()


@pytest.mark.usefixtures("_toy")
def test_shards(folder, tmp_path):
    report = qformats.export("demo", tmp_path / "sharded", format="toy", options={"max-shard-size": "1MB"})
    assert len([name for name, _ in report.files if name.endswith(".safetensors")]) > 3
    whole, sharded = qformats.open(folder), qformats.open(tmp_path / "sharded")
    assert set(whole.tensors) == set(sharded.tensors)
    for name in (f"{Q_PROJ}.weight", "model.layers.2.mlp.up_proj.weight", "lm_head.weight"):
        assert torch.equal(whole.read(name), sharded.read(name))


def _folder(tmp_path, tensors, quantization, model_type="llama"):
    tmp_path.mkdir(exist_ok=True)
    config = {"model_type": model_type, "quantization_config": quantization}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path


PACKED = {"a.weight": torch.zeros(4, 6, dtype=torch.uint8), "a.weight_scale": torch.ones(4).half()}
TOY = {"quant_method": "toy", "bits": 6}


@pytest.mark.usefixtures("_toy")
def test_a_folder_of_the_framework_s_own_kind(tmp_path):
    """Formats without a method of their own are declared by name."""
    declared = {"quant_method": "qformats", "format": "toy:int6"}
    model = qformats.open(_folder(tmp_path, PACKED, declared))
    assert model.read("a.weight").tolist() == [[-32.0] * 8] * 4


@pytest.mark.usefixtures("_toy")
@pytest.mark.parametrize(
    ("tensors", "quantization", "message"),
    [
        (
            {"a.weight": PACKED["a.weight"]},
            TOY,
            r"'a\.weight': fields of toy:int6: found \['weight'\]; expected weight and weight_scale",
        ),
        (
            {**PACKED, "a.weight_scale": torch.ones(5).half()},
            TOY,
            r"'a\.weight': .*weight_scale.*shape \(5,\)",
        ),
        (
            {**PACKED, "a.weight_scale": torch.ones(4)},
            TOY,
            r"'a\.weight': .*weight_scale.*f32 of shape \(4,\)",
        ),
        (PACKED, {**TOY, "bits": 5}, r"config\.json: .*bits of a toy folder: found 5; expected 6"),
        (PACKED, {"quant_method": "toyy"}, r"config\.json: .*'toyy'.*toy"),
        (PACKED, {"quant_method": "qformats", "format": "toy:int9"}, r"config\.json: .*toy:int9.*toy:int6"),
    ],
    ids=[
        "no scale",
        "scales of other rows",
        "scales of another dtype",
        "other bits",
        "unknown",
        "unknown format",
    ],
)
def test_damaged_folders_are_refused_by_file_and_tensor(tmp_path, tensors, quantization, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        qformats.open(_folder(tmp_path, tensors, quantization))
    assert str(tmp_path) in str(caught.value)


@pytest.mark.usefixtures("_toy")
def test_a_width_that_a_folder_could_not_tell_again_is_not_written(tmp_path):
    tensors = {"model.layers.0.self_attn.q_proj.weight": torch.ones(4, 3)}
    source = _folder(tmp_path / "source", tensors, None, "unlisted")
    with pytest.raises(ShapeError, match=r"q_proj.*\(4, 3\).*\(4, 4\)"):
        qformats.export(source, tmp_path / "out", format="toy")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("_toy")
def test_a_container_holds_only_what_it_can_declare(tmp_path):
    """A config.json names one quantized format; a GGUF file has a number for each of its own types."""
    for format, other, message in (
        ("toy", "gguf:q4_0", r"gguf:q4_0.*the container huggingface can hold: .*toy:int6"),
        ("gguf", "toy:int6", r"toy:int6.*the container gguf can hold: .*gguf:q4_0"),
        ("dense", "toy:int6", r"down_proj.*toy:int6.*plain numbers.*config\.json"),
    ):
        with pytest.raises(ConfigError, match=message):
            qformats.export("demo", tmp_path / "out", format=format, tensor_types={"down_proj": other})
        assert list(tmp_path.iterdir()) == []
    with pytest.warns(UserWarning, match=r"several dtypes \(bf16, f16\).*plain-dtype"):
        qformats.export("demo", tmp_path / "out", format="toy", tensor_types={"down_proj": "dense:f16"})
    formats = {t.format for name, t in qformats.open(tmp_path / "out").tensors.items() if "down_proj" in name}
    assert formats == {"dense:f16"}


def test_without_the_plugin_its_folders_are_refused_by_name(folder):
    with pytest.raises(
        CheckpointError, match=r"config\.json: quantization method 'toy'.*[Ii]nstall a plugin"
    ):
        qformats.open(folder)


def test_the_tutorial_fits_a_page_and_runs(site):
    text = (EXAMPLE / "README.md").read_text()
    assert len(text.splitlines()) <= 60
    snippet = text.split("## In Python\n")[1].split("## ")[0]
    *statements, nbits, values = [line.strip() for line in snippet.splitlines() if line.strip()]
    program = "\n".join(
        [*statements, f"print({nbits.split('#')[0]}); print(tuple(({values.split('#')[0]}).shape))"]
    )
    path = os.pathsep.join([*map(str, site), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == [nbits.split("# ")[1], "(64, 256)"]


def test_conv1d_weights_keep_their_orientation(site, tmp_path):
    """GPT-2 stores its matrices transposed while they are plain numbers, and only then."""
    model = tiny.build("gpt2", tmp_path / "gpt2")
    for source, format, target in ((model, "toy", "packed"), (tmp_path / "packed", "dense:f32", "back")):
        done = _qformats(site, "export", str(source), "--format", format, "-o", str(tmp_path / target))
        assert done.returncode == 0, done.stderr
    before, after = load_file(model / "model.safetensors"), load_file(tmp_path / "back" / "model.safetensors")
    assert {name: value.shape for name, value in before.items()} == {
        name: v.shape for name, v in after.items()
    }
    packed = load_file(tmp_path / "packed" / "model.safetensors")
    assert packed["transformer.h.0.attn.c_attn.weight"].shape == (192, 48)
    for name, value in before.items():
        # 6 bits per weight and one scale per row: within a step of the row's largest.
        assert torch.allclose(value, after[name], atol=float(value.abs().max()) / 25), name
