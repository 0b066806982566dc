"""Configurations of ChatGLM-6B and GLM-130B, with the keys that ChatGLM-6B's config.json has.

The ids of special tokens follow from the vocabulary where a configuration lacks them; they are those of the published
tokenizers, which append these tokens to 130000 pieces of text, after 20000 ids of images in the older ones.
"""

from typing import Any

from transformers import PreTrainedConfig

from qformats.errors import ConfigError

__all__ = ["ChatGLM6BConfig", "GLM130BConfig"]

_TEXT = 130000
"""Pieces of text before the special tokens."""
_IMAGES = 20000
"""Ids before those of text, in GLM-130B and the first release of ChatGLM-6B."""
_SOP, _EOP = 4, 5
"""Places of the tokens that begin and end an answer among the special ones, which begin with ``[MASK]``, ``[gMASK]``
and ``[sMASK]``."""
_PUBLISHED = (12288, 96)
"""Hidden features and heads of the published GLM-130B."""
_FREQUENCIES = ("float16", "float32")


class _GLMConfig(PreTrainedConfig):  # type: ignore[misc, unused-ignore]
    """What the two have in common.

    Parameters
    ----------
    num_layers, hidden_size, num_attention_heads, inner_hidden_size : int
        Sizes; `inner_hidden_size` is the width of the feed-forward network.
    max_sequence_length : int
        Tokens that the model was trained on.
    position_encoding_2d : bool
        Whether each half of a head is rotated by a position of its own: that in the text, and that in the answer.
    inv_freq_dtype : str
        ``"float16"`` or ``"float32"``: what the frequencies of the rotation are rounded to. Angles are float32.
    mask_token_id, gmask_token_id, smask_token_id : int
        Tokens that stand for a blank: a short one in the text, the rest of the text, and a sentence.
    tensor_parallel_size, tensor_parallel_rank : int
        Devices that share the model, and which of them this is; the other sizes are those of the whole model.
    """

    keys_to_ignore_at_inference = ["past_key_values"]
    attribute_map = {
        "num_hidden_layers": "num_layers",
        "intermediate_size": "inner_hidden_size",
        "max_position_embeddings": "max_sequence_length",
    }

    num_layers: int = 28
    hidden_size: int = 4096
    num_attention_heads: int | None = 32
    inner_hidden_size: int = 16384
    vocab_size: int = 130528
    layernorm_epsilon: float = 1e-5
    max_sequence_length: int = 2048
    position_encoding_2d: bool = True
    inv_freq_dtype: str = "float16"
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    mask_token_id: int | None = None
    gmask_token_id: int | None = None
    smask_token_id: int | None = None
    pre_seq_len: int | None = None
    tensor_parallel_size: int = 1
    tensor_parallel_rank: int = 0

    def __post_init__(self, **more: Any) -> None:
        if self.inv_freq_dtype not in _FREQUENCIES:
            raise ConfigError("inv_freq_dtype", self.inv_freq_dtype, " or ".join(_FREQUENCIES))
        if self.pre_seq_len:
            hint = "Load the model without it: the base does not need it"
            raise ConfigError("pre_seq_len", self.pre_seq_len, "none, since P-tuning is not supported", hint)
        if not self.num_attention_heads or self.hidden_size % self.num_attention_heads:
            allowed = f"a divisor of hidden_size, which is {self.hidden_size}"
            raise ConfigError("num_attention_heads", self.num_attention_heads, allowed)
        first = self._first_special()
        for place, name in enumerate(("mask_token_id", "gmask_token_id", "smask_token_id")):
            if getattr(self, name) is None:
                setattr(self, name, first + place)
        if self.bos_token_id is None:
            self.bos_token_id = first + _SOP
        if self.eos_token_id is None:
            self.eos_token_id = self._ends(first + _EOP)
        super().__post_init__(**more)

    def _first_special(self) -> int:
        return _TEXT + (_IMAGES if self.vocab_size >= _TEXT + _IMAGES else 0)

    @property
    def images(self) -> int:
        """Ids of images, which come before those of text."""
        return self._first_special() - _TEXT

    def _ends(self, eop: int) -> int | list[int]:
        return eop

    @property
    def blanks(self) -> tuple[tuple[int | None, bool], ...]:
        """Tokens that stand for a blank, in the order in which they are looked for, and whether for all of the rest."""
        raise NotImplementedError


class ChatGLM6BConfig(_GLMConfig):
    """ChatGLM-6B; the defaults are those of its later release.

    Parameters
    ----------
    first_release : bool, optional
        Whether positions follow the release of March 2023; by default, what the size of the vocabulary tells.

    Examples
    --------
    >>> from qformats_glm.models.configuration import ChatGLM6BConfig
    >>> ChatGLM6BConfig().gmask_token_id, ChatGLM6BConfig(vocab_size=150528).gmask_token_id
    (130001, 150001)
    """

    model_type = "chatglm"

    first_release: bool | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **more: Any) -> None:
        super().__post_init__(**more)
        if self.first_release is None:
            self.first_release = self.vocab_size >= _TEXT + _IMAGES
        if self.pad_token_id is None:
            # The first release pads with a piece of text, whose ids come after those of images.
            self.pad_token_id = 3 + (_IMAGES if self.vocab_size >= _TEXT + _IMAGES else 0)

    @property
    def blanks(self) -> tuple[tuple[int | None, bool], ...]:
        """``[gMASK]`` before ``[MASK]``."""
        return (self.gmask_token_id, True), (self.mask_token_id, False)


class GLM130BConfig(_GLMConfig):
    """GLM-130B; the defaults are those of the published model.

    Examples
    --------
    >>> from qformats_glm.models.configuration import GLM130BConfig
    >>> GLM130BConfig().eos_token_id
    [150005, 20002]
    """

    model_type = "glm-130b"

    num_layers: int = 70
    hidden_size: int = _PUBLISHED[0]
    num_attention_heads: int | None = None
    inner_hidden_size: int = 32768
    vocab_size: int = 150528
    position_encoding_2d: bool = False
    # What later SwissArmyTransformer does; earlier versions round to float16.
    inv_freq_dtype: str = "float32"
    tie_word_embeddings: bool = True

    def __post_init__(self, **more: Any) -> None:
        if self.num_attention_heads is None:
            if self.hidden_size != _PUBLISHED[0]:
                hint = "Say it with -O heads=N: neither model_config.json nor the files of the ranks tell it"
                raise ConfigError("num_attention_heads", None, "the number of attention heads", hint)
            self.num_attention_heads = _PUBLISHED[1]
        super().__post_init__(**more)

    def _ends(self, eop: int) -> int | list[int]:
        return [eop, _IMAGES + 2]

    @property
    def blanks(self) -> tuple[tuple[int | None, bool], ...]:
        """``[MASK]`` and ``[sMASK]`` before ``[gMASK]``."""
        return (self.mask_token_id, False), (self.smask_token_id, False), (self.gmask_token_id, True)
