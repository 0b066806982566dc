"""What clients send, in the terms of OpenAI's API; what cannot be honoured is refused instead of ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

__all__ = ["ChatRequest", "CompletionRequest", "Sampled"]

_CHOICES = 16
_LIKELIEST = 20
_STOPS = 16


class _Part(BaseModel):
    """A part of a message that is text."""

    model_config = ConfigDict(extra="ignore")
    type: Literal["text"]
    text: str


class Message(BaseModel):
    """A message of a conversation."""

    model_config = ConfigDict(extra="ignore")
    role: str
    content: str | list[_Part] | None = None
    name: str | None = None

    @field_validator("content", mode="before")
    @classmethod
    def _readable(cls, value: Any) -> Any:
        for part in value if isinstance(value, list) else ():
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            if kind != "text":
                raise ValueError(f"models here read text alone; found a part of type {kind!r}")
        return value

    def plain(self) -> dict[str, str]:
        """Role and text, as templates have them."""
        content = self.content
        if isinstance(content, list):
            content = "".join(part.text for part in content)
        # A developer's message is what OpenAI's models now call the system's.
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": content or "", **({"name": self.name} if self.name else {})}


class _StreamOptions(BaseModel):
    model_config = ConfigDict(extra="ignore")
    include_usage: bool = False


class Sampled(BaseModel):
    """What all requests for text have."""

    model_config = ConfigDict(extra="ignore")
    model: str
    stream: bool = False
    stream_options: _StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=_CHOICES)] | None = None
    stop: Annotated[list[str], Field(max_length=_STOPS)] | str | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    seed: int | None = None
    tools: list[Any] | None = None
    functions: list[Any] | None = None
    response_format: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _refuse(self) -> Sampled:
        if self.tools or self.functions:
            raise ValueError("tools cannot be called here; leave out tools")
        if self.response_format and self.response_format.get("type", "text") != "text":
            raise ValueError("answers are text; leave out response_format")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end an answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def choices(self) -> int:
        """How many answers are wanted."""
        return self.n or 1

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with the numbers of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self) -> dict[str, Any]:
        """How tokens are chosen, where the client says so."""
        keys = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
        more = ("frequency_penalty", "presence_penalty", "seed")
        return {**{key: getattr(self, key) for key in (*keys, *more)}, "bias": self.logit_bias}


class ChatRequest(Sampled):
    """Body of ``/v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=_LIKELIEST)] | None = None
    chat_template_kwargs: dict[str, str | int | float | bool | None] | None = None

    @model_validator(mode="after")
    def _agree(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        return self

    @property
    def most(self) -> int | None:
        """Tokens of an answer at most."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def likeliest(self) -> int | None:
        """How many likeliest tokens to tell; ``None`` for no probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(Sampled):
    """Body of ``/v1/completions``."""

    prompt: str | list[str] | list[int] | list[list[int]] = ""
    echo: bool = False
    suffix: str | None = None
    best_of: int | None = None
    logprobs: Annotated[int, Field(ge=0, le=_LIKELIEST)] | None = None

    @field_validator("prompt")
    @classmethod
    def _some(cls, value: Any) -> Any:
        if isinstance(value, list) and not value:
            raise ValueError("an empty list holds no prompt")
        return value

    @model_validator(mode="after")
    def _agree(self) -> CompletionRequest:
        if self.suffix:
            raise ValueError("models here continue text; leave out suffix")
        if self.best_of is not None and self.best_of != self.choices:
            raise ValueError("answers are not ranked; leave out best_of")
        if self.echo and self.logprobs is not None:
            raise ValueError("probabilities of the prompt are not computed; leave out echo or logprobs")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """One prompt or several, each a text or ids."""
        given: Any = self.prompt
        if isinstance(given, str) or isinstance(given[0], int):
            return [given]
        return list(given)

    @property
    def most(self) -> int | None:
        """Tokens of an answer at most; OpenAI's default is 16."""
        return 16 if self.max_tokens is None else self.max_tokens

    @property
    def likeliest(self) -> int | None:
        """How many likeliest tokens to tell; ``None`` for no probabilities."""
        return self.logprobs
