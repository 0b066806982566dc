"""Tiny random models of real Transformers classes, saved as Hugging Face folders.

Their weights are scaled so that every piece shows in the logits: attention scores with a spread of about 1,
norms that are not 1, biases that are not 0, a rope base that is nobody's default. A wrong permutation, a
transposed matrix or a forgotten bias moves the logits by whole units, not by rounding noise.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from models import tokenizers

__all__ = ["TINY", "build"]


def build(
    name: str,
    folder: str | Path,
    dtype: str = "float32",
    *,
    max_shard_size: int | str = "5GB",
    bin_shards: int = 0,
    legacy_config: bool = False,
) -> Path:
    """Write the model `name` as a Hugging Face folder.

    Parameters
    ----------
    name : str
        A key of `TINY`.
    folder : path-like
        Created; its files are overwritten.
    dtype : {"float32", "bfloat16", "float16"}
        Type of the stored weights.
    max_shard_size : int or str
        Bytes of one safetensors file, as ``save_pretrained`` takes it.
    bin_shards : int
        If not 0, write so many pickled ``pytorch_model*.bin`` files instead of safetensors.
    legacy_config : bool
        Write ``config.json`` as Transformers 4 did: ``rope_theta``, ``rope_scaling``, ``torch_dtype``,
        ``n_ctx``.

    Returns
    -------
    Path
        `folder`.
    """
    import torch

    folder = Path(folder)
    kind, make = TINY[name]
    special = tokenizers.build(kind, folder)
    model = make(special)
    _randomize(model, name)
    model.to(getattr(torch, dtype))
    model.config.dtype = dtype
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    if bin_shards:
        _write_bins(folder, model, bin_shards)
    if legacy_config:
        _downgrade(folder / "config.json")
    return folder


def _llama(special: tokenizers.Special, rope: dict[str, Any] | None = None, **changes: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**_common(special, rope) | changes))


def _mistral(special: tokenizers.Special) -> Any:
    from transformers import MistralConfig, MistralForCausalLM

    return MistralForCausalLM(MistralConfig(**_common(special), head_dim=16, sliding_window=None))


def _qwen2(special: tokenizers.Special) -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    # As in the published models there are more rows of embeddings than tokens.
    padded = {"vocab_size": -(-special["size"] // 64) * 64, "tie_word_embeddings": True}
    return Qwen2ForCausalLM(Qwen2Config(**_common(special, {"rope_theta": 1e6}) | padded))


def _qwen3(special: tokenizers.Special) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(Qwen3Config(**_common(special, {"rope_theta": 1e6}), head_dim=32))


def _gpt2(special: tokenizers.Special) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        n_positions=256,
        n_embd=64,
        n_layer=2,
        n_head=4,
        vocab_size=special["size"],
        layer_norm_epsilon=2e-5,
        bos_token_id=special["bos"],
        eos_token_id=special["eos"],
    )
    return GPT2LMHeadModel(config)


def _common(special: tokenizers.Special, rope: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "vocab_size": special["size"],
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "rms_norm_eps": 2e-5,
        "tie_word_embeddings": False,
        "bos_token_id": special["bos"],
        "eos_token_id": special["eos"],
        "pad_token_id": special.get("pad"),
        "rope_parameters": {"rope_type": "default", "rope_theta": 50000.0} | (rope or {}),
    }


_LINEAR = {"rope_type": "linear", "factor": 4.0}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
# Of 8 frequencies one is kept, one is blended and six are divided.
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}

TINY: dict[str, tuple[str, Callable[[tokenizers.Special], Any]]] = {
    "llama": ("smollm", _llama),
    "llama-tied": ("smollm", lambda special: _llama(special, tie_word_embeddings=True)),
    "llama-bias": ("smollm", lambda special: _llama(special, attention_bias=True, mlp_bias=True)),
    "llama-head-dim": ("llama-bpe", lambda special: _llama(special, head_dim=32)),
    "llama-rope-linear": ("llama-bpe", lambda special: _llama(special, _LINEAR)),
    "llama-rope-yarn": ("llama-bpe", lambda special: _llama(special, _YARN)),
    "llama-rope-llama3": ("llama-bpe", lambda special: _llama(special, _LLAMA3)),
    "llama-spm": ("llama-spm", _llama),
    "mistral": ("llama-spm", _mistral),
    "qwen2": ("qwen2", _qwen2),
    "qwen3": ("qwen2", _qwen3),
    "gpt2": ("gpt-2", _gpt2),
}
"""Name: the kind of its tokenizer, and what makes the model for that tokenizer's special ids."""


def _randomize(model: Any, name: str) -> None:
    import torch

    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    with torch.no_grad():
        for key, weight in model.named_parameters():
            values = torch.randn(weight.shape, generator=generator)
            if weight.ndim == 1 and key.endswith("weight"):
                values = 1 + values.clamp(-2, 2) * 0.3
            elif weight.ndim == 1:
                values *= 0.3
            else:
                values *= 0.15
            weight.copy_(values)


def _write_bins(folder: Path, model: Any, shards: int) -> None:
    import torch

    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    for old in (*folder.glob("model*.safetensors"), *folder.glob("model.safetensors.index.json")):
        old.unlink()
    names = list(state)
    if shards == 1:
        torch.save(state, folder / "pytorch_model.bin")
        return
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        file = f"pytorch_model-{shard + 1:05d}-of-{shards:05d}.bin"
        part = {name: state[name] for name in names[shard::shards]}
        torch.save(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    total = sum(value.numel() * value.element_size() for value in state.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _downgrade(path: Path) -> None:
    config = json.loads(path.read_text())
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.46.0"
    rope = config.pop("rope_parameters", None)
    if rope:
        config["rope_theta"] = rope.pop("rope_theta")
        config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    if config["model_type"] == "gpt2":
        config["n_ctx"] = config["n_positions"]
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
