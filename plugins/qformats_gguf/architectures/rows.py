"""The table that maps Hugging Face models to GGUF architectures, tensor by tensor and key by key.

Adding an architecture is adding a row. Canonical names are those of Transformers' model classes; weights
are ``[out_features, in_features]`` (the Conv1D weights of GPT-2 arrive transposed, so no row transposes).

Source: ggml-org/llama.cpp:conversion/{base,llama,qwen,gpt2,chatglm}.py,
src/models/{llama,qwen2,qwen3,gpt2,chatglm}.cpp.
"""

from __future__ import annotations

from dataclasses import replace

from qformats.interfaces import Values
from qformats_gguf.architectures.schema import (
    Config,
    Fused,
    HFModel,
    If,
    Limit,
    MetaRule,
    Problem,
    Row,
    TensorRule,
)
from qformats_gguf.metadata import f32, u32

__all__ = ["ROWS"]


def _heads(config: Config) -> int:
    return int(config["num_attention_heads"])


def _gpt2_heads(config: Config) -> int:
    return int(config["n_head"])


def _head_dim(config: Config) -> int:
    return int(config["hidden_size"]) // int(config["num_attention_heads"])


def _key_length(config: Config) -> int:
    return int(config["head_dim"])


def _window(config: Config) -> Problem | None:
    """Attention that Transformers limits to a window and llama.cpp does not."""
    window = Values(config, "config.json").integer("sliding_window", None)
    positions = config["max_position_embeddings"]
    if window is None or window >= positions:
        return None
    return Problem(
        "sliding_window",
        window,
        ("null", f"at least max_position_embeddings ({positions})"),
        f"llama.cpp has no sliding window in this architecture, so texts longer than {window} tokens differ",
    )


def _optional_window(config: Config) -> Problem | None:
    """As `_window`, where `use_sliding_window` and the layer types switch it on."""
    if not config.get("use_sliding_window"):
        return None
    kinds = config.get("layer_types")
    first = Values(config, "config.json").integer("max_window_layers", 0)
    used = "sliding_attention" in kinds if isinstance(kinds, list) else first < config["num_hidden_layers"]
    return _window(config) if used else None


def _layer_types(config: Config) -> Problem | None:
    """Name layers of other kinds than these types' model code has."""
    kinds = config.get("layer_types")
    known = ("full_attention", "sliding_attention")
    if kinds is None or (isinstance(kinds, list) and all(kind in known for kind in kinds)):
        return None
    return Problem("layer_types", kinds, known, "llama.cpp computes full attention in every layer")


def _whole_heads(config: Config) -> Problem | None:
    """Name a head size other than the one that the architecture's loader derives."""
    if config["head_dim"] == _head_dim(config):
        return None
    return Problem(
        "head_dim",
        config["head_dim"],
        (f"hidden_size / num_attention_heads ({_head_dim(config)})",),
        "llama.cpp loads no other head size in this architecture",
    )


_DECODER = "model.layers.{i}."
_QUERY = ("num_attention_heads * head_dim", "hidden_size")
_KEY_VALUE = ("num_key_value_heads * head_dim", "hidden_size")
_UP = ("intermediate_size", "hidden_size")
_EMBEDDINGS = (
    TensorRule("model.embed_tokens", "token_embd", ("vocab_size", "hidden_size")),
    TensorRule("model.norm", "output_norm", ("hidden_size",), force_f32=True),
    TensorRule(
        "lm_head",
        "output",
        ("vocab_size", "hidden_size"),
        weight=If("tie_word_embeddings", False),
        alias_of="model.embed_tokens",
    ),
)
_NORMS = (
    TensorRule(_DECODER + "input_layernorm", "blk.{i}.attn_norm", ("hidden_size",), force_f32=True),
    TensorRule(_DECODER + "post_attention_layernorm", "blk.{i}.ffn_norm", ("hidden_size",), force_f32=True),
)


def _attention(qkv_bias: bool | If, o_bias: bool | If, *, permuted: bool) -> tuple[TensorRule, ...]:
    q, k = ("num_attention_heads", "num_key_value_heads") if permuted else (None, None)
    return (
        TensorRule(_DECODER + "self_attn.q_proj", "blk.{i}.attn_q", _QUERY, bias=qkv_bias, permute=q),
        TensorRule(_DECODER + "self_attn.k_proj", "blk.{i}.attn_k", _KEY_VALUE, bias=qkv_bias, permute=k),
        TensorRule(_DECODER + "self_attn.v_proj", "blk.{i}.attn_v", _KEY_VALUE, bias=qkv_bias),
        TensorRule(_DECODER + "self_attn.o_proj", "blk.{i}.attn_output", _QUERY[::-1], bias=o_bias),
    )


_QKV = (Fused("blk.{i}.attn_qkv", ("blk.{i}.attn_q", "blk.{i}.attn_k", "blk.{i}.attn_v")),)


def _mlp(bias: bool | If) -> tuple[TensorRule, ...]:
    return (
        TensorRule(_DECODER + "mlp.gate_proj", "blk.{i}.ffn_gate", _UP, bias=bias),
        TensorRule(_DECODER + "mlp.up_proj", "blk.{i}.ffn_up", _UP, bias=bias),
        TensorRule(_DECODER + "mlp.down_proj", "blk.{i}.ffn_down", _UP[::-1], bias=bias),
    )


_SIZES = (
    MetaRule("block_count", u32, "num_hidden_layers"),
    MetaRule("context_length", u32, "max_position_embeddings"),
    MetaRule("embedding_length", u32, "hidden_size"),
    MetaRule("feed_forward_length", u32, "intermediate_size"),
    MetaRule("attention.head_count", u32, "num_attention_heads"),
    MetaRule("attention.head_count_kv", u32, "num_key_value_heads", default=_heads),
    MetaRule("attention.layer_norm_rms_epsilon", f32, "rms_norm_eps"),
)
_HEAD_SIZES = (
    MetaRule("attention.key_length", u32, "head_dim", default=_head_dim),
    MetaRule("attention.value_length", u32, "head_dim", default=_head_dim),
)
_DERIVED_SIZES = (
    MetaRule("attention.key_length", u32, "head_dim", default=_head_dim, write=False),
    MetaRule("attention.value_length", u32, "head_dim", default=_head_dim, write=False),
)
_ROTARY_SIZE = MetaRule("rope.dimension_count", u32, "head_dim", default=_key_length)
_VOCABULARY = MetaRule("vocab_size", u32, "vocab_size")
_DENSE = {"expert_count": 0, "expert_used_count": 0, "attention.causal": True, "tensor_data_layout": None}
_JUNK = (".rotary_emb.inv_freq",)
_CAUSAL = Limit("is_causal", (True,), "llama.cpp runs this architecture as a causal model")
_SILU = Limit("hidden_act", ("silu", "swish"), "llama.cpp computes SiLU")

_LLAMA = Row(
    arch="llama",
    models=(
        HFModel(
            "llama",
            ("LlamaForCausalLM",),
            {
                "rms_norm_eps": 1e-6,
                "max_position_embeddings": 2048,
                "num_key_value_heads": None,
                "head_dim": None,
                "tie_word_embeddings": False,
                "attention_bias": False,
                "mlp_bias": False,
            },
        ),
        HFModel(
            "mistral",
            ("MistralForCausalLM",),
            {
                "rms_norm_eps": 1e-6,
                "max_position_embeddings": 131072,
                "num_key_value_heads": 8,
                "head_dim": None,
                "tie_word_embeddings": False,
                "sliding_window": 4096,
            },
            checks=(_window,),
            # Mistral's layers have no biases, and its configuration ignores these keys.
            fixed={"attention_bias": False, "mlp_bias": False},
        ),
    ),
    prefix="model.",
    blocks="num_hidden_layers",
    tensors=(
        *_EMBEDDINGS,
        *_NORMS,
        *_attention(If("attention_bias"), If("attention_bias"), permuted=True),
        *_mlp(If("mlp_bias")),
    ),
    metadata=(
        *_SIZES,
        *_HEAD_SIZES,
        _VOCABULARY,
        _ROTARY_SIZE,
    ),
    fused=_QKV,
    rope=("default", "linear", "llama3", "yarn"),
    limits=(_SILU, _CAUSAL),
    constants={"hidden_act": "silu"},
    neutral=_DENSE,
    junk=_JUNK,
)

_QWEN2 = Row(
    arch="qwen2",
    models=(
        HFModel(
            "qwen2",
            ("Qwen2ForCausalLM",),
            {
                "rms_norm_eps": 1e-6,
                "max_position_embeddings": 32768,
                "num_key_value_heads": 32,
                "head_dim": None,
                "tie_word_embeddings": False,
                "use_sliding_window": False,
                "sliding_window": 4096,
                "max_window_layers": 28,
            },
            checks=(_optional_window, _layer_types, _whole_heads),
            judged=("layer_types",),
        ),
    ),
    prefix="model.",
    blocks="num_hidden_layers",
    tensors=(*_EMBEDDINGS, *_NORMS, *_attention(True, False, permuted=False), *_mlp(False)),
    metadata=(
        *_SIZES,
        *_DERIVED_SIZES,
        replace(_VOCABULARY, write=False),
        replace(_ROTARY_SIZE, write=False),
    ),
    fused=_QKV,
    rope=("default", "linear", "yarn"),
    limits=(_SILU, _CAUSAL),
    constants={"hidden_act": "silu", "use_sliding_window": False},
    neutral=_DENSE,
    junk=_JUNK,
)

_QWEN3 = Row(
    arch="qwen3",
    models=(
        HFModel(
            "qwen3",
            ("Qwen3ForCausalLM",),
            {
                "rms_norm_eps": 1e-6,
                "max_position_embeddings": 32768,
                "num_key_value_heads": 32,
                "head_dim": 128,
                "tie_word_embeddings": False,
                "attention_bias": False,
                "use_sliding_window": False,
                "sliding_window": 4096,
                "max_window_layers": 28,
            },
            checks=(_optional_window, _layer_types),
            judged=("layer_types",),
        ),
    ),
    prefix="model.",
    blocks="num_hidden_layers",
    tensors=(
        *_EMBEDDINGS,
        *_NORMS,
        *_attention(False, False, permuted=False),
        TensorRule(_DECODER + "self_attn.q_norm", "blk.{i}.attn_q_norm", ("head_dim",), force_f32=True),
        TensorRule(_DECODER + "self_attn.k_norm", "blk.{i}.attn_k_norm", ("head_dim",), force_f32=True),
        *_mlp(False),
    ),
    metadata=(
        *_SIZES,
        *_HEAD_SIZES,
        replace(_VOCABULARY, write=False),
        replace(_ROTARY_SIZE, write=False),
    ),
    fused=_QKV,
    rope=("default", "linear", "yarn"),
    limits=(
        _SILU,
        _CAUSAL,
        Limit("attention_bias", (False,), "llama.cpp loads no attn_output.bias in this architecture"),
    ),
    constants={"hidden_act": "silu", "attention_bias": False, "use_sliding_window": False},
    neutral=_DENSE,
    junk=_JUNK,
)

# ChatGLM2, ChatGLM3 and GLM-4-9B; not GLM-4-0414 (model type glm4), which has more norms. Rows of q and k stay
# as they are: Transformers too rotates neighbours here. For a native checkpoint, upstream's converter writes
# hidden_size as the context and 1e-5 as the epsilon, whatever the configuration says.
_CHATGLM = Row(
    arch="chatglm",
    models=(
        HFModel(
            "glm",
            ("GlmForCausalLM",),
            {
                "rms_norm_eps": 1.5625e-7,
                "max_position_embeddings": 131072,
                "num_key_value_heads": 2,
                "head_dim": 128,
                "tie_word_embeddings": False,
                "attention_bias": True,
                "partial_rotary_factor": 0.5,
            },
            checks=(_whole_heads,),
        ),
    ),
    prefix="model.",
    blocks="num_hidden_layers",
    tensors=(
        *_EMBEDDINGS,
        *_NORMS,
        *_attention(If("attention_bias"), False, permuted=False),
        # Gate and up below each other, in one module on both sides.
        TensorRule(_DECODER + "mlp.gate_up_proj", "blk.{i}.ffn_up", ("2 * intermediate_size", "hidden_size")),
        TensorRule(_DECODER + "mlp.down_proj", "blk.{i}.ffn_down", _UP[::-1]),
    ),
    metadata=(
        *_SIZES,
        *_DERIVED_SIZES,
        replace(_VOCABULARY, write=False),
    ),
    fused=_QKV,
    rope=("default", "linear", "yarn"),
    partial_rotary=True,
    limits=(_SILU, _CAUSAL),
    constants={"hidden_act": "silu"},
    neutral=_DENSE,
    junk=_JUNK,
)

_GPT2_BLOCK = "transformer.h.{i}."
_GPT2 = Row(
    arch="gpt2",
    models=(
        HFModel(
            "gpt2",
            ("GPT2LMHeadModel",),
            {
                "layer_norm_epsilon": 1e-5,
                "n_positions": 1024,
                "n_inner": None,
                "tie_word_embeddings": True,
            },
            # Precision of a product in training; and a head that is not the one that predicts tokens.
            neutral=dict.fromkeys(
                (
                    *("reorder_and_upcast_attn", "summary_type", "summary_use_proj"),
                    *("summary_activation", "summary_proj_to_labels"),
                )
            ),
            aliases={
                "hidden_size": "n_embd",
                "max_position_embeddings": "n_positions",
                "num_attention_heads": "n_head",
                "num_hidden_layers": "n_layer",
            },
        ),
    ),
    prefix="transformer.",
    blocks="n_layer",
    tensors=(
        TensorRule("transformer.wte", "token_embd", ("vocab_size", "n_embd")),
        TensorRule("transformer.wpe", "position_embd", ("n_positions", "n_embd"), force_f32=True),
        TensorRule("transformer.ln_f", "output_norm", ("n_embd",), bias=True, force_f32=True),
        TensorRule(
            "lm_head",
            "output",
            ("vocab_size", "n_embd"),
            weight=If("tie_word_embeddings", False),
            alias_of="transformer.wte",
        ),
        TensorRule(_GPT2_BLOCK + "ln_1", "blk.{i}.attn_norm", ("n_embd",), bias=True, force_f32=True),
        TensorRule(_GPT2_BLOCK + "ln_2", "blk.{i}.ffn_norm", ("n_embd",), bias=True, force_f32=True),
        TensorRule(_GPT2_BLOCK + "attn.c_attn", "blk.{i}.attn_qkv", ("3 * n_embd", "n_embd"), bias=True),
        TensorRule(_GPT2_BLOCK + "attn.c_proj", "blk.{i}.attn_output", ("n_embd", "n_embd"), bias=True),
        TensorRule(_GPT2_BLOCK + "mlp.c_fc", "blk.{i}.ffn_up", ("n_inner", "n_embd"), bias=True),
        TensorRule(_GPT2_BLOCK + "mlp.c_proj", "blk.{i}.ffn_down", ("n_embd", "n_inner"), bias=True),
    ),
    metadata=(
        MetaRule("block_count", u32, "n_layer"),
        MetaRule("context_length", u32, "n_positions"),
        MetaRule("embedding_length", u32, "n_embd"),
        MetaRule("feed_forward_length", u32, "n_inner"),
        MetaRule("attention.head_count", u32, "n_head"),
        MetaRule("attention.head_count_kv", u32, "n_head", default=_gpt2_heads, write=False),
        MetaRule("attention.layer_norm_epsilon", f32, "layer_norm_epsilon"),
        replace(_VOCABULARY, write=False),
    ),
    limits=(
        Limit(
            "activation_function",
            ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"),
            "llama.cpp computes the tanh approximation of GELU",
        ),
        _CAUSAL,
        Limit("scale_attn_weights", (True,), "llama.cpp always scales attention by the head size"),
        Limit("scale_attn_by_inverse_layer_idx", (False,), "llama.cpp does not scale attention by layer"),
        Limit("add_cross_attention", (False,), "llama.cpp has no cross attention in this architecture"),
    ),
    constants={"activation_function": "gelu_new"},
    neutral=_DENSE,
    junk=(".attn.bias", ".attn.masked_bias"),
)

ROWS: dict[str, Row] = {row.arch: row for row in (_LLAMA, _QWEN2, _QWEN3, _CHATGLM, _GPT2)}
"""Rows by ``general.architecture``."""
