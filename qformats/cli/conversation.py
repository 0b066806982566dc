"""The conversation of ``qformats chat``: lines in, answers out, and commands that begin with a slash."""

from __future__ import annotations

import contextlib
import json
import queue
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO
from unicodedata import category

from qformats.cli.console import Bar, harmless, note, size
from qformats.errors import ConfigError, OutputError, QFormatsError

if TYPE_CHECKING:
    from qformats.chatting.answer import Piece, Timings
    from qformats.chatting.loaded import ChatModel

__all__ = ["HELP", "Conversation"]

_PROMPT, _MORE = "> ", ". "
_FENCE = '"""'
HELP = {
    "/format [NAME]": "formats that the weights are in; with a name: quantize the model into it, and go on",
    "/stats": "speed of the last answer, and memory",
    "/system [TEXT]": "what the model is told first; a text replaces it and begins anew, - removes it",
    "/reset": "forget the conversation",
    "/save FILE": "write the conversation as JSON messages",
    "/help": "this list",
    "/exit": "end; so does Ctrl-D",
}
"""Commands and what they do."""


class Conversation:
    """A conversation with a model.

    Parameters
    ----------
    model : ChatModel
        Loaded.
    load : callable
        Loads it again in a format.
    sampling : mapping
        How tokens are chosen, where the user says so.
    most : int or None
        Tokens of an answer.
    stops : tuple of str
        Texts that end an answer.
    system : str or None
        What the model is told first.
    """

    def __init__(
        self,
        model: ChatModel,
        load: Callable[[str | None, Bar], ChatModel],
        sampling: Mapping[str, Any],
        most: int | None,
        stops: tuple[str, ...],
        system: str | None,
    ) -> None:
        self._model, self._load = model, load
        self._sampling, self._most, self._stops = dict(sampling), most, stops
        self._system = system
        self._messages: list[dict[str, str]] = []
        self._timings: Timings | None = None
        self._talking = False
        self._commands: dict[str, Callable[[str], None]] = {
            "/format": self._format,
            "/stats": self._stats,
            "/system": self._set_system,
            "/reset": self._reset,
            "/save": self._save,
            "/help": self._help,
        }

    def run(self, lines: TextIO) -> None:
        """Talk until the lines end."""
        self._talking = lines.isatty()
        if self._talking:
            with contextlib.suppress(ImportError):
                # Lines can be edited, and earlier ones brought back.
                import readline  # noqa: F401
            note(f"{self._model.name}, {_formats(self._model)}; /help lists commands, Ctrl-D ends")
        for text in self._texts(lines):
            command, _, rest = text.partition(" ")
            if command in ("/exit", "/quit"):
                return
            try:
                if command in self._commands:
                    self._commands[command](rest.strip())
                elif command.startswith("/") and command[1:].isalpha():
                    note(
                        f"no command {command}; /help lists them. A message that begins so: put a space before it"
                    )
                else:
                    self._answer(text)
            except QFormatsError as error:
                # Those of a conversation can be mended in it; what comes from a pipe cannot.
                if not self._talking:
                    raise
                note(str(error))

    def close(self) -> None:
        """Release the model."""
        self._model.close()

    # What is typed.

    def _texts(self, lines: TextIO) -> Iterator[str]:
        """Messages and commands: lines, joined where they end in a backslash, or what is between three quotes."""
        while (line := self._line(lines, _PROMPT)) is not None:
            if line.strip().startswith(_FENCE):
                text = self._fenced(line.strip().removeprefix(_FENCE), lines)
            else:
                text = line
                while text.endswith("\\"):
                    text = text[:-1] + "\n" + (self._line(lines, _MORE) or "")
            if text.strip():
                yield text if text[0] != "/" else text.strip()

    def _fenced(self, first: str, lines: TextIO) -> str:
        parts = []
        line: str | None = first
        while line is not None:
            before, fence, _ = line.partition(_FENCE)
            parts.append(before)
            if fence:
                break
            line = self._line(lines, _MORE)
        return "\n".join(parts).strip("\n")

    def _line(self, lines: TextIO, prompt: str) -> str | None:
        """The next line without its end; ``None`` at the end of all."""
        if not self._talking:
            line = lines.readline()
            return line.rstrip("\r\n") if line else None
        while True:
            try:
                # The prompt goes where answers do not.
                with contextlib.redirect_stdout(sys.stderr if not sys.stdout.isatty() else sys.stdout):
                    return input(prompt)
            except EOFError:
                print(file=sys.stderr)
                return None
            except KeyboardInterrupt:
                print(file=sys.stderr)
                note("Ctrl-D ends the conversation")

    # What is said.

    def _answer(self, text: str) -> None:
        model = self._model
        messages = [*self._messages, {"role": "user", "content": text}]
        if model.prompts.can_chat:
            first = [{"role": "system", "content": self._system}] if self._system else []
            ids = model.prompts.chat([*first, *messages])
        else:
            ids = model.prompts.text("".join(each["content"] for each in messages))
        request = model.request(
            ids,
            most=self._most,
            sampling=model.sampling(**self._sampling),
            stops=self._stops,
            turn=model.prompts.can_chat,
        )
        arriving: queue.SimpleQueue[Piece] = queue.SimpleQueue()
        answer = model.engine.submit(request, arriving.put)
        told, piece = "", None
        try:
            while piece is None or not piece.finish:
                piece = arriving.get()
                told += piece.text
                _show(piece.text)
        except KeyboardInterrupt:
            answer.cancel()
            if not self._talking:
                raise
            while piece is None or not piece.finish:
                piece = arriving.get()
        finally:
            # One newline ends an answer, whatever it ends with itself.
            print(flush=True)
        if piece.error is not None:
            raise ConfigError("the answer", _failed(piece.error), "a model that runs") from piece.error
        self._timings = piece.timings
        if piece.finish == "cancelled":
            note("stopped")
        # What was said before it was stopped is part of the conversation.
        self._messages = [*messages, {"role": "assistant", "content": told}]

    def _format(self, name: str) -> None:
        if not name:
            for format, (count, nbytes) in self._model.facts.formats.items():
                print(f"{harmless(format)}: {count} tensors, {size(nbytes)}", file=sys.stderr)
            return
        from qformats.cli.commands import meant
        from qformats.registry import registry

        chosen = registry().writable(meant(name).name).name
        before = self._model.format
        # Two models at a time may be more than there is room for.
        self._model.close()
        with Bar() as bar:
            try:
                self._model = self._load(chosen, bar)
            except QFormatsError:
                self._model = self._load(before, bar)
                raise
        note(f"{self._model.name} in {chosen}, {size(self._model.facts.nbytes)}; the conversation goes on")

    def _stats(self, _rest: str) -> None:
        facts, timings = self._model.facts, self._timings
        if timings is not None:
            read, written = timings.prompt_per_second, timings.per_second
            cached = (
                f", {timings.cached_tokens} of them from the turns before" if timings.cached_tokens else ""
            )
            speed = f", {read:.1f} tokens/s" if read else ""
            print(f"prompt: {timings.prompt_tokens} tokens{cached}{speed}", file=sys.stderr)
            speed = f", {written:.1f} tokens/s" if written else ""
            print(f"answer: {timings.tokens} tokens{speed}", file=sys.stderr)
        print(
            f"memory: weights {size(facts.nbytes)}, cache {size(facts.cache_nbytes)}, "
            f"all {size(facts.process_nbytes)} ({facts.device})",
            file=sys.stderr,
        )
        print(f"loaded in {facts.load_seconds:.1f} s", file=sys.stderr)

    def _set_system(self, text: str) -> None:
        if not self._model.prompts.can_chat:
            note("without a chat template there is no place for it")
        elif not text:
            print(f"system: {harmless(self._system or 'nothing')}", file=sys.stderr)
        else:
            self._system = None if text == "-" else text
            self._reset("")

    def _reset(self, _rest: str) -> None:
        self._messages.clear()
        note("the conversation begins anew")

    def _save(self, place: str) -> None:
        from qformats.work.writing import check_place, write_text

        if not place:
            raise ConfigError("/save", "", "the name of a file")
        path = Path(place).expanduser()
        check_place(path)
        if path.exists():
            raise OutputError(path, "exists already", "Choose another name")
        first = [{"role": "system", "content": self._system}] if self._system else []
        saved = {"model": self._model.name, "format": self._model.format, "messages": first + self._messages}
        write_text(path, json.dumps(saved, indent=2, ensure_ascii=False) + "\n")
        note(f"{len(self._messages)} messages are in {path}")

    def _help(self, _rest: str) -> None:
        width = max(map(len, HELP))
        for command, told in HELP.items():
            print(f"{command:{width}}  {told}", file=sys.stderr)
        print(
            f"A line that ends in \\ goes on in the next; so does what is between {_FENCE}.", file=sys.stderr
        )


def _formats(model: ChatModel) -> str:
    facts = model.facts
    return f"{', '.join(map(harmless, facts.formats))}, {size(facts.nbytes)} ({facts.device})"


def _failed(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _show(text: str) -> None:
    """Print a piece of an answer at once; of control characters only those of text, since models write anything."""
    if text:
        plain = (c if c in "\n\t" or category(c) != "Cc" else repr(c)[1:-1] for c in text)
        print("".join(plain), end="", flush=True)
