"""From messages, or plain text, to the ids that a model starts from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qformats.errors import ConfigError, Described
from qformats.folder.chat_render import Renderer
from qformats.interfaces.checkpoint import Checkpoint

__all__ = ["Prompts"]


class Prompts:
    """Prompts of one model.

    Parameters
    ----------
    source : Checkpoint
        The model.
    tokenizer : transformers.PreTrainedTokenizerBase
        Its tokenizer.
    template : str or None
        Its chat template; ``None`` if it has none.

    Examples
    --------
    >>> import qformats
    >>> from qformats.chatting.prompts import Prompts
    >>> from qformats.runtime import tokenizer
    >>> source = qformats.open("demo")
    >>> words = tokenizer(source)
    >>> template = "{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}"
    >>> with Prompts(source, words, template) as prompts:
    ...     words.decode(prompts.chat([{"role": "user", "content": "Hello"}]))
    'user: Hello '
    """

    def __init__(self, source: Checkpoint, tokenizer: Any, template: str | None) -> None:
        self._source, self._tokenizer = source, tokenizer
        self._renderer = (
            None
            if template is None
            else Renderer(template, variables=tokenizer.special_tokens_map, source=source.path)
        )

    @property
    def can_chat(self) -> bool:
        """Whether there is a chat template."""
        return self._renderer is not None

    def chat(
        self, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any] | None = None
    ) -> list[int]:
        """Ids of a conversation, up to where the model answers.

        Parameters
        ----------
        messages : sequence of mapping
            With ``role`` and ``content``.
        variables : mapping, optional
            More that the template may use, such as ``enable_thinking``.

        Raises
        ------
        ConfigError
            If the model has no chat template, or nothing is left of the messages.
        CheckpointError
            If the template fails.
        """
        if self._renderer is None:
            found = Described("a model without a chat template")
            hint = "Let it continue plain text instead, or give a template"
            raise ConfigError("messages", found, "a chat model", hint)
        text = self._renderer.render(messages, variables)
        return self._filled("messages", self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def text(self, text: str) -> list[int]:
        """Ids of a text that the model continues.

        Raises
        ------
        ConfigError
            If it is empty, and the model has no token that begins texts.
        """
        return self._filled("prompt", self._tokenizer(text)["input_ids"])

    def close(self) -> None:
        """Release what renders the template."""
        if self._renderer is not None:
            self._renderer.close()

    def __enter__(self) -> Prompts:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _filled(self, key: str, ids: Sequence[int]) -> list[int]:
        first = getattr(self._tokenizer, "bos_token_id", None)
        if first is None:
            first = self._source.config.get("bos_token_id")
        if not ids and isinstance(first, int):
            ids = [first]
        if not ids:
            raise ConfigError(key, "", "some text, since this model has no token that begins texts")
        return [int(each) for each in ids]
