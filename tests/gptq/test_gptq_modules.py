"""Modules as other programs write them, and as nobody should."""

import warnings

import pytest
import torch
from gptq.cases import BITS, located, name, weights

import qformats
from qformats.errors import ConfigError
from qformats.interfaces.family import ModuleFields
from qformats.numbers.dtypes import dtype_name
from qformats_gptq.family import GPTQFamily
from qformats_gptq.zeros import constant_words, pack_zeros, unpack_zeros

CONFIG = {"bits": 4, "group_size": 32, "sym": True, "desc_act": False, "checkpoint_format": "gptq"}


def fields_of(quantized, variant):
    return dict(qformats.pack(quantized, variant).fields)


def without(fields, *names):
    return {key: value for key, value in fields.items() if key not in names}


def around_zero(bits, group, shape=(64, 192)):
    """A weight as models have them, in the asymmetric format, and as version 1 stores it."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(7)) * 0.02
    # A weight of each sign in every group, so that no zero point is 0.
    weight[:, ::16], weight[:, 1::16] = -0.05, 0.05
    packed = qformats.packer(name(bits, group, False)).encode_reference(weight)
    zero = unpack_zeros(packed.fields["qzeros"], bits, "gptq_v2")
    assert int(zero.min()) > 0
    return packed, {**packed.fields, "qzeros": pack_zeros(zero, bits, "gptq")}


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group", [0, 32, 128])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("permuted", [True, False])
def test_tensors_are_believed_before_the_configuration(bits, group, symmetric, permuted):
    permuted = permuted and group > 0
    variant = name(bits, group, symmetric, permuted)
    fields = fields_of(weights(bits, group, (32, 256), symmetric, permuted), variant)
    version = "gptq" if symmetric else "gptq_v2"
    for config in (
        {"bits": 4, "group_size": 64, "checkpoint_format": version},
        {"bits": "8", "q_group_size": 0, "format": version, "desc_act": True},
        {"w_bit": 3, "method": "gptq", "checkpoint_format": version, "group_size": None},
    ):
        with warnings.catch_warnings():
            # Random zero points are not those of weights around zero.
            warnings.filterwarnings("ignore", "GPTQ weights are far from zero")
            found, shape, packed = located(fields, config)
        assert (found, shape) == (variant, (32, 256))
        assert all(torch.equal(packed.fields[field], value) for field, value in fields.items())


def test_the_width_of_a_row_for_the_whole_row():
    fields = fields_of(weights(4, 0), "gptq:4bit--1g")
    for size in (-1, 0, None, 4096, 192):
        found, _, packed = located(fields, {**CONFIG, "group_size": size})
        assert found == ("gptq:4bit--1g" if size in (-1, 0, None) else f"gptq:4bit-{size}g")
        assert torch.equal(packed.dequantize(), weights(4, 0).dequantize())
    # Rows of another width: the first declared 4096 for all of them.
    fields = fields_of(weights(4, 0, (32, 8192)), "gptq:4bit--1g")
    assert located(fields, {**CONFIG, "group_size": 4096})[0] == "gptq:4bit--1g"


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("group", "columns"), [(128, 1024), (128, 160), (32, 96), (0, 64)])
def test_without_an_order(bits, group, columns):
    """GPTQ-for-LLaMa: no g_idx; and some programs write an empty one."""
    quantized = weights(bits, group, (32, columns))
    fields = fields_of(quantized, name(bits, group))
    config = {"bits": bits, "group_size": group or -1, "sym": True}
    for stored in (
        without(fields, "g_idx"),
        {**fields, "g_idx": torch.empty(0, dtype=torch.int32)},
        {**fields, "g_idx": fields["g_idx"].long()},
        {**fields, "g_idx": fields["g_idx"] - (-(-columns // group) if group else 1)},
    ):
        found, shape, packed = located(stored, config)
        assert (found, shape) == (name(bits, group), (32, columns))
        assert all(torch.equal(packed.fields[field], value) for field, value in fields.items())


def test_groups_that_nothing_declares():
    for group, columns in ((128, 1024), (32, 96), (48, 192), (64, 160)):
        fields = fields_of(weights(4, group, (32, columns)), f"gptq:4bit-{group}g")
        assert located(fields, {"bits": 4, "sym": True})[0] == f"gptq:4bit-{group}g"
        if group in (32, 64, 128):
            assert located(without(fields, "g_idx"), {"bits": 4, "sym": True})[0] == f"gptq:4bit-{group}g"


@pytest.mark.parametrize("bits", BITS)
def test_symmetric_zero_points_stored_the_other_way(bits):
    """They are believed, with a warning: a published model of 27B has such a label."""
    quantized = weights(bits, 32)
    fields = fields_of(quantized, name(bits, 32))
    zero = torch.full((6, 64), 1 << (bits - 1))
    second = {**fields, "qzeros": pack_zeros(zero, bits, "gptq_v2")}
    config = {"bits": bits, "group_size": 32, "sym": True}
    for label, stored in (("gptq", second), ("gptq_v2", fields), (None, second)):
        with pytest.warns(UserWarning, match="is declared: they are read as"):
            found, _, packed = located(stored, {**config, "checkpoint_format": label})
        assert found == name(bits, 32)
        assert torch.equal(packed.fields["qzeros"], fields["qzeros"])
        assert torch.equal(packed.dequantize(), quantized.dequantize())
    assert located(second, {**config, "checkpoint_format": "gptq_v2"})[0] == name(bits, 32)


@pytest.mark.parametrize("bits", BITS)
def test_asymmetric_zero_points_of_both_versions(bits):
    packed, first = around_zero(bits, 32)
    config = {"bits": bits, "group_size": 32, "sym": False}
    for label, stored in (("gptq", first), (None, first), ("gptq_v2", packed.fields)):
        found, _, taken = located(stored, {**config, "checkpoint_format": label})
        assert found == packed.format
        assert all(torch.equal(taken.fields[field], value) for field, value in packed.fields.items())


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_asymmetric_zero_points_stored_the_other_way(bits):
    packed, first = around_zero(bits, 32)
    config = {"bits": bits, "group_size": 32, "sym": False}
    for label, stored in (("gptq", packed.fields), ("gptq_v2", first)):
        with warnings.catch_warnings():
            # As many zero points are stored as the largest code as there are largest codes.
            warnings.filterwarnings("ignore", "GPTQ zero points are stored as")
            with pytest.warns(UserWarning, match=f"'{label}' says; they are still read so"):
                located(dict(stored), {**config, "checkpoint_format": label})
    own = qformats.packer(packed.format)
    assert torch.equal(
        own.reading_as("gptq").from_stored(first, packed.shape).dequantize(), packed.dequantize()
    )


@pytest.mark.parametrize("bits", BITS)
def test_a_folder_without_any_declaration(bits):
    """The user names the format; how zero points are stored the weights tell."""
    # The mean of 8-bit codes is sharp enough in large weights only.
    packed, first = around_zero(bits, 64, (512, 1024))
    for stored in (packed.fields, first):
        described = {f: (tuple(v.shape), dtype_name(v.dtype)) for f, v in stored.items() if f != "g_idx"}
        own, shape = GPTQFamily().locate(
            packed.packer, ModuleFields("m", described, lambda f, stored=stored: stored[f].numpy().tobytes())
        )
        taken = own.from_stored(without(stored, "g_idx"), shape)
        assert all(torch.equal(taken.fields[field], value) for field, value in packed.fields.items())


def test_a_symmetric_label_on_asymmetric_zero_points():
    packed, first = around_zero(4, 32)
    with pytest.warns(UserWarning, match="m is read as asymmetric"):
        found, _, taken = located(first, CONFIG)
    assert found == packed.format
    assert torch.equal(taken.dequantize(), packed.dequantize())
    assert located(first, without(CONFIG, "sym"))[0] == packed.format
    assert located(fields_of(weights(4, 32), "gptq:4bit-32g"), without(CONFIG, "sym"))[0] == "gptq:4bit-32g"


def test_zero_points_of_zero_in_version_1():
    """The three readings of the same words, as measured of the programs that have them."""
    zero = torch.tensor([5, 5, 5, 0, 5, 5, 0, 5] * 4).expand(2, 32)
    borrowed = torch.tensor([4, 4, 4, 15, 3, 4, 15, 3] * 4).expand(2, 32)
    wrapped = torch.tensor([4, 4, 4, 15, 4, 4, 15, 4] * 4).expand(2, 32)
    words = pack_zeros(borrowed, 4, "gptq_v2")
    with pytest.warns(UserWarning, match="convention 'mask'"):
        assert unpack_zeros(words, 4, "gptq")[0, :8].tolist() == [5, 5, 5, 0, 4, 5, 0, 4]
    with pytest.warns(UserWarning, match="convention 'word'"):
        assert torch.equal(unpack_zeros(words, 4, "gptq", "word"), zero.int())
    words = pack_zeros(wrapped, 4, "gptq_v2")
    with pytest.warns(UserWarning, match="convention 'mask'"):
        assert torch.equal(unpack_zeros(words, 4, "gptq"), zero.int())
    with pytest.warns(UserWarning, match="convention 'word'"):
        assert unpack_zeros(words, 4, "gptq", "word")[0, :8].tolist() == [5, 5, 5, 0, 6, 5, 0, 6]
    with pytest.raises(ConfigError, match="16 unless masked"):
        unpack_zeros(words, 4, "gptq", "nomask")
    with pytest.raises(ConfigError, match="codes"):
        pack_zeros(zero, 4, "gptq")
    for wrong in ({"checkpoint_format": "v1"}, {"zeros": "word1"}):
        with pytest.raises(ConfigError):
            GPTQFamily().parse("4bit-32g-asym").reading_as(**wrong)


def test_other_methods_are_not_ours():
    for config in (
        {"quant_method": "awq", "bits": 4, "group_size": 128},
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"w_bit": 4, "q_group_size": 128, "zero_point": True, "version": "GEMM"},
        {},
    ):
        assert GPTQFamily().detect(config) is None
    old = {"bits": 4, "group_size": 128, "damp_percent": 0.01, "desc_act": True, "true_sequential": True}
    assert GPTQFamily().detect(old).name == "gptq:4bit-128g-actorder"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 5}, "bits: found 5"),
        ({"bits": True}, "bits: found True; expected a whole number"),
        ({"bits": [4]}, "bits: found"),
        ({"group_size": -7}, "group_size: found -7"),
        ({"group_size": "many"}, "group_size: found 'many'"),
        ({"sym": "yes"}, "sym: found 'yes'"),
        ({"checkpoint_format": "marlin"}, "checkpoint_format: found 'marlin'"),
        ({"checkpoint_format": "gptq_p"}, "checkpoint_format: found 'gptq_p'"),
        ({"quant_method": "marlin"}, "checkpoint_format: found 'marlin'"),
        ({"is_marlin_format": True}, "checkpoint_format: found 'marlin'"),
        ({"pack_dtype": "int16"}, "pack_dtype: found 'int16'"),
    ],
)
def test_configurations_that_are_not_possible(change, message):
    with pytest.raises(ConfigError, match=message):
        GPTQFamily().detect({"quant_method": "gptq", **CONFIG, **change})


def _bad(fields):
    """Fields that contradict each other, and a part of the sentence that says so."""
    i32 = torch.int32
    yield without(fields, "scales"), "expected qweight, qzeros and scales"
    yield without(fields, "qzeros"), "expected qweight, qzeros and scales"
    yield {"qzeros": fields["qzeros"]}, "found only qzeros"
    yield {**fields, "qweight": fields["qweight"].float()}, "qweight of m: found f32"
    yield {**fields, "qweight": fields["qweight"][0]}, "qweight of m"
    yield {**fields, "qweight": fields["qweight"][:, :0]}, "qweight of m"
    yield {**fields, "qweight": fields["qweight"][:-1]}, "of the 192 columns in g_idx"
    yield {**fields, "qweight": fields["qweight"][:, :-1]}, "multiples of 32"
    yield {**fields, "scales": fields["scales"][:, :32]}, "scales of m"
    yield {**fields, "scales": fields["scales"][:5]}, "qzeros of m"
    yield {**fields, "scales": fields["scales"].double()}, "scales of m: found f64"
    yield {**fields, "qzeros": fields["qzeros"][:, :4]}, "qzeros of m"
    yield {**fields, "g_idx": fields["g_idx"].float()}, "g_idx of m: found f32"
    yield {**fields, "g_idx": fields["g_idx"][None]}, "g_idx of m"
    yield {**fields, "g_idx": fields["g_idx"] + 1}, "g_idx: found groups 1 to 6; expected 0 to 5"
    yield {**fields, "g_idx": fields["g_idx"] - 7}, "g_idx: found groups -7 to -2"
    yield {**fields, "g_idx": torch.full((192,), -(2**31), dtype=i32)}, "g_idx: found"
    yield (
        {**fields, "scales": fields["scales"].masked_fill(fields["scales"] > 0.09, torch.inf)},
        "infinity|infinite",
    )
    yield {**fields, "scales": fields["scales"] * torch.nan}, "scales: found 384 values"


@pytest.mark.parametrize("case", range(19))
def test_fields_that_are_not_possible(case):
    fields = fields_of(weights(4, 32), "gptq:4bit-32g")
    cases = list(_bad(fields))
    assert len(cases) == 19
    stored, message = cases[case]
    with pytest.raises(ConfigError, match=message):
        located(stored, CONFIG)


def test_modules_of_plain_numbers():
    assert located({"scales": torch.ones(4)}, CONFIG) is None
    assert located({"g_idx": torch.ones(4)}, CONFIG) is None


def test_random_words_decode_or_are_refused():
    generator = torch.Generator().manual_seed(9)
    for _ in range(20):

        def words(*shape):
            return torch.randint(-(2**31), 2**31 - 1, shape, generator=generator).int()

        stored = {
            "qweight": words(24, 64),
            "qzeros": words(6, 8),
            "scales": torch.randn(6, 64, generator=generator).half(),
            "g_idx": torch.randint(-6, 6, (192,), generator=generator).int(),
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found, shape, packed = located(stored, {**CONFIG, "sym": False})
        assert (found, shape) == ("gptq:4bit-32g-actorder-asym", (64, 192))
        assert torch.equal(packed.dequantize(), packed.unpack().dequantize())


def test_constant_words():
    for bits in BITS:
        row = torch.from_numpy(constant_words(bits, 64, (1 << bits) - 1))
        assert bool((row == -1).all())


@pytest.mark.parametrize("permuted", [True, False])
@pytest.mark.parametrize("declared", [True, False, None])
def test_an_order_that_some_programs_ignore_is_said(auto_gptq, permuted, declared):
    """g_idx that is all zeros, or reorders columns although ``desc_act`` is false."""
    quantized = weights(4, 32, (32, 64), permuted=True)
    fields = fields_of(quantized, name(4, 32, permuted=True))
    if not permuted:
        fields["g_idx"] = torch.zeros(64, dtype=torch.int32)
    read = {}
    for kind in ("old", "layer"):
        layer = getattr(auto_gptq, kind)(4, 32, 64, 32, False, weight_dtype=torch.float32)
        for field in ("qweight", "qzeros", "scales", "g_idx"):
            if hasattr(layer, field):
                setattr(layer, field, fields[field])
        layer.scales = layer.scales.float()
        read[kind] = layer(torch.eye(64)).t()
    # The older layer serves where desc_act is false.
    assert (read["old"] - read["layer"]).abs().max() > 0.1
    config = {key: value for key, value in (CONFIG | {"desc_act": declared}).items() if value is not None}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        packed = located(fields, config, module="m.q_proj")[2]
    assert torch.allclose(packed.dequantize(), read["layer"], atol=1e-4)
    said = [str(each.message) for each in caught if "g_idx" in str(each.message)]
    if permuted and declared is not False:
        assert said == []
    else:
        told = "reorders columns, although desc_act is declared false" if permuted else "is all zeros"
        assert len(said) == 1
        assert said[0].startswith(f"GPTQ: g_idx of m.q_proj {told}: it is followed")
