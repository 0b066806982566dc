"""The quantizer: its search against a plain one, what it folds, resuming, every kind of format, and bad input."""

import json

import pytest
import torch
from models import architectures, moe, tiny, zoo
from safetensors.torch import load_file, save_file

import qformats
from qformats.calibration import Layer, Moments, Rounded, Settings, SharedInput, calibrate
from qformats.errors import ConfigError
from qformats.registry import registry
from qformats.work.progress import Silent
from qformats_awq.ranges import output_error, with_best_ranges
from qformats_awq.search import Method, choose

TEXT = (
    "It was the best of times, it was the worst of times; 1234567890 things were said, and more were not. "
    * 60
)
BUILDERS = {"tiny": tiny, "zoo": zoo, "moe": moe, "arch": architectures}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text(TEXT)
    return file


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny.build("llama", tmp_path_factory.mktemp("llama") / "model")


class Killed(Silent):
    """Ends the run in the middle of the second block."""

    def start(self, task, total):
        if task.startswith("block 2") and "down_proj" in task:
            raise KeyboardInterrupt


class Heard(Silent):
    """Remembers what the user is told."""

    def __init__(self):
        self.notices = []

    def notice(self, text):
        self.notices.append(text)


def _linears(source):
    return [name for name, t in source.tensors.items() if len(t.shape) == 2 and "proj" in name]


def _prepare(source, work, text, format="gguf:q4_0", progress=None, names=None, **options):
    given = {"calibration": str(text), "samples": "8", "sequence-length": "32", "grid": "5"}
    given |= {key.replace("_", "-"): str(value) for key, value in options.items()}
    formats = dict.fromkeys(_linears(source) if names is None else names, qformats.packer(format))
    return registry().quantizer("awq", given).prepare(source, formats, work, progress or Silent())


# The search.


def _plain_search(weights, inputs, packers, grid, duo):
    """AWQ as in the paper and in AutoAWQ: with the tokens themselves, and one candidate after the other."""
    size = inputs.abs().mean(0)
    relative = []
    for weight, packer in zip(weights, packers, strict=True):
        blocks = weight.abs().view(-1, packer.grid.block_size)
        relative.append((blocks / (blocks.amax(1, keepdim=True) + 1e-6)).view_as(weight))
    weight_size = torch.cat(relative).mean(0)
    least, best = None, None
    for step in range(grid):
        ratio = step / grid
        factors = size**ratio
        if duo:
            factors = factors / (weight_size ** (1 - ratio) + 1e-4)
        factors = factors / (factors.max() * factors.min()).sqrt()
        error = 0.0
        for weight, packer in zip(weights, packers, strict=True):
            rounded = packer.grid.quantize(weight * factors).dequantize() / factors
            error += float((inputs @ (rounded - weight).T).double().square().sum()) / len(inputs)
        if least is None or error < least:
            least, best = error, factors
    return best, least


def _shared(weights, inputs, packers, exact=lambda wanted: wanted):
    moments = Moments(inputs.shape[1], torch.device("cpu"))
    moments.add(inputs)
    layers = [
        Layer(f"{number}.weight", packer, lambda weight=weight: weight)
        for number, (weight, packer) in enumerate(zip(weights, packers, strict=True))
    ]
    index = torch.arange(inputs.shape[1])
    return SharedInput(layers, [1.0] * len(layers), moments, inputs.abs().mean(0), index, exact)


@pytest.mark.parametrize("duo", ["no", "yes"])
@pytest.mark.parametrize("format", ["awq:4bit-32g", "gguf:q4_0", "gptq:3bit-64g", "mlx:4bit-32g"])
def test_the_search_is_that_of_the_paper(format, duo):
    """Factors, and the error of the outputs that they leave, on inputs of which some columns are large."""
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(200, 64, generator=generator) @ torch.randn(64, 64, generator=generator) / 8
    inputs[:, ::7] *= 12
    weights = [0.05 * torch.randn(rows, 64, generator=generator) for rows in (64, 32)]
    packers = [qformats.packer(format)] * 2
    wanted, error = _plain_search(weights, inputs, packers, 20, duo == "yes")
    shared = _shared(weights, inputs, packers)
    found = choose(shared, Method(20, duo, clip=False))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=0)
    second = shared.moments.second
    ours = sum(
        output_error(packer.grid.quantize(weight * found).dequantize() / found - weight, second)
        for weight, packer in zip(weights, packers, strict=True)
    )
    assert ours == pytest.approx(error, rel=1e-3)
    plain = sum(
        output_error(packer.grid.quantize(weight).dequantize() - weight, second)
        for weight, packer in zip(weights, packers, strict=True)
    )
    assert ours < 0.7 * plain


def test_the_better_of_both_rules_is_taken():
    generator = torch.Generator().manual_seed(4)
    inputs = torch.randn(100, 64, generator=generator)
    inputs[:, :3] *= 20
    weights, packers = [torch.randn(32, 64, generator=generator)], [qformats.packer("awq:4bit-32g")]
    shared = _shared(weights, inputs, packers)
    errors = {duo: _plain_search(weights, inputs, packers, 20, duo) for duo in (False, True)}
    wanted, _ = min(errors.values(), key=lambda pair: pair[1])
    torch.testing.assert_close(choose(shared, Method(20, "both", clip=False)), wanted, rtol=1e-5, atol=0)


def test_ranges_decide_among_the_best():
    """A factor is worth what it is worth once the ranges of the scaled weight are searched."""
    generator = torch.Generator().manual_seed(6)
    inputs = torch.randn(100, 64, generator=generator) * torch.rand(64, generator=generator)
    inputs[:, :3] *= 20
    weights, packers = [torch.randn(32, 64, generator=generator)], [qformats.packer("gguf:q4_0")]
    shared = _shared(weights, inputs, packers)

    def error(factors):
        second = shared.moments.second / factors.outer(factors)
        found = with_best_ranges(weights[0] * factors, packers[0], second).dequantize() / factors
        return output_error(found - weights[0], shared.moments.second)

    chosen = error(choose(shared, Method(20, "both")))
    assert chosen <= error(choose(shared, Method(20, "both", clip=False))) * (1 + 1e-6)
    assert chosen < error(torch.ones(64))


def test_nothing_is_scaled_where_it_would_not_help():
    """Inputs of one size, and a column that is always zero."""
    inputs = torch.where(torch.rand(64, 32, generator=torch.Generator().manual_seed(0)) < 0.5, -1.0, 1.0)
    inputs[:, 4] = 0
    shared = _shared([torch.eye(32)], inputs, [qformats.packer("gguf:q8_0")])
    assert choose(shared, Method(20, "no", clip=False)) is None


@pytest.mark.parametrize(
    "format",
    [
        "awq:4bit-32g",
        "gptq:4bit-32g",
        "gguf:q4_0",
        "gguf:q4_1",
        "gguf:iq4_nl",
        "gguf:q4_k",
        "bitsandbytes:nf4",
        "bitsandbytes:nf4-dq",
        "compressed-tensors:nvfp4",
        "compressed-tensors:w8a8",
        "glm:int4",
        "mlx:4bit-64g",
        "fp8:block",
        "gguf:q8_0",
    ],
)
def test_ranges_disturb_outputs_less(format):
    """On the grid of the format, and never more than its own rule does."""
    generator = torch.Generator().manual_seed(5)
    weight = 0.05 * torch.randn(128, 256, generator=generator)
    inputs = torch.randn(300, 256, generator=generator) @ torch.randn(256, 256, generator=generator)
    second = inputs.T @ inputs / len(inputs)
    packer = qformats.packer(format)
    found = with_best_ranges(weight, packer, second)
    packer.grid.validate(found)
    plain = output_error(packer.grid.quantize(weight).dequantize() - weight, second)
    chosen = output_error(packer.pack(found).dequantize() - weight, second)
    assert chosen <= plain * (1 + 1e-6)
    if packer.grid.independent and packer.grid.levels <= 16:
        assert chosen < 0.85 * plain


# Folding.


def _folded(path, work, text, format="glm:int8"):
    """A checkpoint scaled at random, and the weights as they are before they are rounded."""
    source = qformats.open(path)
    generator = torch.Generator().manual_seed(11)
    weights = {}

    def scale(shared):
        return shared.exact(0.3 + 3 * torch.rand(shared.count, generator=generator))

    def keep(layers, moments, tell):
        for layer in layers:
            weights[layer.name] = layer.weight.clone()
            yield Rounded(layer.packer.grid.quantize(layer.weight), 0.0, 1.0, 0.0)

    names = [
        name
        for name, tensor in source.tensors.items()
        if len(tensor.shape) == 2 and (".layers." in name or ".h." in name) and ".gate." not in name
    ]
    settings = Settings(
        str(text) if text else "", samples=4, sequence_length=24, device="cpu", compute_dtype="f32"
    )
    formats = dict.fromkeys(names, qformats.packer(format))
    done = calibrate(
        source, formats, work, settings, keep, identity={}, drift=False, progress=Silent(), scale=scale
    )
    return source, done, weights


def _in_dtype(path, dtype):
    file = path / "model.safetensors"
    values = {name: value.to(dtype) for name, value in load_file(file).items()}
    save_file(values, file, {"format": "pt"})
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "dtype": str(dtype).removeprefix("torch.")}))
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "name",
    [
        "tiny:llama",
        "tiny:llama-bias",
        "tiny:gpt2",
        "arch:gemma2",
        "arch:cohere",
        "arch:qwen3_moe",
        "arch:phi",
    ],
)
def test_the_unrounded_model_computes_what_it_did(name, dtype, tmp_path, text):
    """With factors at random in every fold, in Transformers, whatever dtype the norms and routers stay in."""
    from transformers import AutoModelForCausalLM

    kind, _, model = name.partition(":")
    path = _in_dtype(BUILDERS[kind].build(model, tmp_path / "model"), dtype)
    source, done, weights = _folded(path, tmp_path / "work", text)
    changed = [
        key
        for key, tensor in done.tensors.items()
        if key not in weights and not torch.equal(tensor.read().dequantize(), source.read(key))
    ]
    assert changed
    assert all(done.tensors[key].format == source.tensors[key].format for key in changed)
    folded = tmp_path / "folded"
    qformats.export(path, folded, format="dense:f32")
    plain = AutoModelForCausalLM.from_pretrained(folded, dtype=torch.float32)
    ids = torch.arange(40).view(2, 20) + 30
    with torch.inference_mode():
        before = plain(ids).logits
        file = folded / "model.safetensors"
        values = load_file(file)
        own = {key: value.T if model == "gpt2" else value for key, value in weights.items()}
        values |= {key: done.read(key).float() for key in changed} | own
        save_file({key: value.contiguous() for key, value in values.items()}, file, {"format": "pt"})
        after = AutoModelForCausalLM.from_pretrained(folded, dtype=torch.float32)(ids).logits
    assert float((after - before).abs().max()) < 1e-4 * float(before.abs().max())
    moved = [key for key, value in weights.items() if not torch.equal(value, source.read(key).float())]
    assert len(moved) >= len(weights) / 2


def _with_outliers(path):
    """Columns whose inputs are 30 times as large, with weights 30 times as small: the same model."""
    file = path / "model.safetensors"
    values = load_file(file)
    pairs = {
        "input_layernorm": ("q_proj", "k_proj", "v_proj"),
        "post_attention_layernorm": ("gate_proj", "up_proj"),
    }
    for name in list(values):
        for norm, layers in pairs.items():
            if name.endswith(f"{norm}.weight"):
                block = name.removesuffix(f"{norm}.weight")
                values[name][[3, 20, 41]] *= 30
                for key in values:
                    if key.startswith(block) and key.endswith(tuple(f"{layer}.weight" for layer in layers)):
                        values[key][:, [3, 20, 41]] /= 30
    save_file(values, file, {"format": "pt"})
    return path


FORMATS = [
    "awq:4bit-32g",
    "gptq:4bit-32g",
    "gguf:q4_0",
    "gguf:q5_1",
    "compressed-tensors:w4a16-32g",
    "compressed-tensors:nvfp4",
    "mlx:4bit-32g",
    "bitsandbytes:nf4",
    "glm:int4",
]


@pytest.mark.parametrize("format", FORMATS)
def test_every_kind_of_format(format, tmp_path, text):
    """Outliers that ruin rounding do not harm, and the export is an ordinary one, read from the disk again."""
    path = _with_outliers(tiny.build("llama", tmp_path / "model"))
    ids = torch.arange(60).view(3, 20) + 10
    options = {"calibration": str(text), "samples": "8", "sequence-length": "32"}
    with torch.inference_mode():
        expected = qformats.load_model(path, device="cpu", dtype="f32")(ids).logits.log_softmax(-1)
        found = {}
        for quantizer in ("rtn", "awq"):
            given = {} if quantizer == "rtn" else {"quantizer_options": options}
            written = tmp_path / (f"{quantizer}.gguf" if format.startswith("gguf") else quantizer)
            qformats.export(path, written, format=format, quantizer=quantizer, **given)
            logits = qformats.load_model(written, device="cpu", dtype="f32")(ids).logits.log_softmax(-1)
            found[quantizer] = float((expected.exp() * (expected - logits)).sum(-1).mean())
    assert found["awq"] < 0.5 * found["rtn"], found


def test_a_killed_run_goes_on_and_ends_the_same(llama, text, tmp_path):
    source = qformats.open(llama)
    whole = _prepare(source, tmp_path / "whole", text)
    with pytest.raises(KeyboardInterrupt):
        _prepare(source, tmp_path / "work", text, progress=Killed())
    assert len(list((tmp_path / "work" / "blocks").glob("block-*.safetensors"))) == 1
    again = _prepare(source, tmp_path / "work", text)
    for name, tensor in whole.tensors.items():
        other = again.tensors[name]
        assert tensor.format == other.format
        for field, value in tensor.read().fields.items():
            assert torch.equal(value, other.read().fields[field]), name
    norms = [name for name in source.tensors if name.endswith("layernorm.weight")]
    assert all(not torch.equal(again.read(name), source.read(name)) for name in norms)
    # Other options are another calibration.
    other = _prepare(source, tmp_path / "work", text, duo_scaling="no", clip="no")
    name = norms[0].replace("input_layernorm", "mlp.down_proj")
    assert not torch.equal(other.read(name), whole.read(name))


def test_what_is_not_scaled_is_named(tmp_path, text):
    """GPT-2's activation lets no factors pass; a weight that stays in another format takes none."""
    source = qformats.open(tiny.build("gpt2", tmp_path / "model"))
    names = [
        name for name in source.tensors if any(part in name for part in ("c_attn.w", "c_fc.w", "c_proj.w"))
    ]
    done = _prepare(source, tmp_path / "work", text, names=names)
    assert done.notes[-1] == (
        "2 of 8 layers are rounded without scaling: mlp.c_proj (nothing in front takes their factors over)"
    )
    path = tiny.build("llama", tmp_path / "llama")
    mixed = tmp_path / "mixed"
    qformats.export(
        path, mixed, format="gptq:4bit-32g", quantizer="rtn", tensor_types={"q_proj": "dense:f32"}
    )
    source = qformats.open(mixed)
    names = [name for name in source.tensors if name.endswith("q_proj.weight")]
    done = _prepare(source, tmp_path / "mixed-work", text, names=names)
    first = names[0].replace("q_proj", "k_proj")
    assert f"self_attn.q_proj ({first} stays in gptq:4bit-32g" in done.notes[-1]
    assert all(
        torch.equal(done.read(name), source.read(name)) for name in source.tensors if name not in names
    )


def test_a_neighbour_that_stays_plain_is_folded_without_rounding(tmp_path, text):
    """A key in bfloat16 beside a quantized query and value: factors are powers of two."""
    path = _in_dtype(_with_outliers(tiny.build("llama", tmp_path / "model")), torch.bfloat16)
    source = qformats.open(path)
    names = [name for name in _linears(source) if "k_proj" not in name]
    done = _prepare(source, tmp_path / "work", text, names=names)
    for name in (n for n in source.tensors if n.endswith("input_layernorm.weight")):
        factors = source.read(name).float() / done.read(name).float()
        assert bool((factors != 1).any())
        assert torch.equal(factors.log2(), factors.log2().round())
        key = name.replace("input_layernorm", "self_attn.k_proj")
        assert torch.equal(done.read(key).float(), source.read(key).float() * factors)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"duo_scaling": "maybe"}, "duo-scaling"),
        ({"grid": 0}, "grid"),
        ({"clip": "perhaps"}, "clip"),
        ({"samples": "none"}, "samples"),
    ],
)
def test_options_that_are_not_possible(llama, text, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        _prepare(qformats.open(llama), tmp_path / "work", text, **options)


def test_the_record_tells(llama, text, tmp_path):
    """The quantizer, its options and the text, by its hash, beside the weights."""
    folder = tmp_path / "out"
    options = {"calibration": str(text), "samples": "4", "sequence-length": "16", "grid": "3"}
    qformats.export(llama, folder, format="awq:4bit-32g", quantizer="awq", quantizer_options=options)
    told = json.loads((folder / "qformats.json").read_text())
    assert told["quantizer"] == "awq"
    assert told["calibration"].startswith("4 x 16 tokens of ")
    assert told["recipe"]["quantizer_options"]["grid"] == "3"
    assert len(told["calibration_sha256"]) == 64
