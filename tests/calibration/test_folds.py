"""Which columns can be scaled, and what then takes the factors over: a model computes what it did."""

import pytest
import torch
from models import architectures, moe, tiny, zoo

import qformats
from qformats.calibration.folds import Part, exact_factors, scaled
from qformats.calibration.probing import Probe, heads_of
from qformats.calibration.skeleton import Skeleton

TEXT = torch.arange(16).view(1, 16) + 20
BUILDERS = {"tiny": tiny, "zoo": zoo, "moe": moe, "arch": architectures}


class Blocks:
    """Blocks of a model in memory, and what reaches each of them."""

    def __init__(self, path):
        self.source = qformats.open(path)
        self.skeleton = Skeleton(self.source, torch.float32, torch.device("cpu"))
        self.skeleton.open_experts([n for n, t in self.source.tensors.items() if len(t.shape) == 2])
        with self.skeleton.loading_on_use():
            self.states, self.arguments = next(self.skeleton.batches(TEXT, 1))

    def __iter__(self):
        states = self.states
        for number, block in enumerate(self.skeleton.blocks):
            self.skeleton.load_block(number)
            linears = self.skeleton.linears(number)
            heads = heads_of(self.source.config, block)
            yield number, block, linears, Probe(block, linears, states, self.arguments[number], heads), states
            given = block(states, **self.arguments[number])
            states = given[0] if isinstance(given, tuple) else given


def _folds(path, block=0):
    with torch.inference_mode():
        for number, _, linears, probe, _ in Blocks(path):
            if number == block:
                return [(fold.before, fold.layers) for fold in probe.find(linears)], list(linears)


def _short(folds):
    return {
        before.rpartition(".")[2]: {layer.rpartition(".")[2] for layer in layers} for before, layers in folds
    }


ATTENTION = {"input_layernorm": {"q_proj", "k_proj", "v_proj"}, "v_proj": {"o_proj"}}
GATED = {"up_proj": {"down_proj"}}


@pytest.mark.parametrize(
    ("name", "block", "expected"),
    [
        ("tiny:llama", 0, {**ATTENTION, **GATED, "post_attention_layernorm": {"gate_proj", "up_proj"}}),
        ("tiny:qwen2", 0, {**ATTENTION, **GATED, "post_attention_layernorm": {"gate_proj", "up_proj"}}),
        # Norms that add 1 to their weight.
        ("zoo:gemma2", 1, {**ATTENTION, **GATED, "pre_feedforward_layernorm": {"gate_proj", "up_proj"}}),
        # One norm in front of attention and the feed-forward network.
        (
            "arch:cohere",
            0,
            {
                "input_layernorm": {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"},
                "v_proj": {"o_proj"},
                **GATED,
            },
        ),
        # Matrices that are joined, one behind the other or head by head; an activation that no factor passes.
        (
            "zoo:phi3",
            0,
            {
                "input_layernorm": {"qkv_proj"},
                "qkv_proj": {"o_proj"},
                "post_attention_layernorm": {"gate_up_proj"},
                "gate_up_proj": {"down_proj"},
            },
        ),
        (
            "zoo:gpt_neox",
            0,
            {
                "input_layernorm": {"query_key_value"},
                "query_key_value": {"dense"},
                "post_attention_layernorm": {"dense_h_to_4h"},
            },
        ),
        ("tiny:gpt2", 0, {"ln_1": {"c_attn"}, "c_attn": {"c_proj"}, "ln_2": {"c_fc"}}),
        # Inputs without a norm in front of them.
        ("arch:olmo2", 0, {"v_proj": {"o_proj"}, **GATED}),
        # Latent attention, whose rows are those of keys and values in turn.
        (
            "arch:deepseek_v2",
            0,
            {
                "input_layernorm": {"q_a_proj", "kv_a_proj_with_mqa"},
                "q_a_layernorm": {"q_b_proj"},
                "kv_a_layernorm": {"kv_b_proj"},
                "kv_b_proj": {"o_proj"},
                "post_attention_layernorm": {"gate_proj", "up_proj"},
                **GATED,
            },
        ),
        (
            "moe:mixtral",
            1,
            {
                **ATTENTION,
                "post_attention_layernorm": {"gate", "w1", "w3"},
                "w3": {"w2"},
            },
        ),
        # Its activation limits what the rows of up give, and adds 1 to it.
        ("moe:gpt-oss", 0, {**ATTENTION, "post_attention_layernorm": {"router", "gate_proj", "up_proj"}}),
    ],
)
def test_neighbours_are_found(name, block, expected, tmp_path):
    kind, _, model = name.partition(":")
    folds, _ = _folds(BUILDERS[kind].build(model, tmp_path / "model"), block)
    assert _short(folds) == expected


def test_every_expert_is_in_its_fold(tmp_path):
    """Whether a token of the trial reaches it or not."""
    folds, linears = _folds(architectures.build("qwen3_moe", tmp_path / "model"), 0)
    into = {name for name in linears if name.endswith(("gate_proj", "up_proj"))}
    (behind,) = [layers for before, layers in folds if before == "post_attention_layernorm"]
    assert set(behind) == {*into, "mlp.gate"}
    pairs = [(before, *layers) for before, layers in folds if "experts" in before]
    assert sorted(pairs) == sorted(
        (name, name.replace("up_proj", "down_proj")) for name in linears if name.endswith("up_proj")
    )


@pytest.mark.parametrize(
    "name",
    ["tiny:llama-bias", "zoo:gemma2", "moe:mixtral", "arch:falcon-40b", "arch:deepseek_v3", "arch:nemotron"],
)
def test_a_fold_changes_nothing_that_the_block_gives(name, tmp_path):
    """With factors of any size, applied with plain arithmetic to copies of the weights."""
    kind, _, model = name.partition(":")
    with torch.inference_mode():
        for number, block, linears, probe, states in (
            blocks := Blocks(BUILDERS[kind].build(model, tmp_path / "model"))
        ):
            arguments = blocks.arguments[number]
            before = block(states, **arguments)
            before = before[0] if isinstance(before, tuple) else before
            folds = probe.find(linears)
            assert folds
            generator = torch.Generator().manual_seed(7)
            parameters = dict(block.named_parameters())
            kept = {key: value.clone() for key, value in parameters.items()}
            for fold in folds:
                factors = 0.2 + 5 * torch.rand(fold.count, generator=generator)
                for part in fold.parts:
                    value = parameters[part.name]
                    value.copy_(scaled(value.clone(), [(part, factors)]))
            after = block(states, **arguments)
            after = after[0] if isinstance(after, tuple) else after
            changed = {key for key, value in parameters.items() if not torch.equal(value, kept[key])}
            assert changed == {part.name for fold in folds for part in fold.parts}
            assert float((after - before).abs().max()) < 2e-4 * float((before - states).abs().max())
            for key, value in parameters.items():
                value.copy_(kept[key])


def test_what_else_reads_a_norm_forbids_a_fold():
    """A residual that begins behind the norm gets its output, too."""

    class Block(torch.nn.Module):
        def __init__(self, residual):
            super().__init__()
            self.norm, self.up, self.residual = torch.nn.LayerNorm(8), torch.nn.Linear(8, 8), residual

        def forward(self, states):
            normed = self.norm(states)
            return self.up(normed) + (normed if self.residual else states)

    with torch.inference_mode():
        for residual, found in ((False, 1), (True, 0)):
            block = Block(residual)
            probe = Probe(block, {"up": block.up}, torch.randn(1, 5, 8), {}, [])
            assert len(probe.find(["up"])) == found


def test_rows_count_only_where_nothing_but_a_product_follows():
    """ReLU lets positive factors pass, GELU does not; nor does a second reader."""

    class Block(torch.nn.Module):
        def __init__(self, rule):
            super().__init__()
            self.up, self.down, self.rule = torch.nn.Linear(8, 12), torch.nn.Linear(12, 8), rule

        def forward(self, states):
            return states + self.down(self.rule(self.up(states)))

    rules = {
        torch.nn.functional.relu: 1,
        torch.nn.functional.gelu: 0,
        torch.nn.functional.silu: 0,
        lambda given: given + 0.1: 0,
        lambda given: given * given.sum(): 0,
    }
    with torch.inference_mode():
        for rule, found in rules.items():
            block = Block(rule)
            probe = Probe(block, {"up": block.up, "down": block.down}, torch.randn(1, 5, 8), {}, [])
            assert len(probe.find(["up", "down"])) == found


def _part(count, dim=0, **more):
    return Part("weight", dim, torch.arange(count), **more)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_one_vector_that_stays_plain_decides_the_factors(dtype, shift):
    """Its quotient is rounded; the factors are those that undo just that."""
    generator = torch.Generator().manual_seed(0)
    values = (torch.rand(64, generator=generator) + 0.2).to(dtype).float()
    values[5] = -shift
    wanted = 4 * torch.rand(64, generator=generator) + 0.1
    part = _part(64, divides=True, shift=shift)
    name = {torch.float16: "f16", torch.bfloat16: "bf16"}[dtype]
    found = exact_factors(wanted, {part: values}, {part: name})
    kept = part.of(values, found).to(dtype).float()
    torch.testing.assert_close((kept + shift) * found, values + shift, rtol=3e-7, atol=0)
    assert found[5] == 1
    near = (found / wanted - 1).abs()
    near[5] = 0
    assert float(near.max()) < 0.05


def test_several_that_stay_plain_take_powers_of_two():
    """In float32 any factor will do; a weight that overflows takes none."""
    norm, router = _part(4, divides=True), _part(4, 1)
    values = {norm: torch.tensor([1.0, 3.0, 5.0, 2.0]), router: torch.full((2, 4), 1.5)}
    values[router][1, 3] = 60000.0
    wanted = torch.tensor([1.3, 0.4, 3.0, 8.0])
    assert torch.equal(exact_factors(wanted, values, dict.fromkeys(values, "f32")), wanted)
    found = exact_factors(wanted, values, dict.fromkeys(values, "f16"))
    assert found.tolist() == [1.0, 0.5, 4.0, 1.0]
    for part, held in values.items():
        changed = part.of(held, found)
        assert torch.equal(changed.half().float(), changed)
