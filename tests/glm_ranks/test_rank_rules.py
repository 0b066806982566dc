"""Which rows a rank holds, against numpy's split of numbered rows."""

import numpy as np
import pytest
from glm_ranks import sat_oracle as oracle
from hypothesis import given
from hypothesis import strategies as st

from qformats.errors import ConfigError, ShapeError, UnsupportedModelError
from qformats_glm.ranks.rules import Kind, Sharding, merged_rows, positive

VARIANTS = [
    (Sharding(heads=8), {}),
    (Sharding(glu=False, heads=8), {"glu": False}),
    (Sharding(contiguous=True, heads=8, groups=4), {"groups": 4}),
    (Sharding(contiguous=True, heads=8), {"groups": 8}),
]


@pytest.mark.parametrize(("sharding", "variant"), VARIANTS)
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_rows_of_a_rank(sharding, variant, ranks):
    state = oracle.model(glu=variant.get("glu", True), groups=variant.get("groups"))
    numbered = {name: np.arange(len(value)) for name, value in state.items()}
    expected = oracle.split(numbered | {n: v for n, v in state.items() if v.ndim == 2}, ranks, **variant)
    for name, value in state.items():
        if sharding.kind(name) in (Kind.REPLICATED, Kind.COLUMNS):
            continue
        rows = np.arange(len(value))
        held = [
            np.concatenate([rows[a:b] for a, b in sharding.rows_of(name, len(value), ranks, rank)])
            for rank in range(ranks)
        ]
        if value.ndim == 1:
            for rank in range(ranks):
                assert np.array_equal(held[rank], expected[rank][name]), name
        # Merging reads the same rows the other way round.
        runs = merged_rows(sharding, name, len(value), ranks)
        assert np.array_equal(np.concatenate([held[rank][a:b] for rank, a, b in runs]), rows)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("transformer.word_embeddings.weight", Kind.ROWS),
        ("lm_head.weight", Kind.ROWS),
        ("transformer.output_layer.weight", Kind.ROWS),
        ("transformer.layers.0.attention.query_key_value.bias", Kind.ROWS),
        ("transformer.encoder.layers.9.self_attention.dense.weight", Kind.COLUMNS),
        ("transformer.layers.0.attention.dense.bias", Kind.REPLICATED),
        ("transformer.layers.0.mlp.dense_h_to_4h.bias", Kind.GATED),
        ("transformer.layers.0.mlp.dense_4h_to_h.weight", Kind.COLUMNS),
        ("transformer.layers.0.mlp.dense_4h_to_h.bias", Kind.REPLICATED),
        ("transformer.layers.0.attention.rotary_emb.inv_freq", Kind.REPLICATED),
        ("transformer.encoder.final_layernorm.weight", Kind.REPLICATED),
    ],
)
def test_kinds(name, kind):
    assert Sharding().kind(name) is kind


@pytest.mark.parametrize("name", ["mixins.adapter.weight", "query_key_value.scale", "densest.weight", ""])
def test_unknown_tensors_are_refused(name):
    with pytest.raises(
        UnsupportedModelError, match="How tensor parallelism divides other tensors is not known"
    ):
        Sharding().kind(name)


@given(st.integers(1, 64), st.integers(1, 8), st.integers(0, 7))
def test_rows_that_do_not_divide(rows, ranks, rank):
    rank %= ranks
    name = "dense_h_to_4h.weight"
    if rows % (2 * ranks):
        with pytest.raises(ShapeError, match=r"halves|that \d ranks divide evenly"):
            Sharding().rows_of(name, rows, ranks, rank)
    else:
        found = Sharding().rows_of(name, rows, ranks, rank)
        assert sum(stop - start for start, stop in found) * ranks == rows


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"glu": "maybe"}, "glu: found 'maybe'; expected yes or no"),
        ({"qkv": "mixed"}, "qkv: found 'mixed'; expected interleaved or contiguous"),
        ({"qkv": "contiguous"}, "heads: found None"),
        ({"heads": "0"}, "heads: found '0'; expected a whole number"),
        ({"groups": "²"}, "groups: found '²'; expected a whole number"),
    ],
)
def test_options_that_are_not_possible(options, message):
    with pytest.raises(ConfigError, match=message):
        Sharding.of(options)


QKV, DENSE = "a.0.attention.query_key_value", "a.0.attention.dense.weight"


@given(
    st.integers(1, 6),
    st.integers(1, 6),
    st.integers(1, 5),
    st.booleans(),
    st.integers(1, 40),
    st.integers(1, 9),
)
def test_attention_of_another_layout_is_refused(groups, more, width, contiguous, heads, told):
    """Options pass only if they name the segments that are there."""
    true = groups * more
    queries, keys = true * width, groups * width
    shapes = {f"{QKV}.bias": (queries + 2 * keys,), DENSE: (queries, queries)}
    sharding = Sharding(contiguous=contiguous, heads=heads, groups=told)
    try:
        sharding.check_attention(shapes)
    except ConfigError:
        assert (heads, told) != (true, groups) if contiguous else groups != true
        return
    if contiguous:
        assert sharding.rows_of(f"{QKV}.bias", queries + 2 * keys, 1, 0) == [
            (0, queries),
            (queries, queries + keys),
            (queries + keys, queries + 2 * keys),
        ]
    else:
        assert groups == true


@pytest.mark.parametrize(
    ("sharding", "message"),
    [
        (
            Sharding(heads=8),
            r"qkv: found 'interleaved'; expected contiguous: .* has 48 rows.*32 columns.*-O qkv=",
        ),
        (
            Sharding(contiguous=True, heads=8),
            r"groups: found None; expected 2, since 32 of the 48 rows .* Give -O groups=2\.",
        ),
        (Sharding(contiguous=True, heads=8, groups=4), r"groups: found 4; expected 2"),
        (Sharding(contiguous=True, heads=7), r"heads: found 7; .*: 32 of its 48 rows are queries"),
        (Sharding(contiguous=True, heads=64, groups=1), r"heads: found 64"),
    ],
)
def test_what_an_attention_needs_is_told(sharding, message):
    with pytest.raises(ConfigError, match=message):
        sharding.check_attention({f"{QKV}.weight": (48, 32), DENSE: (32, 32)})


def test_as_many_keys_as_queries_may_be_either_layout():
    for sharding in (Sharding(heads=8), Sharding(contiguous=True, heads=8)):
        sharding.check_attention({f"{QKV}.weight": (96, 32), DENSE: (32, 32)})


def test_a_whole_number():
    assert positive({"heads": "96"}, "heads") == 96
    assert positive({}, "heads") is None


def test_segments_need_whole_heads():
    with pytest.raises(ShapeError, match="rows for 8 query, 2 key and 2 value heads"):
        Sharding(contiguous=True, heads=8, groups=2).rows_of("query_key_value.weight", 50, 2, 0)
