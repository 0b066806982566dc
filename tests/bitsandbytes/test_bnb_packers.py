"""Packers: round trips, slices, descriptions, double quantization, what can be held and what cannot."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qformats
from qformats import GridParams, PackedTensor, QuantizedTensor
from qformats.errors import ConfigError, NonFiniteError, NotExactError, ShapeError, UnknownFormatError
from qformats.exact import Answer
from qformats.interfaces.rows import cut
from qformats_bitsandbytes import nested
from qformats_bitsandbytes.family import BitsAndBytes
from qformats_bitsandbytes.grids import row_maxima
from qformats_bitsandbytes.quant_state import KEY, LENGTH, QuantState

FOUR_BIT = ["nf4", "fp4", "nf4-dq", "fp4-dq", "nf4-bs32", "fp4-bs4096-f16", "nf4-dq-bs128-bf16", "nf4-f32"]
VARIANTS = [*FOUR_BIT, "int8"]
SHAPES = [(24, 256), (5, 100), (3, 37), (1, 1), (70, 1), (1, 4099)]


def _packer(variant):
    return qformats.packer(f"bitsandbytes:{variant}")


def _weight(*shape, seed=0, dtype=torch.float32):
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.02).to(dtype)


def _bytes(tensor):
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _assert_same(one, other, but=()):
    assert one.fields.keys() == other.fields.keys()
    for name, field in one.fields.items():
        assert field.dtype == other.fields[name].dtype, name
        if name not in but:
            assert _bytes(field) == _bytes(other.fields[name]), name


def _state(packed):
    ((name, field),) = ((name, field) for name, field in packed.fields.items() if name.startswith(KEY))
    return bytes(field.numpy()), name.removeprefix(KEY)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_round_trip(variant, shape, dtype):
    packer, weight = _packer(variant), _weight(*shape, dtype=dtype)
    if packer.veto(shape):
        assert "not a whole number of" in packer.veto(shape)
        return
    before = weight.clone()
    quantized = qformats.quantize(weight, packer.name)
    packed = qformats.pack(quantized, packer.name)
    own = packer.encode_reference(weight)
    # Codes and scales do not tell what the weight was before.
    _assert_same(packed, own, but=[name for name in packed.fields if name.startswith(KEY)])
    fields = {name: (tuple(f.shape), str(f.dtype)) for name, f in own.fields.items()}
    names = {"u8": "uint8", "i8": "int8", "f32": "float32", "f16": "float16", "bf16": "bfloat16"}
    assert fields == {k: (s, f"torch.{names[d]}") for k, (s, d) in packer.stored(shape).items()}
    again = qformats.unpack(packed)
    assert torch.equal(again.codes, quantized.codes)
    assert torch.equal(again.scale, quantized.scale)
    assert again.block_size == quantized.block_size
    packer.grid.validate(again)
    _assert_same(packer.pack(again), packed)
    assert torch.equal(qformats.dequantize(own), quantized.dequantize())
    assert torch.equal(weight, before)


def test_blocks_follow_rows_where_they_can():
    assert qformats.quantize(_weight(4, 128), "bitsandbytes:nf4").block_size == (1, 64)
    straddling = qformats.quantize(_weight(4, 100), "bitsandbytes:nf4")
    assert straddling.block_size == (0, 64)
    assert straddling.scale.shape == (7,)


@pytest.mark.parametrize(
    ("variant", "text"),
    [
        ("nf4", '{"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [6, 100]}'),
        ("fp4-bs128", '{"quant_type": "fp4", "blocksize": 128, "dtype": "bfloat16", "shape": [6, 100]}'),
    ],
)
def test_description(variant, text, bnb):
    packed = _packer(variant).encode_reference(_weight(6, 100, dtype=torch.bfloat16))
    data, kind = _state(packed)
    assert len(data) == LENGTH
    assert data.decode().rstrip() == text
    dense, block = _weight(6, 100, dtype=torch.bfloat16), _packer(variant).block_size
    _, state = bnb.functional.quantize_4bit(dense, quant_type=kind, blocksize=block)
    theirs = state.as_dict(packed=True)[f"quant_state.bitsandbytes__{kind}"]
    assert bytes(theirs.numpy()).decode() == text


def test_the_longest_description_fits():
    largest = (1 << 62) - 1
    for offset in (None, -1.401298464324817e-45, -1.1754943508222875e-38, 3.4028234663852886e38):
        state = QuantState("nf4", 4096, "bf16", (largest, largest), offset)
        text = state.to_bytes()
        assert len(text) == LENGTH
        assert len(text.rstrip()) < LENGTH
        assert QuantState.parse(text, "nf4") == state


@pytest.mark.parametrize("variant", FOUR_BIT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_bitsandbytes_reads_it(variant, dtype, bnb):
    packed = _packer(variant).encode_reference(_weight(48, 192, dtype=dtype))
    stats = {name.removeprefix("weight."): f for name, f in packed.fields.items() if name != "weight"}
    state = bnb.functional.QuantState.from_dict(stats, device=torch.device("cpu"))
    assert state.shape == (48, 192)
    assert state.dtype == dtype
    values = bnb.decode(packed.fields["weight"], state)
    assert torch.equal(values, packed.dequantize().to(dtype))


@pytest.mark.parametrize("variant", ["nf4", "fp4", "nf4-bs256"])
def test_slices(variant):
    packer = _packer(variant)
    for shape in ((12, 96), (9, 100), (40, 64), (33, 8)):
        step, weight = packer.row_step(shape), _weight(*shape)
        assert step == packer.block_size // math.gcd(shape[1], packer.block_size)
        whole = packer.encode_reference(weight)
        fixed = packer.fixed(shape, "f32")
        for start in range(0, shape[0], step):
            stop = min(shape[0], start + 2 * step)
            part = packer.encode_reference(weight[start:stop])
            rows = cut(whole, start, stop)
            assert rows.shape == part.shape
            for name, field in whole.fields.items():
                if name in fixed:
                    assert _bytes(fixed[name]) == _bytes(field) == _bytes(rows.fields[name])
                    continue
                first, last = packer.span(name, shape, start, stop)
                assert _bytes(field)[first:last] == _bytes(part.fields[name]) == _bytes(rows.fields[name])
            assert torch.equal(packer.dequantize(rows), packer.dequantize(part))


def test_slices_of_int8():
    packer, weight = _packer("int8"), _weight(7, 30)
    whole = packer.encode_reference(weight)
    assert packer.row_step((7, 30)) == 1
    _assert_same(cut(whole, 2, 5), packer.encode_reference(weight[2:5]))


def test_quantized_scales_need_the_whole_tensor():
    packer = _packer("nf4-dq")
    assert packer.row_step((8, 64)) == 0
    assert set(packer.fixed((8, 64), "f32")) == {"weight.quant_map", "weight.nested_quant_map"}
    assert packer.row_packer((8, 64)).name == "bitsandbytes:nf4"
    assert packer.row_packer((8, 60)) is None
    assert _packer("nf4").row_packer((8, 64)).name == "bitsandbytes:nf4"


@pytest.mark.parametrize("count", [1, 2, 64, 256, 257, 5000, 81920])
def test_double_quantization_by_the_processor_s_rule(count, bnb):
    """Bytes of bitsandbytes, also its mean; the nearest code differs from them by one, seldom."""
    scale = torch.rand(count, generator=torch.Generator().manual_seed(count)) * 0.1
    codes, state = bnb.functional.quantize_blockwise(scale - scale.mean(), blocksize=256)
    ours = nested.double_quantize(scale, "bnb-cpu")
    assert torch.equal(ours.codes, codes)
    assert torch.equal(ours.absmax, state.absmax)
    assert torch.equal(ours.table, state.code)
    decoded = bnb.functional.dequantize_blockwise(codes, state)
    decoded += scale.mean()
    assert torch.equal(ours.decode(), decoded)


@pytest.mark.parametrize("count", [2, 300, 20000])
def test_double_quantization_to_the_nearest(count, bnb):
    scale = torch.rand(count, generator=torch.Generator().manual_seed(count)) * 0.1
    ours = nested.double_quantize(scale)
    assert ours.offset == float(np.float32(scale.double().mean()))
    # Every other code is at least as far away.
    rest = (scale - ours.offset).double()
    spread = ours.absmax.double().repeat_interleave(256)[:count]
    away = (ours.table.double() * spread[:, None] - rest[:, None]).abs()
    chosen = away.gather(1, ours.codes.long()[:, None])[:, 0]
    assert bool((chosen <= away.amin(1) + 1e-7 * spread).all())
    other = nested.double_quantize(scale, "bnb-cpu")
    assert int((ours.codes.int() - other.codes.int()).abs().max()) <= 1
    assert (ours.codes != other.codes).float().mean() <= 0.02


def test_equal_scales_survive_double_quantization():
    for value in (0.0, 1.5, 1e-40, 3e38):
        scale = torch.full((300,), value)
        assert torch.equal(nested.double_quantize(scale).decode(), scale)
    with pytest.raises(ConfigError, match=r"bnb-gpu.*nearest or bnb-cpu"):
        nested.double_quantize(torch.ones(3), "bnb-gpu")


def test_scales_ride_along():
    """What was unpacked packs into the same bytes, though the scales alone would not tell them."""
    packer = _packer("nf4-dq")
    packed = packer.encode_reference(_weight(64, 256))
    canonical = packer.unpack(packed)
    _assert_same(packer.pack(canonical), packed)
    bare = QuantizedTensor(
        canonical.codes, canonical.scale, canonical.block_size, codebook=canonical.codebook
    )
    with pytest.raises(NotExactError, match="double quantization would change the scales"):
        packer.represent(bare)
    with pytest.raises(ConfigError, match="double quantization changes"):
        qformats.pack(bare, packer.name)
    with pytest.raises(ConfigError, match="double quantization changes"):
        packer.pack(bare)
    # Rows in another order are other scales.
    with pytest.raises(NotExactError):
        packer.represent(canonical.take_rows(torch.arange(63, -1, -1)))


def _values_equal(one, other):
    return bool((one.dequantize() == other.dequantize()).all())


@pytest.mark.parametrize(
    ("source", "target", "shape", "answer"),
    [
        ("nf4-dq", "nf4", (16, 256), Answer.ALWAYS),
        ("nf4", "nf4-bs32", (16, 256), Answer.ALWAYS),
        ("nf4", "nf4-bs32", (9, 100), Answer.ALWAYS),
        ("fp4-bs256", "fp4", (16, 256), Answer.ALWAYS),
        ("fp4-dq-bs4096", "fp4-bs32-f16", (7, 100), Answer.ALWAYS),
        ("nf4", "nf4-bf16", (16, 256), Answer.ALWAYS),
    ],
)
def test_what_is_always_exact(source, target, shape, answer):
    source, target = _packer(source), _packer(target)
    assert target.foresee(source, shape)[0] is answer
    canonical = source.unpack(source.encode_reference(_weight(*shape)))
    held = target.represent(canonical)
    target.grid.validate(held)
    packed = target.pack(held)
    assert torch.equal(packed.dequantize(), canonical.dequantize())


@pytest.mark.parametrize(
    ("source", "target", "answer", "reason"),
    [
        ("nf4", "nf4-bs128", Answer.DATA, "scale"),
        ("nf4", "nf4-dq", Answer.DATA, "double quantization"),
        ("nf4", "fp4", Answer.NEVER, "table"),
        ("nf4", "int8", Answer.NEVER, "equally spaced"),
    ],
)
def test_what_is_not(source, target, answer, reason):
    source, target = _packer(source), _packer(target)
    foreseen, why = target.foresee(source, (16, 256))
    assert (foreseen, reason in why) == (answer, True), why
    canonical = source.unpack(source.encode_reference(_weight(16, 256)))
    with pytest.raises(NotExactError):
        target.represent(canonical)


def test_merged_blocks_of_equal_scales():
    weight = _weight(16, 256)
    weight[:, ::64] = 0.5
    canonical = qformats.quantize(weight, "bitsandbytes:nf4")
    held = _packer("nf4-bs128-bf16").represent(canonical)
    assert held.scale.shape == (16, 2)
    assert _values_equal(held, canonical)
    # All scales are equal: double quantization gives them back.
    held = _packer("nf4-dq").represent(canonical)
    assert torch.equal(_packer("nf4-dq").pack(held).dequantize(), canonical.dequantize())


def test_ternary_weights_become_fp4():
    """Levels -2, -1, 0, 1 are 1, 1/2, 0 and -1/2 times another scale."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 4, (8, 128), generator=generator, dtype=torch.uint8)
    scale = torch.rand(8, 2, generator=generator)
    source = QuantizedTensor(codes, scale, (1, 64), zero_point=2)
    held = _packer("fp4").represent(source)
    assert _values_equal(held, source)
    assert torch.equal(_packer("fp4").pack(held).dequantize(), source.dequantize())
    with pytest.raises(NotExactError):
        _packer("fp4").represent(QuantizedTensor(codes * 3, scale, (1, 64), zero_point=7))


def test_the_second_zero_of_fp4():
    """Other writers use it; it has the same value."""
    packer = _packer("fp4")
    packed = packer.encode_reference(torch.ones(2, 64))
    packed.fields["weight"].fill_(0x80)
    assert bool((packed.dequantize() == 0).all())
    canonical = packed.unpack()
    packer.grid.validate(canonical)
    assert bool((canonical.dequantize() == 0).all())
    assert bool((packer.pack(canonical).fields["weight"] == 0).all())


def test_int8_scales_are_127ths():
    """For every mantissa: what is stored gives the scale back, and a float16 that was stored is found again."""
    grid = _packer("int8").grid
    for first in range(0, 1 << 23, 1 << 20):
        scale = torch.arange(first, first + (1 << 20), dtype=torch.int32).add(0x3C000000).view(torch.float32)
        stored = grid.storable(scale)
        assert torch.equal(grid.storable(stored), stored)
        assert torch.equal(row_maxima(stored) / 127.0, stored)
        off = stored != scale
        # Those that are no quotient have none beside the nearest one either.
        for step in (-1, 1):
            beside = (scale * 127.0).view(torch.int32).add(step).view(torch.float32)
            assert not bool(((beside / 127.0 == scale) & off).any())
    halves = torch.arange(0, 0x7C00, dtype=torch.int16).view(torch.float16).float()
    assert torch.equal(row_maxima(halves / 127.0), halves)


def test_glm_scales_become_int8():
    """Float16 steps times 127 are exact, and so is the way back."""
    steps = torch.arange(1, 0x7C00, dtype=torch.int16).view(torch.float16)
    codes = torch.arange(256, dtype=torch.uint8).expand(len(steps), -1)[:, :4]
    source = QuantizedTensor(codes, steps[:, None], (1, 4), zero_point=128)
    packer = _packer("int8")
    packed = packer.pack(packer.represent(source))
    assert torch.equal(packed.fields["SCB"], steps.float() * 127)
    assert torch.equal(packed.dequantize(), source.dequantize())


def test_int8_scales_that_are_no_127th_are_refused():
    grid = _packer("int8").grid
    scale = torch.arange(1 << 12, dtype=torch.int32).add(0x3C080000).view(torch.float32)
    off = scale[grid.storable(scale) != scale]
    assert len(off)
    codes = torch.arange(256, dtype=torch.uint8).expand(len(off), -1)
    source = QuantizedTensor(codes, off[:, None], (1, 256), zero_point=128)
    with pytest.raises(NotExactError, match="scales cannot be stored in this format, such as 0"):
        _packer("int8").represent(source)
    with pytest.raises(ConfigError, match="scale"):
        qformats.pack(source, "bitsandbytes:int8")
    projected = grid.project(GridParams(source.scale))
    grid.validate(grid.quantized(codes, projected))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 150),
    kind=st.sampled_from(["nf4", "fp4", "int8", "nf4-dq"]),
    exponent=st.integers(-30, 10),
    seed=st.integers(0, 1000),
)
def test_any_shape(rows, columns, kind, exponent, seed):
    packer = _packer(kind)
    weight = _weight(rows, columns, seed=seed) * 2.0**exponent
    packed = packer.encode_reference(weight)
    canonical = packer.unpack(packed)
    packer.grid.validate(canonical)
    assert torch.equal(packed.dequantize(), canonical.dequantize())
    _assert_same(packer.pack(packer.represent(canonical)), packed)


@pytest.mark.parametrize("variant", ["nf4", "fp4", "nf4-dq"])
def test_importance_lowers_the_weighted_error(variant):
    packer, weight = _packer(variant), _weight(6, 100)
    importance = torch.rand(100, generator=torch.Generator().manual_seed(1)) ** 4
    plain = packer.grid.quantize(weight)
    fitted = packer.grid.quantize(weight, importance)
    packer.grid.validate(fitted)

    def loss(quantized):
        return float((importance * (quantized.dequantize() - weight).square()).sum())

    assert loss(fitted) < loss(plain)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused(variant, bad):
    weight = torch.zeros(4, 128)
    weight[1, 5] = weight[3, 127] = bad
    for refused in (
        _packer(variant).encode_reference,
        lambda w: qformats.quantize(w, f"bitsandbytes:{variant}"),
    ):
        with pytest.raises(
            NonFiniteError, match=rf"2 of 512 values are not finite; the first is {bad} at index 133"
        ):
            refused(weight)


def test_int8_beyond_float16_is_refused():
    weight = torch.ones(2, 32)
    weight[1, 3] = 1e5
    for refused in (_packer("int8").encode_reference, lambda w: qformats.quantize(w, "bitsandbytes:int8")):
        with pytest.raises(
            NonFiniteError, match=r"1 of 64 values are too large for float16.*100000 at index 35.*Keep"
        ):
            refused(weight)
    # 4-bit formats have float32 scales.
    assert _packer("nf4").encode_reference(weight).dequantize()[1, 3] == 1e5


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", [(64,), (2, 3, 64), (0, 64), (4, 0), ()])
def test_other_shapes_are_refused(variant, shape):
    packer = _packer(variant)
    assert packer.veto(shape)
    with pytest.raises(ShapeError):
        packer.encode_reference(torch.zeros(shape))
    if len(shape) == 3:
        assert "experts" in packer.veto(shape)


def test_storage_without_remainder():
    assert _packer("nf4-f32").veto((4, 64)) is None
    assert "not a whole number of f32" in _packer("nf4-f32").veto((1, 9))
    assert "not a whole number of bf16" in _packer("nf4-bf16").veto((1, 10))


@pytest.mark.parametrize("variant", VARIANTS)
def test_fields_of_another_shape_are_refused(variant):
    packer = _packer(variant)
    packed = packer.encode_reference(_weight(16, 256))
    for name, field in packed.fields.items():
        wrong = field.reshape(-1).repeat(2)
        for fields in ({**packed.fields, name: wrong}, {k: v for k, v in packed.fields.items() if k != name}):
            broken = PackedTensor(packed.packer, packed.shape, fields)
            for read in (packer.unpack, packer.dequantize):
                with pytest.raises(ShapeError):
                    read(broken)


def test_names():
    names = [
        packer.name for packer in map(_packer, ["NF4", "nf4-bs64", "nf4-u8", "nf4-bf16-dq-bs128", "int8"])
    ]
    assert names == [
        "bitsandbytes:nf4",
        "bitsandbytes:nf4",
        "bitsandbytes:nf4",
        "bitsandbytes:nf4-dq-bs128-bf16",
        "bitsandbytes:int8",
    ]
    assert qformats.packer("bitsandbytes").name == "bitsandbytes:nf4"
    for wrong in ("nf5", "nf4-bs16", "nf4-dq-dq", "int8-dq", "nf4-bs32-bs64", "nf4-", "nf4-f64"):
        with pytest.raises(UnknownFormatError):
            _packer(wrong)


@pytest.mark.parametrize("variant", VARIANTS)
def test_configuration_is_that_of_transformers(variant):
    from transformers import BitsAndBytesConfig

    packer = _packer(variant)
    written = BitsAndBytes().to_config(packer, dense_modules=["model.layers.0.mlp.up_proj"], dtype="bfloat16")
    assert list(written) == sorted(written)
    read = BitsAndBytesConfig.from_dict(json.loads(json.dumps(written)))
    theirs = read.to_dict() | {"quant_method": read.quant_method.value}
    assert {key: str(theirs[key]) for key in written} == {key: str(value) for key, value in written.items()}
    assert len(written) == 13
    assert written["llm_int8_skip_modules"] == ["model.layers.0.mlp.up_proj", "lm_head"]
    assert BitsAndBytes().to_config(packer)["llm_int8_skip_modules"] is None
    found = BitsAndBytes().detect(written)
    wanted = variant.replace("-bs128", "").replace("-bs32", "").replace("-bs4096", "")
    assert found.name == f"bitsandbytes:{wanted}"


def test_detection():
    detect = BitsAndBytes().detect
    assert detect({"quant_method": "gptq"}) is None
    assert detect({}) is None
    assert detect({"load_in_4bit": True}).name == "bitsandbytes:nf4"
    assert detect({"load_in_8bit": True, "quant_method": "bitsandbytes"}).name == "bitsandbytes:int8"
    assert detect({"quant_method": "bitsandbytes", "bnb_4bit_quant_type": 3}).name == "bitsandbytes:nf4"
    with pytest.raises(ConfigError, match="load_in_8bit"):
        detect({"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": True})


@pytest.mark.parametrize("format", ["nf4", "fp4", "nf4-dq", "fp4-bs128"])
def test_the_way_without_kernels_gives_the_same_bytes(format):
    """What runs on devices other than a CPU."""
    packer = _packer(format)
    weight = torch.randn(24, 256, generator=torch.Generator().manual_seed(7)).to(torch.bfloat16)
    weight[3], weight[4, :64] = 0, 1e-30
    compiled, plain = packer.encode_reference(weight), packer._encode_by_grid(weight)
    assert compiled.fields.keys() == plain.fields.keys()
    for name, value in compiled.fields.items():
        assert torch.equal(value, plain.fields[name]), name
