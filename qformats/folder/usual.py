"""Tensors of the most common models, so that Transformers need not be asked about them: importing it takes two seconds.

Only an exact match counts. Whatever differs in the least is left to :mod:`qformats.folder.skeleton`; the tests compare
these names and shapes with those of Transformers' classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["usual_class"]


@dataclass(frozen=True)
class _Kind:
    """What one model type has beside what all of these have.

    `attention_bias` and `mlp_bias` are a key of the configuration, or True or False where none tells; `output_bias`
    says whether the attention's output has one too. `head_dim` is its default; None if other sizes tell it.
    """

    model_class: str
    attention_bias: str | bool = False
    mlp_bias: str | bool = False
    output_bias: bool = True
    head_norms: bool = False
    head_dim: int | None = None


_SIZES = (
    "hidden_size",
    "intermediate_size",
    "vocab_size",
    "num_attention_heads",
    "num_key_value_heads",
    "num_hidden_layers",
)
_KINDS = {
    "llama": _Kind("LlamaForCausalLM", attention_bias="attention_bias", mlp_bias="mlp_bias"),
    "mistral": _Kind("MistralForCausalLM"),
    "qwen2": _Kind("Qwen2ForCausalLM", attention_bias=True, output_bias=False),
    "qwen3": _Kind("Qwen3ForCausalLM", attention_bias="attention_bias", head_norms=True, head_dim=128),
}


def usual_class(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """Class of a model that has exactly the tensors of its type; None if that cannot be told here.

    Parameters
    ----------
    config : mapping
        config.json.
    shapes : mapping of str to tuple of int
        Shape of every tensor, by name.

    Examples
    --------
    >>> import qformats
    >>> from qformats.folder.usual import usual_class
    >>> model = qformats.open("demo")
    >>> shapes = {name: tensor.shape for name, tensor in model.tensors.items()}
    >>> usual_class(model.config, shapes)
    'LlamaForCausalLM'
    >>> usual_class(model.config | {"attention_bias": True}, shapes) is None
    True
    """
    kind = _KINDS.get(str(config.get("model_type")))
    if kind is None or config.get("architectures", [kind.model_class]) != [kind.model_class]:
        return None
    if "auto_map" in config or not isinstance(config.get("tie_word_embeddings", False), bool):
        return None
    wanted = _tensors(kind, config, len(shapes))
    if wanted is None:
        return None
    if config.get("tie_word_embeddings", False) and "lm_head.weight" not in shapes:
        del wanted["lm_head.weight"]
    given = {name: tuple(shape) for name, shape in shapes.items()}
    return kind.model_class if given == wanted else None


def _tensors(kind: _Kind, config: Mapping[str, Any], most: int) -> dict[str, tuple[int, ...]] | None:
    """Name and shape of every tensor; None if a size is not given, or there are more than `most` layers."""
    sizes = [config[key] for key in _SIZES if type(config.get(key)) is int and config[key] > 0]
    if len(sizes) < len(_SIZES) or sizes[-1] > most:
        return None
    hidden, inner, vocabulary, heads, groups, layers = sizes
    head_dim = config.get("head_dim", kind.head_dim)
    head_dim = hidden // heads if head_dim is None and "head_dim" not in config else head_dim
    biases = [
        config.get(key, False) if isinstance(key, str) else key
        for key in (kind.attention_bias, kind.mlp_bias)
    ]
    if type(head_dim) is not int or not all(isinstance(bias, bool) for bias in biases):
        return None
    rows, columns = heads * head_dim, groups * head_dim
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocabulary, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (vocabulary, hidden),
    }
    attention = {"q_proj": (rows, hidden), "k_proj": (columns, hidden), "v_proj": (columns, hidden)}
    attention["o_proj"] = (hidden, rows)
    mlp = {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}
    for number in range(layers):
        layer = f"model.layers.{number}"
        found |= {f"{layer}.{norm}_layernorm.weight": (hidden,) for norm in ("input", "post_attention")}
        for part, matrices, bias in (("self_attn", attention, biases[0]), ("mlp", mlp, biases[1])):
            for name, shape in matrices.items():
                found[f"{layer}.{part}.{name}.weight"] = shape
                if bias and (kind.output_bias or name != "o_proj"):
                    found[f"{layer}.{part}.{name}.bias"] = shape[:1]
        if kind.head_norms:
            found |= {f"{layer}.self_attn.{name}_norm.weight": (head_dim,) for name in "qk"}
    return found
