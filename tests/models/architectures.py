"""Tiny random models of the architectures that GGUF knows, saved as Hugging Face folders, one for each feature.

Sizes differ from each other wherever a model allows it, so that an exchanged or transposed dimension shows; windows are
shorter than the texts of the tests; weights are large enough that attention, rotation and experts matter.
"""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models import tokenizers

__all__ = [
    "CASES",
    "MULTIMODAL",
    "SHARED_SIZES",
    "TRAPS",
    "WIDE",
    "WITH_CODE",
    "Case",
    "build",
    "build_multimodal",
    "build_wide",
    "build_with_code",
    "randomize",
]

SHARED_SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}
_WIDE = {"head_dim": 32}
"""A head size other than hidden_size / num_attention_heads."""
_EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 40}


_STACKED = {"num_local_experts": 6, "num_experts_per_tok": 2}
_ROUTED = {
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 40,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
}
_LATENT = {
    "q_lora_rank": 24,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 24,
} | {"num_key_value_heads": 4}


@dataclass(frozen=True)
class Case:
    """One folder.

    Attributes
    ----------
    model_type, cls : str
        Model type, and class of Transformers.
    config : dict
        Keys beside or instead of those of every model.
    tokenizer : str
        Kind of its tokenizer.
    """

    model_type: str
    cls: str
    config: dict[str, Any] = field(default_factory=dict)
    tokenizer: str = "smollm"


def _rope(kind: str = "default", theta: float = 10000.0, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **more}}


_YARN = _rope("yarn", 50000.0, factor=4.0, original_max_position_embeddings=64)
_OLD = {"original_max_position_embeddings": 64}

_GEMMA = {**_WIDE, "query_pre_attn_scalar": 32, "sliding_window": 16, "tie_word_embeddings": True}
_GRANITE = {
    "embedding_multiplier": 6.0,
    "logits_scaling": 4.0,
    "attention_multiplier": 0.1,
    "residual_multiplier": 0.4,
}
_MINISTRAL = _rope(
    "yarn",
    50000.0,
    factor=16.0,
    original_max_position_embeddings=16,
    beta_fast=24.0,
    beta_slow=2.0,
    mscale=0.8,
    mscale_all_dim=1.2,
    llama_4_scaling_beta=0.3,
)
_LONG = {
    "sliding_window": None,
    **_rope(
        "longrope",
        short_factor=[1.0 + 0.05 * i for i in range(6)],
        long_factor=[1.5 + 0.5 * i for i in range(6)],
        partial_rotary_factor=0.75,
    ),
}
_COHERE2 = {"logit_scale": 0.25, "sliding_window": 16, "tie_word_embeddings": True}
_LINEAR = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 500000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 20000.0},
}

_LINEAR_ATTENTION = {
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_conv_kernel_dim": 4,
}

CASES: dict[str, Case] = {
    "gemma3": Case("gemma3_text", "Gemma3ForCausalLM", {**_GEMMA, "num_hidden_layers": 7}, "llama-spm"),
    "gemma3-linear": Case(
        "gemma3_text",
        "Gemma3ForCausalLM",
        {
            **_GEMMA,
            "tie_word_embeddings": False,
            "final_logit_softcapping": 20.0,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "rope_parameters": _LINEAR,
        },
    ),
    "gemma2": Case("gemma2", "Gemma2ForCausalLM", {**_GEMMA, "num_hidden_layers": 4}, "llama-spm"),
    "gemma": Case(
        "gemma", "GemmaForCausalLM", {**_WIDE, "num_key_value_heads": 1, "tie_word_embeddings": True}
    ),
    # llama.cpp treats tokens otherwise where general.name, made from the folder's, has the family's name in it.
    "ph3-partial": Case(
        "phi3", "Phi3ForCausalLM", {"sliding_window": None, **_rope(partial_rotary_factor=0.5)}, "llama-spm"
    ),
    # Longer than the original context: texts of the tests, and what llama.cpp allocates for them.
    "ph3-long": Case(
        "phi3", "Phi3ForCausalLM", {"original_max_position_embeddings": 32, **_LONG}, "llama-spm"
    ),
    "ph3-short": Case(
        "phi3",
        "Phi3ForCausalLM",
        {
            "original_max_position_embeddings": 512,
            "max_position_embeddings": 2048,
            "rope_parameters": {
                **_LONG["rope_parameters"],
                "attention_factor": 1.5,
                "partial_rotary_factor": 0.75,
            },
        },
        "llama-spm",
    ),
    "granite": Case("granite", "GraniteForCausalLM", _GRANITE),
    "smollm3": Case("smollm3", "SmolLM3ForCausalLM", {"num_hidden_layers": 8}),
    "exaone4": Case(
        "exaone4", "Exaone4ForCausalLM", {"sliding_window": None, "layer_types": ["full_attention"] * 3}
    ),
    "exaone4-64": Case("exaone4", "Exaone4ForCausalLM", {"num_hidden_layers": 64, "sliding_window": 16}),
    "glm4": Case("glm4", "Glm4ForCausalLM", {**_WIDE, "attention_bias": True}),
    "olmo2": Case("olmo2", "Olmo2ForCausalLM"),
    "olmo2-yarn": Case("olmo2", "Olmo2ForCausalLM", _YARN),
    "olmo3": Case("olmo3", "Olmo3ForCausalLM", {"num_hidden_layers": 5, "sliding_window": 16}),
    "olmo3-yarn": Case(
        "olmo3",
        "Olmo3ForCausalLM",
        {
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 50000.0},
                "full_attention": {**_YARN["rope_parameters"], "attention_factor": 1.3},
            },
        },
    ),
    "ministral3": Case("ministral3", "Ministral3ForCausalLM", {**_WIDE, **_MINISTRAL}),
    "cohere": Case("cohere", "CohereForCausalLM", {"logit_scale": 0.25, "tie_word_embeddings": True}),
    "cohere-64": Case(
        "cohere",
        "CohereForCausalLM",
        {"num_hidden_layers": 64, "use_qk_norm": True, "logit_scale": 0.25, "tie_word_embeddings": True},
    ),
    "cohere2": Case("cohere2", "Cohere2ForCausalLM", _COHERE2),
    "cohere2-pattern": Case(
        "cohere2",
        "Cohere2ForCausalLM",
        {**_COHERE2, "layer_types": ["full_attention", "sliding_attention", "full_attention"], **_YARN},
    ),
    "starcoder2": Case(
        "starcoder2", "Starcoder2ForCausalLM", {"sliding_window": None, "tie_word_embeddings": True}
    ),
    "stablelm": Case("stablelm", "StableLmForCausalLM", {"use_qkv_bias": True}),
    "stablelm-12b": Case(
        "stablelm", "StableLmForCausalLM", {"qk_layernorm": True, "use_parallel_residual": True}
    ),
    "ernie4_5": Case("ernie4_5", "Ernie4_5ForCausalLM", {**_WIDE, "tie_word_embeddings": True}),
    "hunyuan": Case(
        "hunyuan_v1_dense",
        "HunYuanDenseV1ForCausalLM",
        {**_WIDE, **_rope("dynamic", alpha=50.0, factor=1.0)},
    ),
    "qwen3_moe": Case("qwen3_moe", "Qwen3MoeForCausalLM", {**_EXPERTS, **_WIDE, "norm_topk_prob": True}),
    "qwen2_moe": Case(
        "qwen2_moe", "Qwen2MoeForCausalLM", {**_EXPERTS, "shared_expert_intermediate_size": 56}, "qwen2"
    ),
    "qwen2_moe-tied": Case(
        "qwen2_moe",
        "Qwen2MoeForCausalLM",
        {**_EXPERTS, "shared_expert_intermediate_size": 56, "tie_word_embeddings": True},
    ),
    "mixtral": Case(
        "mixtral", "MixtralForCausalLM", {"num_local_experts": 6, "sliding_window": None}, "llama-spm"
    ),
    "phi": Case("phi", "PhiForCausalLM", {"num_key_value_heads": 4, "intermediate_size": 240}),
    "phi-grouped": Case(
        "phi", "PhiForCausalLM", {**_rope(partial_rotary_factor=0.25), "tie_word_embeddings": True}
    ),
    "nemotron": Case("nemotron", "NemotronForCausalLM", {"attention_bias": True, "mlp_bias": True}),
    "falcon": Case(
        "falcon", "FalconForCausalLM", {"multi_query": True, "num_kv_heads": 1, "tie_word_embeddings": True}
    ),
    "falcon-heads": Case("falcon", "FalconForCausalLM", {"multi_query": False}),
    "falcon-40b": Case(
        "falcon",
        "FalconForCausalLM",
        {"num_kv_heads": 2, "new_decoder_architecture": True, "ffn_hidden_size": 200},
    ),
    "falcon-11b": Case(
        "falcon",
        "FalconForCausalLM",
        {"num_kv_heads": 2, "new_decoder_architecture": True, "num_ln_in_parallel_attn": 1},
    ),
    "gpt_neox": Case("gpt_neox", "GPTNeoXForCausalLM", _rope(partial_rotary_factor=0.25)),
    "gpt_neox-serial": Case(
        "gpt_neox",
        "GPTNeoXForCausalLM",
        {"use_parallel_residual": False, "tie_word_embeddings": True, **_rope(partial_rotary_factor=0.5)},
    ),
    "internlm3": Case(
        "internlm3",
        "LlamaForCausalLM",
        {**_WIDE, "attention_bias": True, "mlp_bias": True, **_rope("dynamic", 5e7, factor=6.0)},
        "llama-spm",
    ),
    "qwen3_next": Case(
        "qwen3_next",
        "Qwen3NextForCausalLM",
        {
            **_EXPERTS,
            **_WIDE,
            **_LINEAR_ATTENTION,
            "shared_expert_intermediate_size": 56,
            "num_hidden_layers": 4,
        },
        "qwen2",
    ),
    "qwen3_next-kinds": Case(
        "qwen3_next",
        "Qwen3NextForCausalLM",
        {
            **_EXPERTS,
            **_WIDE,
            **_LINEAR_ATTENTION,
            "linear_num_key_heads": 4,
            "shared_expert_intermediate_size": 56,
            "layer_types": ["full_attention", "linear_attention", "linear_attention"],
        },
    ),
    "lfm2": Case(
        "lfm2",
        "Lfm2ForCausalLM",
        {"layer_types": ["conv", "full_attention", "conv"], "intermediate_size": 300},
    ),
    "lfm2-tied": Case(
        "lfm2",
        "Lfm2ForCausalLM",
        {
            "layer_types": ["conv", "conv", "full_attention"],
            "block_auto_adjust_ff_dim": False,
            "tie_word_embeddings": True,
            **_rope(theta=50000.0),
        },
    ),
    "mamba": Case(
        "mamba", "MambaForCausalLM", {"state_size": 8, "intermediate_size": 128, "tie_word_embeddings": True}
    ),
    "mamba-untied": Case(
        "mamba", "MambaForCausalLM", {"time_step_rank": 6, "conv_kernel": 3, "intermediate_size": 128}
    ),
    "bloom": Case("bloom", "BloomForCausalLM", {"n_head": 8, "n_layer": 3, "tie_word_embeddings": True}),
    "gpt_oss": Case(
        "gpt_oss",
        "GptOssForCausalLM",
        {**_STACKED, **_WIDE, "num_hidden_layers": 4, "sliding_window": 16, **_rope()},
    ),
    "gpt_oss-yarn": Case(
        "gpt_oss",
        "GptOssForCausalLM",
        {
            **_STACKED,
            **_WIDE,
            "sliding_window": 16,
            **_rope("yarn", 150000.0, factor=32.0, truncate=True, **_OLD),
        },
    ),
    "deepseek_v2": Case(
        "deepseek_v2", "DeepseekV2ForCausalLM", {**_ROUTED, **_LATENT, "routed_scaling_factor": 2.0}
    ),
    "deepseek_v2-lite": Case(
        "deepseek_v2",
        "DeepseekV2ForCausalLM",
        # So many layers it must have; that most have no experts makes it small.
        {
            **_ROUTED,
            **_LATENT,
            "q_lora_rank": None,
            "num_hidden_layers": 27,
            "first_k_dense_replace": 25,
        },
    ),
    "deepseek_v2-yarn": Case(
        "deepseek_v2",
        "DeepseekV2ForCausalLM",
        {**_ROUTED, **_LATENT, **_rope("yarn", factor=40.0, mscale=0.707, mscale_all_dim=0.707, **_OLD)},
    ),
    "deepseek_v3": Case(
        "deepseek_v3",
        "DeepseekV3ForCausalLM",
        {**_ROUTED, **_LATENT, "n_group": 4, "topk_group": 2, "num_mtp_layers": 0},
    ),
    "deepseek_v3-yarn": Case(
        "deepseek_v3",
        "DeepseekV3ForCausalLM",
        {**_ROUTED, **_LATENT, "n_group": 1, "topk_group": 1, "num_mtp_layers": 0, "first_k_dense_replace": 0}
        | _rope("yarn", factor=4.0, mscale=1.0, mscale_all_dim=1.0, **_OLD),
    ),
    "glm4_moe": Case(
        "glm4_moe",
        "Glm4MoeForCausalLM",
        {**_ROUTED, **_WIDE, "use_qk_norm": True, "attention_bias": True, "num_mtp_layers": 0},
    ),
    "glm4_moe_lite": Case(
        "glm4_moe_lite",
        "Glm4MoeLiteForCausalLM",
        {
            **{key: value for key, value in _ROUTED.items() if key != "first_k_dense_replace"},
            **_LATENT,
            "mlp_layer_types": ["dense", "dense", "sparse"],
            "routed_scaling_factor": 1.8,
        },
    ),
    "lfm2_moe": Case(
        "lfm2_moe",
        "Lfm2MoeForCausalLM",
        {
            **_EXPERTS,
            "num_dense_layers": 1,
            "layer_types": ["conv", "full_attention", "conv"],
            "tie_word_embeddings": True,
        },
    ),
    "granitemoe": Case("granitemoe", "GraniteMoeForCausalLM", {**_STACKED, **_GRANITE}),
    "granitemoeshared": Case(
        "granitemoeshared",
        "GraniteMoeSharedForCausalLM",
        {**_STACKED, **_GRANITE, "shared_intermediate_size": 56},
    ),
    "llama4": Case(
        "llama4_text",
        "Llama4ForCausalLM",
        {
            **_STACKED,
            **_WIDE,
            "num_hidden_layers": 4,
            "intermediate_size_mlp": 112,
            "interleave_moe_layer_step": 2,
        },
    ),
    "seed_oss": Case("seed_oss", "SeedOssForCausalLM", {**_WIDE, "attention_bias": True, **_rope(theta=1e6)}),
}

PLAIN: dict[str, Case] = {
    "llama": Case("llama", "LlamaForCausalLM"),
    "mistral": Case("mistral", "MistralForCausalLM", {"sliding_window": None}),
    "qwen2": Case("qwen2", "Qwen2ForCausalLM", {}, "qwen2"),
    "qwen3": Case("qwen3", "Qwen3ForCausalLM", _WIDE, "qwen2"),
    "gpt2": Case("gpt2", "GPT2LMHeadModel", {"n_embd": 256, "n_layer": 2, "n_head": 4}, "gpt-2"),
    "glm": Case("glm", "GlmForCausalLM", {"head_dim": 64, "attention_bias": True}),
}
"""What the smaller models of ``tiny`` and ``chatglm`` are."""

_WIDE_ROWS: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "intermediate_size", "moe_intermediate_size"), 256),
    "block_auto_adjust_ff_dim": False,
}
_OWN_WIDTHS: dict[str, dict[str, Any]] = {
    **{name: {"shared_expert_intermediate_size": 256} for name in ("qwen2_moe", "qwen3_next")},
    "granitemoeshared": {"shared_intermediate_size": 256},
    "llama4": {"intermediate_size_mlp": 256},
    "mamba": {"intermediate_size": 512},
}
WIDE: tuple[str, ...] = (
    *PLAIN,
    *("gemma", "gemma2", "gemma3", "ph3-partial", "granite", "smollm3", "exaone4", "glm4", "olmo2", "olmo3"),
    *("ministral3", "cohere", "cohere2", "starcoder2", "stablelm", "ernie4_5", "hunyuan", "phi", "nemotron"),
    *(
        "qwen3_moe",
        "qwen2_moe",
        "mixtral",
        "falcon",
        "falcon-40b",
        "gpt_neox",
        "internlm3",
        "qwen3_next",
        "lfm2",
    ),
    *(
        "mamba",
        "bloom",
        "gpt_oss",
        "deepseek_v2",
        "deepseek_v3",
        "glm4_moe",
        "granitemoe",
        "granitemoeshared",
    ),
    *("llama4", "seed_oss"),
)
"""One model of each type whose rows may be long enough for blocks of 256."""

WITH_CODE: dict[str, tuple[Case, dict[str, Any]]] = {
    "internlm2": (
        Case(
            "llama",
            "LlamaForCausalLM",
            {"num_attention_heads": 8, "num_key_value_heads": 2, **_rope(theta=1e6)},
        ),
        {"bias": False, "rope_theta": 1000000, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
    ),
    "minicpm": (
        Case(
            "granite",
            "GraniteForCausalLM",
            {
                "embedding_multiplier": 12.0,
                "logits_scaling": 64 / 20,
                "attention_multiplier": 0.25,
                "residual_multiplier": 1.4 / 3**0.5,
                "tie_word_embeddings": True,
            },
        ),
        {"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 20, "rope_scaling": None},
    ),
    "qwen": (
        # Rows for the special tokens that its code has.
        Case(
            "qwen2",
            "Qwen2ForCausalLM",
            {"num_key_value_heads": 4, "vocab_size": 768, "rms_norm_eps": 1e-6, **_rope(theta=1e6)},
            "qwen2",
        ),
        {
            **{"intermediate_size": 192, "kv_channels": 16, "layer_norm_epsilon": 1e-6, "no_bias": True},
            **{"rotary_emb_base": 1000000, "rotary_pct": 1.0, "scale_attn_weights": True},
            **{"seq_length": 256, "max_position_embeddings": 1024, "use_logn_attn": True},
            **{
                "use_dynamic_ntk": True,
                "use_flash_attn": "auto",
                "bf16": False,
                "fp16": False,
                "fp32": False,
            },
            **{"attn_dropout_prob": 0.0, "emb_dropout_prob": 0.0, "use_cache_quantization": False},
            **{"use_cache_kernel": False, "softmax_in_fp32": False, "onnx_safe": None, "eos_token_id": 516},
        },
    ),
}
"""Models whose code is in their folders: one of Transformers' own that computes the same, and keys of config.json."""

_SCALED = {"linear": _rope("linear", 50000.0, factor=4.0), "yarn": _YARN}
SCALINGS: dict[str, tuple[str, dict[str, Any]]] = {
    f"{name}-{kind}": (
        name,
        {
            "rope_parameters": {
                "full_attention": rope["rope_parameters"],
                "sliding_attention": {"rope_type": "default", "rope_theta": 50000.0},
            }
        }
        if name == "olmo3"
        else {"rope_parameters": {**rope["rope_parameters"], **more}},
    )
    for name, more in {
        **{name: {} for name in ("cohere", "cohere2", "ernie4_5", "starcoder2", "hunyuan", "olmo3")},
        "stablelm": {"partial_rotary_factor": 0.25},
    }.items()
    for kind, rope in _SCALED.items()
}
"""Models with rotary scalings that llama.cpp computes: the model, and keys of its configuration."""

TRAPS: dict[str, tuple[str, dict[str, Any], str]] = {
    "qwen3_moe": ("qwen3_moe", {"norm_topk_prob": False}, "norm_topk_prob"),
    "qwen3_moe-dense-layer": ("qwen3_moe", {"mlp_only_layers": [1]}, "mlp_only_layers"),
    "qwen2_moe": ("qwen2_moe", {"norm_topk_prob": True}, "norm_topk_prob"),
    "mixtral": ("mixtral", {"sliding_window": 16}, "sliding_window"),
    "gemma3": ("gemma3", {"query_pre_attn_scalar": 24}, "query_pre_attn_scalar"),
    "gemma3-caps": ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
    "gemma2": ("gemma2", {"layer_types": ["full_attention"] * 4}, "layer_types"),
    "gemma2-untied": ("gemma2", {"tie_word_embeddings": False}, "tie_word_embeddings"),
    "phi3": ("ph3-partial", {"sliding_window": 16}, "sliding_window"),
    "phi3-factors": (
        "ph3-partial",
        _rope("longrope", short_factor=[1.0] * 4, long_factor=[2.0] * 3, partial_rotary_factor=0.5),
        "rope_parameters.long_factor",
    ),
    "olmo3": (
        "olmo3-yarn",
        {
            "rope_parameters": {
                "sliding_attention": _YARN["rope_parameters"],
                "full_attention": _YARN["rope_parameters"],
            }
        },
        "rope_parameters.sliding_attention.rope_type",
    ),
    "olmo3-base": (
        "olmo3",
        {
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 20000.0},
                "full_attention": {"rope_type": "default", "rope_theta": 10000.0},
            }
        },
        "rope_parameters.sliding_attention.rope_theta",
    ),
    "ministral3": ("ministral3", {"sliding_window": 16}, "sliding_window"),
    "ministral3-plain": ("ministral3", _rope(llama_4_scaling_beta=0.3), "rope_parameters.rope_type"),
    "ministral3-truncate": (
        "ministral3",
        {"rope_parameters": {**_MINISTRAL["rope_parameters"], "truncate": False}},
        "rope_parameters.truncate",
    ),
    "cohere": ("cohere", {"use_qk_norm": True}, "use_qk_norm"),
    "cohere-64": ("cohere-64", {"use_qk_norm": False}, "use_qk_norm"),
    "cohere-untied": ("cohere", {"tie_word_embeddings": False}, "tie_word_embeddings"),
    "cohere-bias": ("cohere", {"attention_bias": True}, "attention_bias"),
    "cohere2": ("cohere2", {"layer_types": ["full_attention"] * 3}, "layer_types"),
    "cohere2-bias": ("cohere2", {"attention_bias": True}, "attention_bias"),
    "starcoder2": ("starcoder2", {"sliding_window": 16}, "sliding_window"),
    "starcoder2-bias": ("starcoder2", {"use_bias": False}, "use_bias"),
    "ernie4_5": ("ernie4_5", {"use_bias": True}, "use_bias"),
    "hunyuan": ("hunyuan", {"attention_bias": True}, "attention_bias"),
    "hunyuan-dynamic": ("hunyuan", _rope("dynamic", factor=2.0), "rope_parameters.rope_type"),
    "smollm3": ("smollm3", {"no_rope_layers": [1, 1, 0] * 2 + [1, 1]}, "no_rope_layers"),
    "gpt_oss": ("gpt_oss", {"swiglu_limit": 5.0}, "swiglu_limit"),
    "gpt_oss-windows": ("gpt_oss", {"layer_types": ["full_attention"] * 4}, "layer_types"),
    "deepseek_v2": (
        "deepseek_v2",
        {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2},
        "topk_method",
    ),
    "deepseek_v2-norm": ("deepseek_v2", {"norm_topk_prob": True}, "norm_topk_prob"),
    "deepseek_v2-mscale": (
        "deepseek_v2-yarn",
        _rope("yarn", factor=40.0, mscale=1.0, mscale_all_dim=0.707, **_OLD),
        "rope_parameters.mscale",
    ),
    "deepseek_v2-depth": ("deepseek_v2-lite", {"num_hidden_layers": 28}, "q_lora_rank"),
    "deepseek_v3": ("deepseek_v3", {"rope_interleave": False}, "rope_interleave"),
    "glm4_moe_lite": ("glm4_moe_lite", {"mlp_layer_types": ["dense", "sparse", "dense"]}, "mlp_layer_types"),
    "lfm2_moe": ("lfm2_moe", {"use_expert_bias": False}, "use_expert_bias"),
    "lfm2_moe-scale": ("lfm2_moe", {"routed_scaling_factor": 2.0}, "routed_scaling_factor"),
    "lfm2_moe-weights": ("lfm2_moe", {"norm_topk_prob": False}, "norm_topk_prob"),
    "granitemoe": ("granitemoe", {"hidden_act": "gelu"}, "hidden_act"),
    "llama4": ("llama4", {"attention_chunk_size": 32}, "attention_chunk_size"),
    "llama4-layers": ("llama4", {"moe_layers": [0, 1]}, "moe_layers"),
    "llama4-scale": ("llama4", {"floor_scale": 16}, "floor_scale"),
    "llama4-norms": ("llama4", {"use_qk_norm": False}, "use_qk_norm"),
    "exaone4": ("exaone4", {"sliding_window": 16, "layer_types": None}, "sliding_window"),
    "phi": ("phi", {"qk_layernorm": True}, "qk_layernorm"),
    "phi-activation": ("phi", {"hidden_act": "silu"}, "hidden_act"),
    "phi-heads": ("phi", {"head_dim": 24}, "head_dim"),
    "nemotron": ("nemotron", {"hidden_act": "silu"}, "hidden_act"),
    "nemotron-heads": ("nemotron", {"head_dim": 32}, "head_dim"),
    "falcon": ("falcon", {"alibi": True}, "alibi"),
    "falcon-serial": ("falcon", {"parallel_attn": False}, "parallel_attn"),
    "falcon-biases": ("falcon", {"bias": True}, "bias"),
    "falcon-activation": ("falcon", {"activation": "relu"}, "activation"),
    "gpt_neox": ("gpt_neox", {"attention_bias": False}, "attention_bias"),
    "gpt_neox-activation": ("gpt_neox", {"hidden_act": "relu"}, "hidden_act"),
    "qwen3_next": ("qwen3_next", {"norm_topk_prob": False}, "norm_topk_prob"),
    "qwen3_next-dense-layer": ("qwen3_next", {"mlp_only_layers": [1]}, "mlp_only_layers"),
    "qwen3_next-kinds": ("qwen3_next", {"layer_types": ["conv"] * 4}, "layer_types"),
    "lfm2": ("lfm2", {"conv_bias": True}, "conv_bias"),
    "mamba": ("mamba", {"use_bias": True}, "use_bias"),
    "mamba-size": ("mamba", {"intermediate_size": 192}, "intermediate_size"),
    "mamba-convolution": ("mamba", {"use_conv_bias": False}, "use_conv_bias"),
    "bloom": (
        "bloom",
        {"apply_residual_connection_post_layernorm": True},
        "apply_residual_connection_post_layernorm",
    ),
}
"""Model, keys of its configuration, and the one of them that llama.cpp does not compute: it has to be refused."""


def build(name: str, folder: Path, dtype: str = "float32", **changes: Any) -> Path:
    """Write the model `name` into `folder`, with other keys of its configuration."""
    return _save(CASES[name], folder, dtype, changes)


def build_wide(name: str, folder: Path) -> Path:
    """Write one of `WIDE`, with matrices whose rows divide into blocks of 256."""
    case = PLAIN.get(name) or CASES[name]
    # Larger embeddings would predict the token that was read, where they are the output layer too.
    return _save(case, folder, "float32", _WIDE_ROWS | _OWN_WIDTHS.get(name, {}), embeddings=0.06)


def build_with_code(name: str, folder: Path, twin: Path) -> Path:
    """Write a model as its own code keeps it into `folder`, and the one that computes the same into `twin`."""
    import torch
    from safetensors.torch import load_file, save_file

    case, keys = WITH_CODE[name]
    _save(case, twin, "float32", {})
    shutil.copytree(twin, folder)
    config = json.loads((twin / "config.json").read_text())
    kept = (*SHARED_SIZES, "vocab_size", "rms_norm_eps", "hidden_act", "bos_token_id", "eos_token_id")
    if name == "qwen":
        # What its configuration class has no name for.
        other = ("num_key_value_heads", "rms_norm_eps", "hidden_act", "bos_token_id", "eos_token_id")
        kept = tuple(key for key in kept if key not in (*other, "pad_token_id"))
    cls = {
        **{"internlm2": "InternLM2ForCausalLM", "minicpm": "MiniCPMForCausalLM"},
        **{"qwen": "QWenLMHeadModel"},
    }[name]
    code = {"AutoModelForCausalLM": f"modeling_{name}.{cls}"}
    own = {"model_type": name, "architectures": [cls], "auto_map": code, **keys}
    (folder / "config.json").write_text(json.dumps({key: config[key] for key in kept} | own))
    tensors = load_file(twin / "model.safetensors")
    if name == "internlm2":
        groups, inner = config["num_key_value_heads"], config["hidden_size"]
        for layer in range(config["num_hidden_layers"]):
            start = f"model.layers.{layer}."
            parts = [tensors.pop(f"{start}self_attn.{part}_proj.weight") for part in "qkv"]
            fused = torch.cat([part.view(groups, -1, inner) for part in parts], 1)
            tensors[start + "attention.wqkv.weight"] = fused.reshape(-1, inner)
        tensors = {_internlm2(key): tensor.contiguous() for key, tensor in tensors.items()}
    if name == "qwen":
        for layer in range(config["num_hidden_layers"]):
            for kind in ("weight", "bias"):
                parts = [tensors.pop(f"model.layers.{layer}.self_attn.{part}_proj.{kind}") for part in "qkv"]
                tensors[f"transformer.h.{layer}.attn.c_attn.{kind}"] = torch.cat(parts)
        tensors = {_qwen(key): tensor for key, tensor in tensors.items()}
        tokenizers.as_qwen(folder)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def _internlm2(name: str) -> str:
    renamed = {
        **{
            "self_attn.o_proj": "attention.wo",
            "mlp.gate_proj": "feed_forward.w1",
            "mlp.up_proj": "feed_forward.w3",
        },
        **{"mlp.down_proj": "feed_forward.w2", "input_layernorm": "attention_norm", "lm_head": "output"},
        **{"post_attention_layernorm": "ffn_norm", "embed_tokens": "tok_embeddings"},
    }
    for old, new in renamed.items():
        name = name.replace(old, new)
    return name


def _qwen(name: str) -> str:
    renamed = {
        **{"model.layers": "transformer.h", "self_attn.o_proj": "attn.c_proj", "mlp.up_proj": "mlp.w1"},
        **{"mlp.gate_proj": "mlp.w2", "mlp.down_proj": "mlp.c_proj", "input_layernorm": "ln_1"},
        **{"post_attention_layernorm": "ln_2", "model.norm": "transformer.ln_f"},
        "model.embed_tokens": "transformer.wte",
    }
    for old, new in renamed.items():
        name = name.replace(old, new)
    return name


def _save(case: Case, folder: Path, dtype: str, changes: dict[str, Any], *, embeddings: float = 0.5) -> Path:
    import torch
    import transformers
    from transformers import AutoConfig

    special = tokenizers.build(case.tokenizer, folder)
    keys = {"vocab_size": special["size"], "bos_token_id": special["bos"], "eos_token_id": special["eos"]}
    keys |= copy.deepcopy({**SHARED_SIZES, **case.config, **changes})
    with torch.random.fork_rng():
        # What is not replaced below, some classes draw.
        torch.manual_seed(0)
        model = getattr(transformers, case.cls)(AutoConfig.for_model(case.model_type, **keys)).float()
    randomize(model, torch.Generator().manual_seed(0), embeddings)
    model.to(getattr(torch, dtype))
    model.config.dtype = dtype
    model.save_pretrained(folder)
    return folder


MULTIMODAL: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "gemma3": ("Gemma3ForConditionalGeneration", "gemma3", {**_GEMMA, "num_hidden_layers": 7}, "gemma3_text"),
    "mistral3": (
        "Mistral3ForConditionalGeneration",
        "mistral3",
        {**_WIDE, "sliding_window": None},
        "mistral",
    ),
    "ministral3": ("Mistral3ForConditionalGeneration", "mistral3", {**_WIDE, **_MINISTRAL}, "ministral3"),
}
"""Class, its model type, configuration of the language model, and that one's model type."""


def build_multimodal(name: str, folder: Path, *, tied: bool) -> Path:
    """Write a model that also sees."""
    import torch
    import transformers
    from transformers import AutoConfig

    cls, model_type, own, text_type = MULTIMODAL[name]
    special = tokenizers.build("llama-spm", folder)
    tokens = {"vocab_size": special["size"], "bos_token_id": special["bos"], "eos_token_id": special["eos"]}
    text = {**SHARED_SIZES, **own, **tokens, "tie_word_embeddings": tied, "model_type": text_type}
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {**sizes, "image_size": 56, "patch_size": 14, "head_dim": 16}
    more = {"mm_tokens_per_image": 4, "image_token_index": 100, "tie_word_embeddings": tied}
    config = AutoConfig.for_model(model_type, text_config=text, vision_config=vision, **more)
    model = getattr(transformers, cls)(config).float()
    randomize(model, torch.Generator().manual_seed(0))
    model.save_pretrained(folder)
    return folder


def randomize(model: Any, generator: Any, embeddings: float = 0.5) -> None:
    """Make every number of the model random, and large enough that attention and experts matter."""
    import torch

    # By a buffer, some models choose experts.
    state = dict(model.named_parameters()) | {k: v for k, v in model.named_buffers() if "bias" in k}
    with torch.no_grad():
        for name in sorted(state):
            tensor = state[name]
            noise = torch.randn(tensor.shape, generator=generator)
            if tensor.ndim < 2:
                tensor.add_(0.1 * noise)
            elif "embed" in name:
                tensor.copy_(embeddings * noise)
            else:
                tensor.copy_(noise / tensor.shape[-1] ** 0.5)
