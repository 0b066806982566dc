"""A model that is ready to talk: loaded with packed weights, with its tokenizer, its template and its habits."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qformats.chatting.answer import Request
from qformats.chatting.engine import Engine
from qformats.chatting.memory import cache_room, process_nbytes
from qformats.chatting.prompts import Prompts
from qformats.chatting.sampling import Sampling, usual
from qformats.errors import ConfigError, Described
from qformats.folder.context import context_limit
from qformats.folder.readiness import require_class
from qformats.interfaces.checkpoint import Checkpoint
from qformats.runtime import load_model, tokenizer
from qformats.work.progress import Progress, Silent

__all__ = ["ChatModel", "Facts"]

_UNKNOWN_CONTEXT = 4096
"""Tokens of an answer at most, where nothing tells how many a model takes."""


@dataclass(frozen=True)
class Facts:
    """What a model is, in numbers.

    Attributes
    ----------
    formats : mapping of str to (int, int)
        How many tensors are in each format, and their bytes in memory; what is not quantized is ``plain numbers``.
    nbytes, cache_nbytes, process_nbytes : int
        Of the weights; of keys and values now; of everything on the device, or in the process on a CPU.
    device : str
        Where it runs.
    load_seconds : float
        How long loading took.
    """

    formats: Mapping[str, tuple[int, int]]
    nbytes: int
    cache_nbytes: int
    process_nbytes: int
    device: str
    load_seconds: float


class ChatModel:
    """A loaded model that answers.

    Parameters
    ----------
    source : Checkpoint
        The model.
    name : str
        What it is called.
    template : str or None
        Chat template; ``None`` if it can only continue text.
    device, dtype, format, quantizer, options, verify
        As for :func:`qformats.load_model`.
    answers, waiting : int
        As for :class:`qformats.chatting.engine.Engine`.
    progress : Progress, optional
        Is told about loading.

    Examples
    --------
    >>> import qformats
    >>> from qformats.chatting.loaded import ChatModel
    >>> with ChatModel(qformats.open("demo"), "demo", None, device="cpu") as model:
    ...     request = model.request(model.prompts.text("The United"), most=2)
    ...     "".join(piece.text for piece in model.engine.stream(request))
    ' States has'
    """

    def __init__(
        self,
        source: Checkpoint,
        name: str,
        template: str | None,
        *,
        device: str | None = None,
        dtype: str | None = None,
        format: str | None = None,
        quantizer: str | None = None,
        options: Mapping[str, str] | None = None,
        verify: bool = False,
        answers: int = 64,
        waiting: int = 256,
        progress: Progress | None = None,
    ) -> None:
        require_class(source, "run")
        self.name, self.format, self.source = name, format, source
        progress = progress or Silent()
        words = tokenizer(source)
        began = time.perf_counter()
        progress.start(f"building {name}", 0)
        model = load_model(
            source,
            device=device,
            dtype=dtype,
            format=format,
            quantizer=quantizer,
            options=options,
            verify=verify,
            progress=progress,
        )
        self._load_seconds = time.perf_counter() - began
        self._report, self._device = model.qformats_report, model.device
        self.context = context_limit(source.config)
        settings = model.generation_config
        self.usual = usual(settings)
        ends = settings.eos_token_id
        listed = ends if isinstance(ends, list) else [] if ends is None else [ends]
        self._ends = frozenset(int(each) for each in listed)
        # Turns of chat models end with a token that their tokenizer names, and generation_config.json not always.
        last = getattr(words, "eos_token_id", None)
        self._ends_of_turns = self._ends | ({int(last)} if last is not None else set())
        self.prompts = Prompts(source, words, template)
        room = cache_room(self._device)
        self.engine = Engine(
            model, words, answers=answers, waiting=waiting, cache_bytes=room, prefix_bytes=room // 4
        )

    def sampling(self, **given: Any) -> Sampling:
        """How tokens are chosen: what is given, and else what the model's generation_config.json says.

        Parameters
        ----------
        **given : Any
            Attributes of :class:`Sampling`; those that are ``None`` are left out.

        Raises
        ------
        ConfigError
            If a value is out of range.
        """
        return Sampling(**{**self.usual, **{key: value for key, value in given.items() if value is not None}})

    def request(
        self,
        ids: Sequence[int],
        *,
        most: int | None = None,
        sampling: Sampling | None = None,
        stops: Sequence[str] = (),
        logprobs: int | None = None,
        turn: bool = False,
    ) -> Request:
        """A request that fits the model.

        Parameters
        ----------
        ids : sequence of int
            The prompt.
        most : int, optional
            Tokens at most; by default, and if there is no room for more, until the context is full.
        sampling : Sampling, optional
            How tokens are chosen.
        stops : sequence of str
            Texts that end the answer.
        logprobs : int, optional
            See :class:`qformats.chatting.answer.Request`.
        turn : bool
            Whether it is a turn of a conversation, and ends as such.

        Raises
        ------
        ConfigError
            If the prompt leaves no room in the model's context.
        """
        if self.context is not None and len(ids) >= self.context:
            found = Described(f"{len(ids)} tokens")
            raise ConfigError("prompt", found, f"fewer than the model's context of {self.context}")
        room = _UNKNOWN_CONTEXT if self.context is None else self.context - len(ids)
        return Request(
            tuple(ids),
            most=room if most is None else most if self.context is None else min(most, room),
            sampling=sampling or self.sampling(),
            stops=tuple(stops),
            ends=self._ends_of_turns if turn else self._ends,
            logprobs=logprobs,
        )

    @property
    def facts(self) -> Facts:
        """What it is, in numbers."""
        formats: dict[str, tuple[int, int]] = {}
        for weight in self._report.weights:
            count, nbytes = formats.get(weight.format, (0, 0))
            formats[weight.format] = (count + 1, nbytes + weight.nbytes)
        if not formats:
            packers = (tensor.packer.name for tensor in self.source.tensors.values())
            label = ", ".join(dict.fromkeys(packers))
            formats[label] = (len(self.source.tensors), self._report.dense_nbytes)
        elif self._report.dense_nbytes:
            others = len(self.source.tensors) - sum(count for count, _ in formats.values())
            formats["plain numbers"] = (max(others, 0), self._report.dense_nbytes)
        return Facts(
            formats,
            self._report.nbytes,
            self.engine.cache_nbytes,
            process_nbytes(self._device),
            str(self._device),
            self._load_seconds,
        )

    def close(self, grace: float = 0.0) -> None:
        """Release the model; answers in work may take so many seconds more."""
        self.engine.close(grace)
        self.prompts.close()

    def __enter__(self) -> ChatModel:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
