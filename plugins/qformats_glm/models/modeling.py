"""Model classes for ChatGLM-6B and GLM-130B, of Transformers' kind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from qformats.errors import ConfigError, Described
from qformats_glm.models.configuration import ChatGLM6BConfig, GLM130BConfig
from qformats_glm.models.layers import GLMLayer, rotation
from qformats_glm.models.parallel import SharedEmbedding, gathered
from qformats_glm.models.places import Answer, positions, visible

if TYPE_CHECKING:
    from transformers import Cache

__all__ = ["ChatGLM6BForCausalLM", "GLM130BForCausalLM"]


class _GLMPreTrained(PreTrainedModel):  # type: ignore[misc, unused-ignore]
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules: list[str] = ["GLMLayer"]
    _skip_keys_device_placement: list[str] = ["past_key_values"]
    _input_embed_layer = "word_embeddings"
    # Old files hold the frequencies of the rotation, once per layer or once.
    _keys_to_ignore_on_load_unexpected: list[str] = [r"rotary_emb\.inv_freq$"]


class GLMModel(_GLMPreTrained):
    """Embedding, layers and last norm.

    Parameters
    ----------
    config : PreTrainedConfig
        Sizes.
    gated : bool
        Whether the feed-forward networks are gated, as those of GLM-130B.
    """

    def __init__(self, config: Any, *, gated: bool) -> None:
        super().__init__(config)
        rows = config.vocab_size // config.tensor_parallel_size
        self.word_embeddings = nn.Embedding(rows, config.hidden_size)
        self.looked_up = SharedEmbedding(config)
        self.layers = nn.ModuleList(
            GLMLayer(config, number, gated=gated) for number in range(config.num_layers)
        )
        self.final_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> Any:
        """The embedding of tokens."""
        return self.word_embeddings

    def set_input_embeddings(self, value: Any) -> None:
        """Put another embedding in its place."""
        self.word_embeddings = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool = False,
    ) -> BaseModelOutputWithPast:
        """Hidden states; see :meth:`_GLMForCausalLM.forward`."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ConfigError("input_ids", Described("both or neither"), "one of input_ids and inputs_embeds")
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if use_cache and past_key_values is None and not (self.gradient_checkpointing and self.training):
            past_key_values = DynamicCache(config=self.config)
        if past_key_values is not None and getattr(past_key_values, "is_compileable", False):
            found = type(past_key_values).__name__
            raise ConfigError("past_key_values", found, "DynamicCache, which grows with the text")
        before = 0 if past_key_values is None else past_key_values.get_seq_length()
        keep = attention_mask if attention_mask is not None and attention_mask.ndim == 2 else None
        if position_ids is None and before:
            position_ids = _remembered(past_key_values, input_ids, before)
        elif not before and past_key_values is not None and input_ids is not None and attention_mask is keep:
            remembering: Any = past_key_values
            remembering.qformats_answer = Answer.after(input_ids, keep, self.config)
        place, seen = self._places(input_ids, attention_mask, position_ids, before)
        states = inputs_embeds
        if states is None:
            assert input_ids is not None
            states = self.looked_up(self.word_embeddings, input_ids)
        turn = rotation(
            place, self.config.hidden_size // self.config.num_attention_heads, self.config, states.dtype
        )
        every = []
        for layer in self.layers:
            every.append(states)
            states = layer(states, seen=seen, turn=turn, past_key_values=past_key_values)
        states = self.final_layernorm(states)
        return BaseModelOutputWithPast(
            last_hidden_state=states,
            past_key_values=past_key_values if use_cache else None,
            hidden_states=(*every, states) if output_hidden_states else None,
        )

    def _places(
        self, ids: Tensor | None, mask: Tensor | None, place: Tensor | None, before: int
    ) -> tuple[Tensor, Tensor | None]:
        """Positions and what is seen: as given, or as the ids of a whole text tell."""
        if mask is not None and mask.ndim == 4 and mask.dtype != torch.bool:
            raise ConfigError(
                "attention_mask", str(mask.dtype), "bool in four dimensions, true for what is seen"
            )
        if mask is not None and mask.ndim not in (2, 4):
            found = Described(f"{mask.ndim} dimensions")
            raise ConfigError("attention_mask", found, "(batch, tokens), or (batch, 1, tokens, keys) of bool")
        whole = ids is not None and not before
        if place is None and not whole:
            found = Described("none, beside inputs_embeds")
            raise ConfigError("position_ids", found, "positions of these tokens")
        if ids is None and (mask is None or mask.ndim == 2):
            raise ConfigError(
                "attention_mask", Described("none, beside inputs_embeds"), "what each token sees"
            )
        keep = mask if mask is not None and mask.ndim == 2 else None
        if place is None:
            assert ids is not None
            place = positions(ids, keep, self.config)
        if mask is not None and mask.ndim == 4:
            return place, mask
        if whole:
            assert ids is not None
            return place, visible(ids, keep, self.config)
        if place.shape[-1] == 1 and keep is None:
            return place, None
        return place, _continued(place.shape[-1], before, keep, place.device)


def _remembered(cache: Any, ids: Tensor | None, before: int) -> Tensor:
    """Positions of tokens that follow what a cache holds."""
    answer = getattr(cache, "qformats_answer", None)
    if answer is None or ids is None or before < answer.before or len(ids) != len(answer.first):
        found = Described("none, for tokens that continue a text which this cache did not begin with")
        hint = "model.generate computes them from the ids of the whole text"
        raise ConfigError("position_ids", found, "positions of these tokens", hint)
    place: Tensor = answer.positions(before, ids.shape[1])
    return place


def _continued(count: int, before: int, keep: Tensor | None, device: torch.device) -> Tensor:
    """What the last `count` tokens of an answer see: everything before them that is not padding."""
    row = torch.arange(before, before + count, device=device)[:, None]
    seen = (torch.arange(before + count, device=device) <= row)[None, None]
    return seen if keep is None else seen & keep.bool()[:, None, None, :]


class _GLMForCausalLM(_GLMPreTrained, GenerationMixin):
    _tied_weights_keys: dict[str, str] = {"lm_head.weight": "transformer.word_embeddings.weight"}
    _gated: ClassVar[bool]

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.transformer = GLMModel(config, gated=self._gated)
        self.ranks = config.tensor_parallel_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size // self.ranks, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> Any:
        """The embedding of tokens."""
        return self.transformer.word_embeddings

    def set_input_embeddings(self, value: Any) -> None:
        """Put another embedding in its place."""
        self.transformer.word_embeddings = value

    def get_output_embeddings(self) -> Any:
        """The output layer."""
        return self.lm_head

    def set_output_embeddings(self, value: Any) -> None:
        """Put another output layer in its place."""
        self.lm_head = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **more: Any,
    ) -> Any:
        """Logits of the next tokens.

        Parameters
        ----------
        input_ids : Tensor, optional
            int64, ``(batch, tokens)``. A whole text holds a mask token, and ``<sop>`` where its answer begins.
        attention_mask : Tensor, optional
            ``(batch, tokens)``, 0 for padding on either side; or bool, ``(batch, 1, tokens, keys)``, true where a token
            sees a key. By default nothing is padding, and the ids tell what is seen.
        position_ids : Tensor, optional
            int64, ``(batch, 2, tokens)`` with two-dimensional positions, else ``(batch, tokens)``; what the ids of a
            whole text tell by default.
        past_key_values : Cache, optional
            Keys and values of the tokens before these. If it began with a whole text, it knows the positions of these.
        inputs_embeds : Tensor, optional
            In place of ids, with `position_ids` and a four-dimensional `attention_mask`.
        labels : Tensor, optional
            int64, ``(batch, tokens)``: ids, of which each is predicted from those before it; -100 is not counted.
        use_cache : bool, optional
            Whether to return keys and values.
        logits_to_keep : int or Tensor
            How many of the last tokens, or which, get logits; 0 is all.

        Raises
        ------
        ConfigError
            If arguments contradict each other, or a text has no mask token or no ``<sop>``.
        """
        if output_attentions:
            raise ConfigError("output_attentions", True, "False: attention weights are not kept")
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        inner = self.transformer(
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache, bool(wanted)
        )
        states = inner.last_hidden_state
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = gathered(self.lm_head(states[:, kept, :]), self.ranks)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, self.config.vocab_size, **more)
        given = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=inner.past_key_values,
            hidden_states=inner.hidden_states,
        )
        return given if return_dict in (None, True) else given.to_tuple()

    def qformats_places(self, past_key_values: Any) -> tuple[Tensor, Tensor]:
        """Positions of the tokens behind a text that a cache holds: for token n, the first plus n times the second.

        Parameters
        ----------
        past_key_values : Cache
            That read the text.

        Returns
        -------
        tuple of Tensor
            int64, ``(batch, 2, 1)`` with two-dimensional positions, else ``(batch, 1)``.
        """
        answer: Answer = past_key_values.qformats_answer
        return answer.first - answer.rise * answer.before, answer.rise

    def _prepare_position_ids_for_generation(self, inputs_tensor: Any, model_kwargs: Any) -> None:
        """None, which Transformers would count on by one a token: they are computed anew for every step."""

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        past_key_values: Cache | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        is_first_iteration: bool | None = False,
        position_ids: Tensor | None = None,
        **more: Any,
    ) -> dict[str, Any]:
        """What the next step is called with: positions follow from the ids of the whole text.

        Raises
        ------
        ConfigError
            If the ids are not those of the whole text.
        """
        if inputs_embeds is not None or position_ids is not None:
            name = "position_ids" if inputs_embeds is None else "inputs_embeds"
            raise ConfigError(
                f"{name} of generate", Described("given"), "none: positions follow from the ids"
            )
        before = 0 if past_key_values is None else past_key_values.get_seq_length()
        count = input_ids.shape[1] if next_sequence_length is None else next_sequence_length
        if before + count != input_ids.shape[1]:
            found = Described(f"{input_ids.shape[1]} ids beside a cache of {before}, for a step of {count}")
            raise ConfigError("input_ids of generate", found, "the ids of the whole text")
        if (
            before
            and count > 1
            and not bool((input_ids[:, :before] == self.config.bos_token_id).any(1).all())
        ):
            # The text sees all of itself: none of it can be read before the rest is there.
            found = Described("a part of the text before <sop>")
            raise ConfigError("past_key_values of generate", found, "the whole text up to <sop>, or nothing")
        place = positions(input_ids, attention_mask, self.config, continued=before > 0)
        given = {
            "input_ids": input_ids[:, -count:].contiguous(),
            "position_ids": place[..., -count:],
            "attention_mask": attention_mask,
            "past_key_values": past_key_values,
        }
        return given | {key: value for key, value in more.items() if key in _PASSED_ON}


_PASSED_ON = ("use_cache", "logits_to_keep", "output_attentions", "output_hidden_states", "return_dict")


class ChatGLM6BForCausalLM(_GLMForCausalLM):
    """ChatGLM-6B, both releases.

    Examples
    --------
    >>> import torch
    >>> from qformats_glm.models.configuration import ChatGLM6BConfig
    >>> from qformats_glm.models.modeling import ChatGLM6BForCausalLM
    >>> sizes = {"num_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "inner_hidden_size": 32}
    >>> ids = {"vocab_size": 64, "mask_token_id": 50, "gmask_token_id": 51, "bos_token_id": 54, "eos_token_id": 55}
    >>> model = ChatGLM6BForCausalLM(ChatGLM6BConfig(**sizes, **ids)).eval()
    >>> prompt = torch.tensor([[7, 8, 9, 51, 54]])
    >>> model.generate(prompt, max_new_tokens=1, min_new_tokens=1, do_sample=False).shape
    torch.Size([1, 6])
    """

    config_class = ChatGLM6BConfig
    _gated = False


class GLM130BForCausalLM(_GLMForCausalLM):
    """GLM-130B: positions in one dimension, a gated feed-forward network, the embedding as output layer."""

    config_class = GLM130BConfig
    _gated = True
