"""Rank folders end to end: read, merged, divided anew, quantized, against a transcription of upstream's rules."""

import json

import numpy as np
import pytest
from cli.command import call
from glm_ranks import sat_oracle as oracle

import qformats
from qformats.errors import (
    CheckpointError,
    ConfigError,
    InexactExportError,
    ShapeError,
    UnsupportedModelError,
)

SIZES = (1, 2, 4, 8)
ROW_PARALLEL = ("attention.dense.weight", "dense_4h_to_h.weight")


def _row_parallel(name):
    return name.endswith(ROW_PARALLEL)


def _reshard(source, target, ranks, **more):
    """What the command does, from Python: the same format in the same container."""
    options = {"tensor-parallel": str(ranks), **more.pop("options", {})}
    format = more.pop("format", "dense:f16")
    return qformats.export(source, target, format=format, container="sat", options=options, **more)


def _save(folder, state, ranks, **variant):
    return oracle.save(folder, oracle.split(state, ranks, **variant))


@pytest.fixture(scope="module")
def state():
    return oracle.model()


@pytest.mark.parametrize("ranks", SIZES)
def test_merged_tensors_are_the_whole_ones(tmp_path, state, ranks):
    model = qformats.open(_save(tmp_path / "in", state, ranks))
    assert model.container == "sat"
    assert list(model.tensors) == list(state)
    for name, value in state.items():
        assert model.tensors[name].format == "dense:f16"
        assert model.tensors[name].shape == value.shape
        assert np.array_equal(model.read(name).numpy(), value.astype(np.float32)), name
    assert model.parameters == sum(value.size for value in state.values())
    assert model.config == {
        "model_type": "glm-130b",
        "num_layers": 2,
        "hidden_size": 32,
        "inner_hidden_size": 64,
        "num_attention_heads": 8,
        "vocab_size": 48,
        "max_sequence_length": 2048,
    }


@pytest.mark.parametrize("ranks", SIZES)
def test_any_rows_of_a_merged_tensor_can_be_read(tmp_path, state, ranks):
    model = qformats.open(_save(tmp_path / "in", oracle.quantize(state, 4), ranks))
    for name, tensor in model.tensors.items():
        whole = model.read(name).numpy()
        for start, stop in ((0, 1), (3, 20), (tensor.rows - 1, tensor.rows), (1, 1)):
            stop = min(stop, tensor.rows)
            start = min(start, stop)
            if start < stop:
                part = qformats.dequantize(tensor.read(start, stop)).numpy()
                assert np.array_equal(part, whole[start:stop]), name


@pytest.mark.parametrize("after", SIZES)
@pytest.mark.parametrize("before", SIZES)
def test_plain_numbers_are_copied_between_any_two_sizes(tmp_path, state, before, after):
    source = _save(tmp_path / "in", state, before)
    report = _reshard(source, tmp_path / "out", after)
    assert {tensor.action for tensor in report.tensors} == {"copied"}
    for mmap in (False, True):
        oracle.same(oracle.load(tmp_path / "out", mmap=mmap), oracle.split(state, after))
    assert (tmp_path / "out" / "latest").read_text() == "49300"
    _reshard(tmp_path / "out", tmp_path / "back", before)
    oracle.same(oracle.load(tmp_path / "back"), oracle.split(state, before))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("after", SIZES)
@pytest.mark.parametrize("before", SIZES)
def test_quantized_whole_then_divided_is_copied_between_any_two_sizes(tmp_path, state, before, after, bits):
    """One scale per row: every part has its copy, and joining finds them equal."""
    packed = oracle.quantize(state, bits)
    source = _save(tmp_path / "in", packed, before)
    model = qformats.open(source)
    assert {t.format for n, t in model.tensors.items() if f"{n}_scale" in packed} == {f"glm:int{bits}"}
    report = _reshard(source, tmp_path / "out", after, format=f"glm:int{bits}", require_exact=True)
    assert {tensor.action for tensor in report.tensors} == {"copied"}
    oracle.same(oracle.load(tmp_path / "out"), oracle.split(packed, after))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("ranks", SIZES)
def test_plain_numbers_are_quantized_for_each_rank(tmp_path, state, ranks, bits):
    """As upstream's conversion: after dividing, so that row-parallel parts have scales of their own."""
    report = _reshard(_save(tmp_path / "in", state, 2), tmp_path / "out", ranks, format=f"glm:int{bits}")
    expected = [oracle.quantize(part, bits) for part in oracle.split(state, ranks)]
    oracle.same(oracle.load(tmp_path / "out"), expected)
    assert len(report.tensors) == ranks * len(state)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_columns_quantize_then_divide_is_divide_then_quantize(state, ranks, bits):
    """What the copying of column-parallel weights rests on; row-parallel ones are not so."""
    before = oracle.split(oracle.quantize(state, bits), ranks)
    after = [oracle.quantize(part, bits) for part in oracle.split(state, ranks)]
    differing = {
        name
        for one, other in zip(before, after, strict=True)
        for name in one
        if not np.array_equal(one[name], other[name])
    }
    assert differing
    assert all(_row_parallel(name.removesuffix("_scale")) for name in differing)


@pytest.fixture
def per_rank(tmp_path, state):
    """Quantized by each of 4 ranks for itself."""
    parts = [oracle.quantize(part, 4) for part in oracle.split(state, 4)]
    return oracle.save(tmp_path / "in", parts), parts


def test_scales_of_their_own_stay_beside_each_other(per_rank):
    source, parts = per_rank
    model = qformats.open(source)
    for name, tensor in model.tensors.items():
        if f"{name}_scale" not in parts[0]:
            continue
        assert tensor.format == ("glm:int4-tp4" if _row_parallel(name) else "glm:int4")
        if _row_parallel(name):
            codes = np.concatenate([oracle.nibbles(part[name]) for part in parts], 1).astype(np.float32)
            scales = np.stack([part[f"{name}_scale"] for part in parts], 1).astype(np.float32)
            expected = codes * np.repeat(scales, codes.shape[1] // 4, 1)
            assert np.array_equal(model.read(name).numpy(), expected)
            assert tensor.nbytes == sum(part[name].nbytes + part[f"{name}_scale"].nbytes for part in parts)


def test_the_same_and_more_ranks_are_exact(per_rank, tmp_path):
    source, parts = per_rank
    _reshard(source, tmp_path / "same", 4, format="glm:int4", require_exact=True)
    oracle.same(oracle.load(tmp_path / "same"), parts)
    _reshard(source, tmp_path / "more", 8, format="glm:int4", require_exact=True)
    found = oracle.load(tmp_path / "more")
    name = "transformer.layers.0.mlp.dense_4h_to_h.weight"
    for rank, part in enumerate(found):
        old, width = parts[rank // 2], part[name].shape[1]
        assert np.array_equal(part[name], old[name][:, rank % 2 * width : (rank % 2 + 1) * width])
        assert np.array_equal(part[f"{name}_scale"], old[f"{name}_scale"])
    _reshard(tmp_path / "more", tmp_path / "back", 4, format="glm:int4", require_exact=True)
    oracle.same(oracle.load(tmp_path / "back"), parts)


@pytest.mark.parametrize("ranks", [1, 2])
def test_fewer_ranks_report_what_is_rounded(per_rank, tmp_path, ranks):
    source, parts = per_rank
    with pytest.raises(InexactExportError, match=r"mp_rank_00/transformer.layers.0.attention.dense.weight"):
        _reshard(source, tmp_path / "refused", ranks, format="glm:int4", require_exact=True)
    assert not (tmp_path / "refused").exists()
    report = _reshard(source, tmp_path / "out", ranks, format="glm:int4")
    rounded = [tensor for tensor in report.tensors if tensor.exact not in ("always", "yes")]
    assert {t.source_name for t in rounded} == {n for n in parts[0] if _row_parallel(n)}
    assert all(t.relative_error is not None and 0 < t.relative_error < 0.2 for t in rounded)
    found = oracle.load(tmp_path / "out")
    # Everything else is what joining the parts gives.
    merged = oracle.split(oracle.quantize(oracle.model(), 4), ranks)
    for one, other in zip(found, merged, strict=True):
        for name, value in other.items():
            if not _row_parallel(name.removesuffix("_scale")):
                assert np.array_equal(one[name], value), name


def test_neighbours_with_equal_scales_are_joined_exactly(tmp_path, state):
    """Ranks 0 and 1 were cut from one part, and so were 2 and 3."""
    halves = [oracle.quantize(part, 4) for part in oracle.split(state, 2)]
    _reshard(oracle.save(tmp_path / "halves", halves), tmp_path / "quarters", 4, format="glm:int4")
    model = qformats.open(tmp_path / "quarters")
    assert model.tensors["transformer.layers.0.attention.dense.weight"].format == "glm:int4-tp4"
    report = _reshard(tmp_path / "quarters", tmp_path / "out", 2, format="glm:int4", require_exact=True)
    assert {tensor.action for tensor in report.tensors} == {"copied", "transcoded"}
    found = oracle.load(tmp_path / "out")
    for one, other in zip(found, halves, strict=True):
        for name, value in other.items():
            assert np.array_equal(one[name], value), name


def test_sizes_that_do_not_divide_each_other(tmp_path):
    """From 2 ranks to 3 a part reaches over two old ones: its columns keep the scales of both."""
    from qformats import PackedTensor, StoredTensor
    from qformats_glm.ranks.columns import cut_columns

    random = np.random.default_rng(1)
    codes = random.integers(-128, 128, (5, 12), dtype=np.int8)
    scales = random.random((5, 2)).astype(np.float16)
    import torch

    fields = {"weight": torch.from_numpy(codes), "weight_scale": torch.from_numpy(scales)}

    def load(start, stop):
        return PackedTensor(
            qformats.packer("glm:int4-tp2"), (stop - start, 24), {k: v[start:stop] for k, v in fields.items()}
        )

    whole = StoredTensor(
        "x.weight", (5, 24), qformats.packer("glm:int4-tp2"), codes.nbytes + scales.nbytes, tmp_path, load
    )
    expected = oracle.nibbles(codes) * np.repeat(scales.astype(np.float32), 12, 1)
    for ranks in (1, 2, 3, 4, 6):
        parts = [cut_columns(whole, rank, ranks) for rank in range(ranks)]
        values = np.concatenate([qformats.dequantize(part.read()).numpy() for part in parts], 1)
        assert np.array_equal(values, expected)
    assert [cut_columns(whole, rank, 3).format for rank in range(3)] == ["glm:int4-tp2"] * 3
    assert cut_columns(whole, 1, 4).format == "glm:int4"
    with pytest.raises(ShapeError, match=r"columns that 8 ranks divide evenly .*odd number"):
        cut_columns(whole, 0, 8)
    with pytest.raises(ShapeError, match="that 5 ranks divide evenly"):
        cut_columns(whole, 0, 5)


@pytest.mark.parametrize(("glu", "groups"), [(False, None), (True, 2), (True, 8), (False, 4)])
def test_variants_of_the_layout(tmp_path, glu, groups):
    state = oracle.model(3, glu=glu, groups=groups)
    options = {"glu": "yes" if glu else "no", "heads": "8"}
    if groups:
        options |= {"qkv": "contiguous", "groups": str(groups)}
    top = groups or 8
    sizes = [ranks for ranks in SIZES if ranks <= top]
    for before in sizes:
        source = _save(tmp_path / f"in{before}", state, before, glu=glu, groups=groups)
        model = qformats.open(source, options=options)
        assert model.architecture == ("sat" if groups or not glu else "glm-130b")
        for name, value in state.items():
            assert np.array_equal(model.read(name).numpy(), value.astype(np.float32)), name
    _reshard(source, tmp_path / "out", sizes[1], options=options)
    oracle.same(oracle.load(tmp_path / "out"), oracle.split(state, sizes[1], glu=glu, groups=groups))
    if top < 8:
        with pytest.raises(ConfigError, match=f"divides the {top} key and value heads"):
            _reshard(source, tmp_path / "no", 8, options=options)


@pytest.mark.parametrize("bits", [None, 4, 8])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "qkv: found 'interleaved'; expected contiguous.*Give -O qkv=contiguous"),
        ({"heads": "8"}, "qkv: found 'interleaved'; expected contiguous"),
        ({"qkv": "contiguous", "heads": "8"}, "groups: found None; expected 2,"),
        ({"qkv": "contiguous", "heads": "8", "groups": "4"}, "groups: found 4; expected 2,"),
    ],
)
def test_options_that_would_mix_queries_with_keys(tmp_path, options, message, bits):
    """Every shape would fit; the columns of attention.dense tell that the rows are others."""
    state = oracle.model(3, groups=2)
    state = state if bits is None else oracle.quantize(state, bits)
    source = _save(tmp_path / "in", state, 2, groups=2)
    with pytest.raises(ConfigError, match=message):
        qformats.open(source, options=options)
    with pytest.raises(ConfigError, match=message):
        _reshard(source, tmp_path / "out", 1, options=options)
    if bits is None:
        right = {"qkv": "contiguous", "heads": "8", "groups": "2"}
        qformats.export(qformats.open(source, options=right), tmp_path / "hf", format="dense:f16")
        # Heads are in the configuration now, and how they lie still is not.
        with pytest.raises(ConfigError, match=message):
            _reshard(tmp_path / "hf", tmp_path / "out", 2, options=options)
        _reshard(tmp_path / "hf", tmp_path / "right", 2, options=right)
        oracle.same(oracle.load(tmp_path / "right"), oracle.split(state, 2, groups=2))
    assert not (tmp_path / "out").exists()


def test_odd_numbers_of_ranks(tmp_path, state):
    """Heads, rows and columns must divide; which of them does not is told."""
    source = _save(tmp_path / "in", state, 1)
    for ranks in ("3", "5", "16"):
        with pytest.raises(ConfigError, match="a number that divides the 8 heads"):
            _reshard(source, tmp_path / "out", ranks)
    for ranks in ("0", "-1", "two", "1e3", "9999999999"):
        with pytest.raises(ConfigError, match=r"tensor-parallel.*whole number"):
            _reshard(source, tmp_path / "out", ranks)
    with pytest.raises(ConfigError, match="at most 1024"):
        _reshard(source, tmp_path / "out", 2048, options={})
    assert not (tmp_path / "out").exists()


def test_columns_must_divide_into_whole_bytes(tmp_path):
    """8 heads over 8 ranks, but 24 columns of inner size: 3 a rank, which int4 cannot cut."""
    state = oracle.model()
    for name in list(state):
        if "dense_4h_to_h.weight" in name:
            state[name] = state[name][:, :24].copy()
        if "dense_h_to_4h" in name:
            state[name] = state[name][:48].copy()
    source = _save(tmp_path / "in", oracle.quantize(state, 4), 1)
    with pytest.raises(
        ShapeError, match=r"dense_4h_to_h.*8 ranks divide evenly \(3 columns are an odd number"
    ):
        _reshard(source, tmp_path / "out", 8, format="glm:int4")
    _reshard(source, tmp_path / "out", 4, format="glm:int4")
    plain = _save(tmp_path / "plain", state, 1)
    _reshard(plain, tmp_path / "eight", 8)
    oracle.same(oracle.load(tmp_path / "eight"), oracle.split(state, 8))


def test_heads_must_be_known_to_divide_them(tmp_path, state):
    without = {name: value for name, value in state.items() if "inv_freq" not in name}
    source = _save(tmp_path / "in", without, 2)
    _reshard(source, tmp_path / "fewer", 1)
    with pytest.raises(ConfigError, match="number of attention heads"):
        _reshard(source, tmp_path / "out", 4)
    with pytest.raises(ConfigError, match="divides the 6 heads"):
        _reshard(source, tmp_path / "out", 4, options={"heads": "6"})
    _reshard(source, tmp_path / "out", 4, options={"heads": "8"})
    oracle.same(oracle.load(tmp_path / "out"), oracle.split(without, 4))
    oracle.model_config(source, num_attention_heads=8, model_parallel_size=2, model_class="GLM130B")
    _reshard(source, tmp_path / "told", 8)
    config = json.loads((tmp_path / "told" / "model_config.json").read_text())
    assert config == {"num_attention_heads": 8, "model_parallel_size": 8, "model_class": "GLM130B"}
    with pytest.raises(ConfigError, match="heads: found 4; expected 8"):
        qformats.open(source, options={"heads": "4"})


def test_width_of_codes_without_a_hidden_size(tmp_path, state):
    """Nothing but the bytes of a row tells bits, if no vector tells the hidden size."""
    bare = {n: v for n, v in oracle.quantize(state, 4).items() if v.ndim == 2 or "_scale" in n}
    source = _save(tmp_path / "in", bare, 2)
    with pytest.raises(CheckpointError, match=r"unknown width.*-O bits=4"):
        qformats.open(source)
    model = qformats.open(source, options={"bits": "4"})
    assert model.tensors["transformer.layers.0.attention.dense.weight"].shape == (32, 32)
    full = _save(tmp_path / "full", oracle.quantize(state, 4), 2)
    with pytest.raises(ConfigError, match="bits: found 8; expected 4"):
        qformats.open(full, options={"bits": "8"})
    with pytest.raises(ConfigError, match="bits: found 5; expected 4 or 8"):
        qformats.open(full, options={"bits": "5"})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scales_of_other_dtypes(tmp_path, state, dtype):
    import torch

    parts = oracle.split(oracle.quantize(state, 8), 2)
    (tmp_path / "in" / "1").mkdir(parents=True)
    (tmp_path / "in" / "latest").write_text("1\n")
    for rank, part in enumerate(parts):
        module = {
            name: torch.from_numpy(value).to(getattr(torch, dtype))
            if "_scale" in name
            else torch.from_numpy(value)
            for name, value in part.items()
        }
        torch.save({"module": module}, tmp_path / "in" / "1" / f"mp_rank_{rank:02d}_model_states.pt")
    model = qformats.open(tmp_path / "in")
    format = f"glm:int8-{'f32' if dtype == 'float32' else 'bf16'}"
    assert model.tensors["transformer.layers.1.attention.dense.weight"].format == format
    _reshard(tmp_path / "in", tmp_path / "out", 4, format=format, require_exact=True)
    back = qformats.open(tmp_path / "out")
    for name in model.tensors:
        assert torch.equal(model.read(name), back.read(name)), name


def test_to_a_folder_of_hugging_face_and_back(tmp_path, state):
    source = _save(tmp_path / "in", state, 4)
    qformats.export(source, tmp_path / "hf", format="dense:f16")
    from safetensors.numpy import load_file

    found = load_file(tmp_path / "hf" / "model.safetensors")
    assert sorted(found) == sorted(state)
    assert all(np.array_equal(found[name], value) for name, value in state.items())
    options = {"tensor-parallel": "2"}
    qformats.export(tmp_path / "hf", tmp_path / "out", format="glm:int8", container="sat", options=options)
    expected = [oracle.quantize(part, 8) for part in oracle.split(state, 2)]
    oracle.same(oracle.load(tmp_path / "out"), expected)
    assert (tmp_path / "out" / "latest").read_text() == "1"


def test_exports_of_quantized_models_stay_in_rank_folders(tmp_path, state):
    source = _save(tmp_path / "in", state, 4)
    qformats.export(source, tmp_path / "out", format="glm:int4")
    expected = [oracle.quantize(part, 4) for part in oracle.split(state, 4)]
    oracle.same(oracle.load(tmp_path / "out"), expected)


def test_command_keeps_formats_by_default(tmp_path, state, capsys, per_rank):
    plain = _save(tmp_path / "plain", state, 4)
    done = call(capsys, "reshard", plain, tmp_path / "two", "--tensor-parallel", "2")
    assert (done.code, done.err) == (0, "")
    oracle.same(oracle.load(tmp_path / "two"), oracle.split(state, 2))
    source, parts = per_rank
    done = call(capsys, "reshard", source, tmp_path / "same", "-p", "4", "--require-exact", "--json")
    assert done.code == 0
    assert json.loads(done.out)["format"] == "glm:int4"
    oracle.same(oracle.load(tmp_path / "same"), parts)
    done = call(capsys, "reshard", source, tmp_path / "no", "-p", "1", "--require-exact")
    assert done.code == 3
    assert "attention.dense.weight" in done.err
    done = call(capsys, "reshard", source, tmp_path / "no", "-p", "1", "--dry-run")
    assert done.code == 0
    assert "Nothing was written" in done.out
    assert not (tmp_path / "no").exists()
    done = call(capsys, "reshard", plain, tmp_path / "eight", "-p", "8", "--format", "glm:int8")
    assert done.code == 0
    oracle.same(
        oracle.load(tmp_path / "eight"), [oracle.quantize(part, 8) for part in oracle.split(state, 8)]
    )


def test_command_keeps_tensors_that_are_in_another_format(tmp_path, state, capsys):
    """One layer in int8, the rest plain: each stays what it is."""
    packed = oracle.quantize(state, 8)
    mixed = {n: v for n, v in packed.items() if ".layers.1." in n}
    mixed = {
        n: mixed.get(n, v) for n, v in (state | {n: v for n, v in mixed.items() if "_scale" in n}).items()
    }
    source = _save(tmp_path / "in", mixed, 2)
    done = call(capsys, "reshard", source, tmp_path / "out", "-p", "4", "--require-exact")
    assert done.code == 0, done.err
    oracle.same(oracle.load(tmp_path / "out"), oracle.split(mixed, 4))


def test_command_refuses_what_is_not_divided(tmp_path, capsys):
    done = call(capsys, "reshard", "demo", tmp_path / "out", "-p", "2")
    assert done.code == 3
    assert "a container that is divided over ranks: sat" in done.err


def test_command_replaces_its_own_output_only_when_forced(tmp_path, state, capsys):
    source = _save(tmp_path / "in", state, 2)
    for args, code in (((), 0), ((), 4), (("--force",), 0)):
        done = call(capsys, "reshard", source, tmp_path / "out", "-p", "4", *args)
        assert done.code == code, done.err
    oracle.same(oracle.load(tmp_path / "out"), oracle.split(state, 4))


def test_two_exports_are_the_same_bytes(tmp_path, state):
    source = _save(tmp_path / "in", state, 2)
    for name in ("a", "b"):
        _reshard(source, tmp_path / name, 4, format="glm:int4", workers=1 if name == "a" else 2)
    for file in sorted((tmp_path / "a" / "49300").iterdir()):
        assert file.read_bytes() == (tmp_path / "b" / "49300" / file.name).read_bytes()


def test_folders_of_transformers_are_left_to_their_loader(tmp_path, state):
    """Training with DeepSpeed leaves such files beside a model, too."""
    from qformats_glm.ranks import RankFolder

    source = _save(tmp_path / "in", state, 2)
    loader = RankFolder()
    assert loader.detect(source)
    assert loader.detect(source / "49300")
    assert not loader.detect(tmp_path)
    assert not loader.detect(source / "latest")
    (source / "config.json").write_text("{}")
    assert not loader.detect(source)


# Mixins of SwissArmyTransformer's models


def _llama():
    """As SwissArmyTransformer's LLaMA is: no gate in dense_h_to_4h, one beside it, and an output layer."""
    random = np.random.default_rng(7)
    state = oracle.model(3, glu=False, groups=8)
    for layer in range(oracle.LAYERS):
        name = f"mixins.mlp.gate_proj.{layer}.weight"
        state[name] = random.standard_normal((oracle.INNER, oracle.HIDDEN)).astype(np.float16)
    for name in ("mixins.lm.lm_head.weight", "transformer.position_embeddings.weight"):
        state[name] = random.standard_normal((oracle.VOCABULARY, oracle.HIDDEN)).astype(np.float16)
    return state


@pytest.mark.parametrize("before", [1, 2, 4])
def test_gates_and_output_layers_in_mixins(tmp_path, before):
    state = _llama()
    source = _save(tmp_path / "in", state, before, glu=False, groups=8)
    model = qformats.open(source, options={"heads": "8"})
    for name, value in state.items():
        assert np.array_equal(model.read(name).numpy(), value.astype(np.float32)), name
    _reshard(source, tmp_path / "out", 8, options={"heads": "8"})
    oracle.same(oracle.load(tmp_path / "out"), oracle.split(state, 8, glu=False, groups=8))


def test_options_cannot_contradict_a_gate_in_a_mixin(tmp_path):
    source = _save(tmp_path / "in", _llama(), 2, glu=False, groups=8)
    for options, told in (({"glu": "yes"}, "glu: found 'yes'"), ({"qkv": "interleaved"}, "qkv: found")):
        with pytest.raises(ConfigError, match=told):
            qformats.open(source, options={"heads": "8"} | options)


def test_the_gate_of_chatglm2_is_not_divided(tmp_path):
    state = oracle.model(3, glu=False, groups=2)
    state["mixins.mlp.w2.0.weight"] = state["transformer.layers.0.mlp.dense_h_to_4h.weight"]
    state["mixins.chatglm-final.lm_head.weight"] = state["transformer.word_embeddings.weight"]
    options = {"heads": "8", "groups": "2"}
    source = _save(tmp_path / "in", state, 1, glu=False, groups=2)
    assert np.array_equal(
        qformats.open(source, options=options).read("mixins.mlp.w2.0.weight").numpy(),
        state["mixins.mlp.w2.0.weight"].astype(np.float32),
    )
    with pytest.raises(ConfigError, match="tensor-parallel: found 2; expected 1"):
        _reshard(source, tmp_path / "out", 2, options=options)
    with pytest.raises(CheckpointError, match="2 ranks"):
        qformats.open(_save(tmp_path / "two", state, 2, glu=False, groups=2), options=options)


def test_other_mixins_are_refused_by_name(tmp_path):
    state = oracle.model(3) | {"mixins.eva.linear.weight": np.zeros((4, 4), np.float16)}
    with pytest.raises(UnsupportedModelError, match=r"mixins\.eva\.linear\.weight"):
        qformats.open(_save(tmp_path / "in", state, 1))
