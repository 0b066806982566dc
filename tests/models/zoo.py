"""Tiny random models of many Transformers classes, saved by Transformers itself, for what must hold for all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["ZOO", "build"]

_SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
_MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
_LATENT = {
    "kv_lora_rank": 32,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "num_key_value_heads": 4,
}
_GPT2 = {"vocab_size": 128, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}
_VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}

ZOO: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("llama", "LlamaForCausalLM", {}),
    "llama-tied": ("llama", "LlamaForCausalLM", {"tie_word_embeddings": True}),
    "llama-classifier": ("llama", "LlamaForSequenceClassification", {}),
    "llama-base": ("llama", "LlamaModel", {}),
    "qwen2": ("qwen2", "Qwen2ForCausalLM", {}),
    "qwen3_moe": ("qwen3_moe", "Qwen3MoeForCausalLM", {"num_experts": 4, **_MOE}),
    "mixtral": ("mixtral", "MixtralForCausalLM", {"num_local_experts": 4, **_MOE}),
    "deepseek_v3": ("deepseek_v3", "DeepseekV3ForCausalLM", {**_MOE, **_LATENT, "n_shared_experts": 1}),
    "gpt_oss": ("gpt_oss", "GptOssForCausalLM", {"num_local_experts": 4, "head_dim": 16, **_MOE}),
    "gemma2": ("gemma2", "Gemma2ForCausalLM", {"head_dim": 16}),
    "phi3": ("phi3", "Phi3ForCausalLM", {}),
    "falcon": ("falcon", "FalconForCausalLM", {"new_decoder_architecture": False, "multi_query": True}),
    "gpt2": ("gpt2", "GPT2LMHeadModel", _GPT2),
    "gpt_neox": ("gpt_neox", "GPTNeoXForCausalLM", {}),
    "bloom": ("bloom", "BloomForCausalLM", {"n_layer": 2, "n_head": 4}),
    "stablelm": ("stablelm", "StableLmForCausalLM", {"use_qkv_bias": True}),
    "mamba": ("mamba", "MambaForCausalLM", {"state_size": 8}),
    "bert": ("bert", "BertForPreTraining", {}),
    "t5": (
        "t5",
        "T5ForConditionalGeneration",
        {"d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 4},
    ),
    "gemma3": (
        "gemma3",
        "Gemma3ForConditionalGeneration",
        {
            "text_config": {**_SIZES, "head_dim": 16, "model_type": "gemma3_text"},
            "vision_config": {**_VISION, "model_type": "siglip_vision_model"},
            "mm_tokens_per_image": 4,
            "image_token_index": 100,
        },
    ),
}
"""Name: model type, class, and its sizes where they are not the usual ones."""


def build(name: str, folder: str | Path) -> Path:
    """Write the model `name`, float32, without a tokenizer."""
    import torch
    import transformers
    from transformers import AutoConfig

    kind, cls, more = ZOO[name]
    torch.manual_seed(0)
    sizes = {} if "text_config" in more else _SIZES
    model = getattr(transformers, cls)(AutoConfig.for_model(kind, **{**sizes, **more}))
    model.save_pretrained(folder)
    return Path(folder)
