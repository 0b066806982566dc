"""Distances between weights, against numpy in float64, and which tensors are the same."""

import math

import numpy as np
import pytest
import torch
from models import tiny
from safetensors.torch import load_file, save_file

import qformats
from qformats.comparing import weights
from qformats.comparing.sums import Sums, compare, total
from qformats.comparing.weights import compare_weights, position
from qformats.errors import WeightsError
from qformats.work.progress import Silent


def expected(base, other):
    """Every number of a `WeightError`, from two arrays."""
    x, y = (np.asarray(values, np.float64).reshape(-1) for values in (base, other))
    change = y - x
    relative = np.sqrt((change**2).sum() / (x**2).sum())
    return {
        "count": x.size,
        "max_error": np.abs(change).max(),
        "rmse": np.sqrt((change**2).mean()),
        "relative_rmse": relative,
        "sqnr_db": 10 * np.log10((x**2).sum() / (change**2).sum()),
        "cosine": (x @ y) / (np.linalg.norm(x) * np.linalg.norm(y)),
    }


def assert_close(found, base, other):
    for name, value in expected(base, other).items():
        # The largest error is rounded once, to float32.
        assert getattr(found, name) == pytest.approx(value, rel=1e-7 if name == "max_error" else 1e-9), name


@pytest.mark.parametrize("first", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("second", [torch.float32, torch.float16, torch.bfloat16])
def test_sums_of_every_dtype(first, second):
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(37, 123, generator=generator).to(first)
    other = (base.float() + 0.01 * torch.randn(37, 123, generator=generator)).to(second)
    before = base.clone()
    found = compare(base, other).result()
    assert_close(found, base.float(), other.float())
    assert torch.equal(base, before)
    strided = compare(base.t(), other.t()).result()
    assert_close(strided, base.float(), other.float())


def test_sums_add_up():
    generator = torch.Generator().manual_seed(1)
    base, other = torch.randn(2, 5000, generator=generator)
    parts = [compare(base[i : i + 777], other[i : i + 777]) for i in range(0, 5000, 777)]
    assert_close(total(parts).result(), base, other)


def test_special_weights():
    zeros, some = torch.zeros(4), torch.tensor([1.0, -2.0, 0.0, 4.0])
    same = compare(some, some).result()
    assert (same.rmse, same.relative_rmse, same.sqnr_db, same.cosine) == (0, 0, math.inf, 1)
    nothing = compare(zeros, -zeros).result()
    assert (nothing.relative_rmse, nothing.cosine) == (0, 1)
    from_zero = compare(zeros, some).result()
    assert (from_zero.relative_rmse, from_zero.sqnr_db, from_zero.cosine) == (math.inf, -math.inf, 0)
    to_zero = compare(some, zeros).result()
    assert (to_zero.relative_rmse, to_zero.cosine, to_zero.max_error) == (1, 0, 4)
    assert Sums().result().count == 0
    for bad in (math.nan, math.inf, -math.inf):
        assert not math.isfinite(compare(some, torch.tensor([1.0, bad, 0.0, 4.0])).max_error)


def test_places():
    assert position("transformer.h.11.attn.c_attn.weight") == (11, "attn.c_attn")
    assert position("model.layers.2.self_attn.q_proj.bias") == (2, "self_attn.q_proj.bias")
    assert position("model.layers.0.block_sparse_moe.experts.7.w1.weight") == (
        0,
        "block_sparse_moe.experts.w1",
    )
    assert position("model.norm.weight") == (None, "norm")
    assert position("transformer.ln_f.bias") == (None, "ln_f.bias")
    assert position("lm_head.weight") == (None, "lm_head")


@pytest.fixture
def small_slices(monkeypatch):
    """So that the demo model's matrices take several slices."""
    monkeypatch.setattr(weights, "_SLICE", 1 << 13)
    monkeypatch.setattr(weights, "_TASK", 1 << 15)


@pytest.mark.parametrize("kind", ["q4_0", "q8_0", "f16", "gptq", "nf4-dq", "glm"])
def test_formats_against_numpy(kind, made, small_slices):
    """Containers name and order rows as they like; the canonical tensors are compared."""
    base, model = qformats.open("demo"), qformats.open(made(kind))
    outcome = compare_weights([("base", base), ("model", model)], 2, Silent())
    (result,) = outcome.results
    assert [tensor.name for tensor in result.by_tensor] == list(base.tensors)
    assert outcome.notes == ((),)
    linears = {True: [], False: []}
    for tensor in result.by_tensor:
        before, after = base.read(tensor.name).numpy(), model.read(tensor.name).numpy()
        stored = model.tensors[tensor.name]
        assert (tensor.format, tensor.nbytes, tensor.shape) == (stored.format, stored.nbytes, before.shape)
        assert tensor.bits_per_weight == pytest.approx(stored.nbytes * 8 / before.size)
        if np.array_equal(before, after):
            assert tensor.error.max_error == tensor.error.rmse == 0
            assert tensor.error.cosine == 1
        else:
            assert_close(tensor.error, before, after)
        inside = tensor.quantized and tensor.layer is not None
        linears[inside].append((before.reshape(-1), after.reshape(-1)))
    if linears[True]:
        pair = [np.concatenate(part) for part in zip(*linears[True], strict=True)]
        assert_close(result.linears, *pair)
        assert result.linear_parameters == pair[0].size
        expected_bits = qformats.packer(
            next(t for t in result.by_tensor if t.layer == 0 and t.quantized).format
        )
        assert result.linear_bits_per_weight == pytest.approx(expected_bits.spec.bits_per_weight, rel=0.02)
    else:
        assert result.linears.count == 0
    both = [*linears[True], *linears[False]]
    every = [np.concatenate(part) for part in zip(*both, strict=True)]
    if not np.array_equal(*every):
        assert_close(result.total, *every)


def test_results_depend_on_no_thread(made, small_slices):
    models = [("base", qformats.open("demo")), ("model", qformats.open(made("q4_0")))]
    assert compare_weights(models, 1, Silent()) == compare_weights(models, 3, Silent())


def test_identical_tensors(made, tmp_path):
    """Copies, a cast without loss, and two quantized files that share what neither has changed."""
    wide, again = tmp_path / "wide", tmp_path / "again.gguf"
    qformats.export("demo", wide, format="dense:f32")
    qformats.export("demo", again, format="gguf:q4_0")
    names = ("demo", "copy", "wide", "q4_0", "again", "gptq")
    opened = ("demo", "demo", wide, made("q4_0"), again, made("gptq"))
    models = [(name, qformats.open(model)) for name, model in zip(names, opened, strict=True)]
    found = {(p.first, p.second): p for p in compare_weights(models, 2, Silent()).identical}
    every = list(models[0][1].tensors)
    assert len(found) == 15
    assert found["demo", "copy"].same_bytes == tuple(every)
    assert found["demo", "copy"].same_values == ()
    assert found["copy", "wide"].same_bytes == ()
    assert found["copy", "wide"].same_values == found["demo", "wide"].same_values == tuple(every)
    assert found["q4_0", "again"].same_bytes == tuple(every)
    norms = tuple(name for name in every if "norm" in name)
    assert found["demo", "q4_0"].same_values == norms
    assert {*found["copy", "gptq"].same_bytes} == {name for name in every if "_proj" not in name}
    assert {*found["q4_0", "gptq"].same_values} == {*norms}
    assert all(pair.common == len(every) for pair in found.values())


def test_signed_zeros_are_the_same_values(tmp_path):
    tensors = demo_tensors()
    for name, change in (("one", 0.0), ("two", -0.0)):
        folder = tmp_path / name
        folder.mkdir()
        changed = dict(tensors)
        changed["model.norm.weight"] = tensors["model.norm.weight"].clone()
        changed["model.norm.weight"][3] = change
        write_folder(folder, changed)
    models = [
        (n, qformats.open(m)) for n, m in (("d", "demo"), ("o", tmp_path / "one"), ("t", tmp_path / "two"))
    ]
    pair = compare_weights(models, 2, Silent()).identical[-1]
    assert (pair.first, pair.second) == ("o", "t")
    assert pair.same_values == ("model.norm.weight",)
    assert len(pair.same_bytes) == pair.common - 1


def demo_tensors():
    return load_file(qformats.open("demo").path / "model.safetensors")


def write_folder(folder, tensors):
    source = qformats.open("demo").path
    folder.mkdir(exist_ok=True)
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / file).write_bytes((source / file).read_bytes())
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_what_cannot_be_compared_is_said(tmp_path):
    llama, qwen = tiny.build("llama", tmp_path / "llama"), tiny.build("qwen2", tmp_path / "qwen2")
    gpt = tiny.build("gpt2", tmp_path / "gpt2")
    models = [(path.name, qformats.open(path)) for path in (llama, qwen, gpt)]
    outcome = compare_weights(models, 2, Silent())
    other, foreign = outcome.results
    assert foreign is None
    assert outcome.notes[1] == (
        "No tensor has the name and shape of one in the base, so weights are not compared.",
    )
    assert "model.embed_tokens.weight" not in {tensor.name for tensor in other.by_tensor}
    said = " ".join(outcome.notes[0])
    assert "model.embed_tokens.weight" in said
    assert "a different shape from the base's" in said
    assert "lm_head.weight is only in the base" in said
    assert "_proj.bias, ...) are only in this model" in said
    assert [(pair.first, pair.second) for pair in outcome.identical] == [("llama", "qwen2")]


@pytest.fixture
def broken(tmp_path):
    """The demo model with a weight that is NaN, and its name."""
    tensors = demo_tensors()
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name][700, 5] = math.nan
    write_folder(tmp_path / "broken", tensors)
    return tmp_path / "broken", name


def test_a_weight_of_the_base_that_is_not_finite_is_named(broken):
    path, name = broken
    models = [(str(each), qformats.open(each)) for each in (path, "demo")]
    with pytest.raises(WeightsError) as caught:
        compare_weights(models, 2, Silent())
    message = str(caught.value)
    assert str(path) in message
    assert name in message
    assert "not finite" in message


def test_another_models_tensor_that_is_not_finite_is_left_out(broken):
    """Other tensors are compared as if it were not there; nothing is said of all of them together."""
    path, name = broken
    models = [(key, qformats.open(each)) for key, each in (("base", "demo"), ("bad", path), ("good", "demo"))]
    outcome = compare_weights(models, 2, Silent())
    bad, good = outcome.results
    (note,) = outcome.notes[0]
    assert str(path) in note
    assert name in note
    assert "not finite" in note
    assert outcome.notes[1] == ()
    assert name not in {tensor.name for tensor in bad.by_tensor}
    assert len(bad.by_tensor) == len(good.by_tensor) - 1
    assert all(tensor.error.max_error == 0 for tensor in bad.by_tensor)
    assert all(
        math.isnan(value) for value in (bad.total.relative_rmse, bad.total.sqnr_db, bad.total.max_error)
    )
    assert bad.total.count == good.total.count - models[0][1].tensors[name].numel
    alike = {(pair.first, pair.second): pair for pair in outcome.identical}
    assert name not in alike["base", "bad"].same_bytes
    assert name in alike["base", "good"].same_bytes


def test_many_tensors_that_are_not_finite_are_one_note(tmp_path):
    tensors = demo_tensors()
    for name in ("model.layers.0.mlp.up_proj.weight", "model.layers.2.mlp.up_proj.weight"):
        tensors[name].fill_(math.inf)
    write_folder(tmp_path / "broken", tensors)
    models = [(str(each), qformats.open(each)) for each in ("demo", tmp_path / "broken")]
    (notes,) = compare_weights(models, 2, Silent()).notes
    assert len(notes) == 1
    assert "1 more of its tensors" in notes[0]
