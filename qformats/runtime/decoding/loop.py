"""``generate`` of a model on a GPU: the choice of tokens around captured steps."""

from __future__ import annotations

import functools
import warnings
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.utils import GenerationMixin

from qformats.errors import QFormatsError
from qformats.kernels.launch import current
from qformats.runtime.bound import Bound
from qformats.runtime.decoding.fused import Unfit
from qformats.runtime.decoding.session import PLACES, Session
from qformats.runtime.decoding.turns import Turns

__all__ = ["captured_steps"]

_BATCH = 32
"""Sequences of a batch, at most: for more, a step is as long as what a launch costs."""
_UNIT = 256
"""Room of a session is a multiple of so many tokens, so that a text that is a bit longer needs no other one."""
_FEW = 4
"""New tokens from which on capturing pays off."""
_OWN = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)
_PLAIN_ARGUMENTS = frozenset(
    ("attention_mask", "use_cache", "past_key_values", "logits_to_keep", "position_ids")
)

_ATTENTIVE = frozenset(("DynamicLayer", "DynamicSlidingWindowLayer"))
"""Layers of a cache, of all kinds that Transformers has, whose place a layer of a session takes."""

_sessions: WeakKeyDictionary[Any, Session] = WeakKeyDictionary()
_unfit: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
"""Models that compute token by token, and why."""
_turns: WeakKeyDictionary[Any, Turns] = WeakKeyDictionary()


def captured_steps(model: Any) -> None:
    """Have a model's ``generate`` compute each token by one launch, where it can.

    Parameters
    ----------
    model : torch.nn.Module
        One of Transformers' models, on a CUDA device; it gets a ``generate`` of its own.
    """
    _turns[model] = Turns()
    model.generate = Bound(_generate, model)


def _generate(model: Any, inputs: Any = None, generation_config: Any = None, **given: Any) -> Any:
    own = functools.partial(type(model).generate, model, inputs, generation_config)
    if not _ordinary(model, generation_config, given):
        with _turns_of(model).together():
            return own(**given)
    loop = functools.partial(_steps, heard=given.get("streamer"))
    return own(custom_generate=loop, **given)


def _turns_of(model: Any) -> Turns:
    return _turns.setdefault(model, Turns())


def _ordinary(model: Any, config: Any, given: dict[str, Any]) -> bool:
    """Whether tokens are chosen one after the other, of one continuation each, from what the model alone says."""
    others = ("assistant_model", "custom_generate", "synced_gpus", "negative_prompt_ids", "past_key_values")
    if any(given.get(name) is not None for name in others) or model in _unfit or model.training:
        return False
    if model.device.type != "cuda":
        return False
    passed = {name: value for name, value in given.items() if name not in _ARGUMENTS}
    told, _ = model._prepare_generation_config(config, **passed)
    return (
        told.get_generation_mode(None) in _OWN
        and not told.return_dict_in_generate
        and told.use_cache is not False
        and getattr(told, "cache_implementation", None) in (None, "dynamic")
        and getattr(told, "prefill_chunk_size", None) is None
    )


_ARGUMENTS = frozenset(
    "logits_processor stopping_criteria prefix_allowed_tokens_fn synced_gpus assistant_model streamer "
    "negative_prompt_ids negative_prompt_attention_mask custom_generate tokenizer".split()
)
"""What ``generate`` takes besides settings and the model's own arguments."""


def _steps(
    model: Any,
    input_ids: Tensor,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: Any,
    heard: Any = None,
    **given: Any,
) -> Tensor:
    """Generate, in Transformers' terms; what cannot be captured goes to its own code."""
    session = text = None
    try:
        session = _session(model, input_ids, generation_config, given)
        if session is not None:
            text = _Text(model, session, input_ids, logits_processor, stopping_criteria, generation_config)
            with current(input_ids.device):
                if text.read(given):
                    return text.write(heard)
    except Unfit as reason:
        _sessions.pop(model, None)
        _unfit[model] = str(reason)
        told = f"tokens are computed one operation at a time, because {reason}"
        warnings.warn(told, UserWarning, stacklevel=2)
    except torch.OutOfMemoryError:
        # Transformers' own cache takes no more than the text needs.
        _sessions.pop(model, None)
    finally:
        if session is not None:
            session.busy.release()
        # Their memory is needed now.
        session = text = None
    with _turns_of(model).together():
        return type(model)._sample(  # type: ignore[no-any-return]
            model,
            input_ids,
            logits_processor=logits_processor,
            stopping_criteria=stopping_criteria,
            generation_config=generation_config,
            streamer=heard,
            **given,
        )


def _session(model: Any, ids: Tensor, config: Any, given: dict[str, Any]) -> Session | None:
    """A session for these sequences, locked; None where Transformers' own loop is the right one."""
    known = all(name in _PLAIN_ARGUMENTS or value is None for name, value in given.items())
    batch, length = ids.shape
    cache = given.get("past_key_values")
    fresh = cache is None or (isinstance(cache, DynamicCache) and not cache.get_seq_length())
    if not (known and fresh and 0 < batch <= _BATCH) or config.max_length - length < _FEW or _watched(model):
        return None
    if _prepares(model):
        raise Unfit("its class has a way of its own to prepare each token")
    if cache is not None and {type(layer).__name__ for layer in cache.layers} - _ATTENTIVE:
        raise Unfit("not all of its layers are attention with keys and values of their own")
    mask = given.get("attention_mask")
    if mask is not None and (mask.ndim != 2 or bool((mask[:, 1:] < mask[:, :-1]).any())):
        return None
    if not _in_order(given.get("position_ids"), mask):
        return None
    wanted = -(-(config.max_length + 1) // _UNIT) * _UNIT
    session = _sessions.get(model)
    if session is None or not session.fits(model, batch, config.max_length + 1):
        if session is not None and session.busy.locked():
            return None
        _sessions.pop(model, None)
        del session
        session = _sessions[model] = Session(model, batch, wanted)
    return session if session.busy.acquire(blocking=False) else None


def _in_order(positions: Tensor | None, mask: Tensor | None) -> bool:
    """Whether tokens that are seen are counted from 0 on, as steps count them."""
    if positions is None:
        return True
    if positions.ndim != 2:
        return False
    seen = torch.ones_like(positions) if mask is None else mask
    wanted = seen.cumsum(-1) - 1
    return positions.shape[-1] == wanted.shape[-1] and bool(((positions == wanted) | (seen == 0)).all())


def _prepares(model: Any) -> bool:
    """Whether tokens take more than themselves and their place: positions in a block, a prefix of an adapter."""
    names = ("prepare_inputs_for_generation", "_update_model_kwargs_for_generation")
    strange = [name for name in names if getattr(type(model), name) is not getattr(GenerationMixin, name)]
    # A class that says where its tokens stand may prepare a prompt as it likes.
    if strange and not (strange == [names[0]] and hasattr(model, PLACES)):
        return True
    # PEFT puts its own in place of the model's, which differs where an adapter is a prompt.
    given = model.__dict__.get(names[0])
    adapter = getattr(getattr(given, "__self__", None), "active_peft_config", None)
    return given is not None and getattr(adapter, "is_prompt_learning", True)


def _watched(model: Any) -> bool:
    """Whether something listens to the model's modules, or moves their weights, while they run."""
    return any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class _Text:
    """One generation.

    A step is launched before the token of the step before it is known here: the device never waits for Python. At the
    end there may be a step too many, whose token is dropped.
    """

    def __init__(
        self, model: Any, session: Session, ids: Tensor, processors: Any, criteria: Any, config: Any
    ) -> None:
        self.model, self.session, self.config = model, session, config
        self.processors, self.criteria = processors, criteria
        self.batch, self.length = ids.shape
        self.greedy = not config.do_sample
        # Only processors look at what was written so far.
        self.ids = torch.empty((self.batch, config.max_length), dtype=ids.dtype, device=ids.device)
        self.ids[:, : self.length] = ids
        self.here = torch.empty((self.batch, config.max_length), dtype=ids.dtype)
        self.here[:, : self.length] = ids.cpu()
        self.ended = torch.zeros(self.batch, dtype=torch.bool)
        pad = config._pad_token_tensor
        self.ends = any(hasattr(each, "eos_token_id") for each in criteria)
        self.pad = None if pad is None else pad.cpu()
        # Criteria of others may compare with tensors on the device.
        self.local = all(type(each).__module__.startswith("transformers.") for each in criteria)

    def read(self, given: dict[str, Any]) -> bool:
        """Read the prompt, and get ready for steps; False if another thread keeps the step from being captured now.

        Raises
        ------
        Unfit
            If steps cannot be captured. Nothing was written then.
        """
        mask = given.get("attention_mask")
        if mask is None:
            mask = torch.ones_like(self.ids[:, : self.length])
        try:
            with _turns_of(self.model).together():
                self.first = self._read({**given, "attention_mask": mask})
            # One token more is known to come: the steps can begin.
            return self.length + 1 >= self.config.max_length or self._begin(mask)
        except (Unfit, torch.OutOfMemoryError, QFormatsError):
            raise
        except Exception as error:
            # Each model's code has its own way of failing in a step, and what fails without one fails again there.
            raise Unfit(" ".join(str(error).split("\n", 1)[0].split())[:160]) from error

    def _begin(self, mask: Tensor) -> bool:
        """Whether steps can follow the prompt."""
        if self.session.graph is None:
            with _turns_of(self.model).alone() as alone:
                if not alone:
                    return False
                self.session.capture(self.model, self.length, self.first, mask)
        self.session.start(self.length, self.first)
        return True

    def write(self, heard: Any) -> Tensor:
        """Everything behind the prompt."""
        sent = [self._sent(self.first)]
        stop = self.config.max_length
        place, done = self.length, False
        launched = self.length + 1
        while not done:
            if launched < stop:
                self.session.launch(chosen=self._as_likeliest)
                chosen = self.session.likeliest if self._as_likeliest else self._choose(launched)
                sent.append(self._sent(chosen))
                launched += 1
            done = self._take(*sent.pop(0), place, heard)
            place += 1
        if heard is not None:
            heard.end()
        return self.here[:, :place].to(self.ids.device)

    @property
    def _as_likeliest(self) -> bool:
        return self.greedy and not self.processors

    def _read(self, given: dict[str, Any]) -> Tensor:
        """The token behind the prompt."""
        pads = self.length - given["attention_mask"].sum(1)
        self.session.begin(pads)
        inputs = self.model.prepare_inputs_for_generation(
            self.ids[:, : self.length],
            is_first_iteration=True,
            **{**given, "past_key_values": self.session.cache},
        )
        scores = self.model(**inputs, return_dict=True).logits[:, -1].float()
        self.session.settle(self.model)
        if self._as_likeliest:
            first: Tensor = scores.argmax(-1)
            return first
        return self._chosen(scores, self.length)

    def _choose(self, place: int) -> Tensor:
        chosen = self._chosen(self.session.scores, place)
        self.session.tokens.copy_(chosen[:, None])
        return chosen

    def _chosen(self, scores: Tensor, place: int) -> Tensor:
        # Processors may change what they are given.
        scores = self.processors(self.ids[:, :place], scores.clone())
        if self.greedy:
            tokens = scores.argmax(-1)
        else:
            tokens = torch.multinomial(scores.softmax(-1), 1).squeeze(1)
        self.ids[:, place] = tokens
        return tokens

    def _sent(self, tokens: Tensor) -> tuple[Tensor, Any]:
        """Tokens on their way here, and what tells that they have arrived."""
        if not tokens.is_cuda:
            return tokens.clone(), None
        copy = torch.empty(self.batch, dtype=tokens.dtype, pin_memory=True)
        copy.copy_(tokens, non_blocking=True)
        event: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        return copy, event

    def _take(self, tokens: Tensor, event: Any, place: int, heard: Any) -> bool:
        """Write tokens down; whether that was all."""
        if event is not None:
            event.synchronize()
        if self.ends and self.pad is not None:
            tokens = torch.where(self.ended, self.pad, tokens)
        self.here[:, place] = tokens
        if heard is not None:
            heard.put(tokens)
        seen = self.here[:, : place + 1]
        found = self.criteria(seen if self.local else seen.to(self.ids.device), None)
        self.ended |= found.cpu()
        return bool(self.ended.all())
