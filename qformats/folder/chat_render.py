"""Chat templates: programs that come with a model, run where they can neither hang nor fill the memory."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import IO, Any

from qformats.errors import BackendUnavailableError, CheckpointError

__all__ = ["Renderer", "render"]

_CHILD = Path(__file__).with_name("chat_process.py")
_SECONDS = 5
"""CPU time for a template: real ones need milliseconds."""
_PATIENCE = 120
"""Seconds until the process is given up, whose imports take one on an idle machine."""
_MEMORY = 512 << 20
_TEXT = 1 << 20
"""Characters that a template may write in addition to four times its messages."""
_SHOWN = 200
_EXPECTED = "one that turns a message into a prompt"
_HINT = "Replace the template, or do without one"


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    variables: Mapping[str, Any],
    source: str | PathLike[str],
) -> str:
    """Render a chat template once; see :class:`Renderer`.

    Parameters
    ----------
    template : str
        Jinja source.
    messages : sequence of mapping
        With ``role`` and ``content``.
    variables : mapping
        What the template may use besides: texts of the special tokens.
    source : path-like
        The model, for messages.

    Raises
    ------
    CheckpointError
        If the template fails, or exceeds a limit.
    BackendUnavailableError
        If jinja2 is missing or too old.

    Examples
    --------
    >>> from qformats.folder.chat_render import render
    >>> hello = [{"role": "user", "content": "Hello"}]
    >>> render("{{ messages[0].content }}{{ eos_token }}", hello, variables={"eos_token": "</s>"}, source="model")
    'Hello</s>'
    """
    with Renderer(template, variables=variables, source=source) as renderer:
        return renderer.render(messages)


class Renderer:
    """Renders a chat template as Transformers does, up to where the model answers.

    It runs in Transformers' sandbox, in a process with limits: each time 5 seconds of CPU time, 512 MiB of memory, and
    one million characters of text besides the messages. The process begins with the first call, whose imports take a
    second, and serves later ones too; one that has ended is replaced. Calls from several threads wait for each other.

    Parameters
    ----------
    template : str
        Jinja source.
    variables : mapping
        What the template may use besides: texts of the special tokens.
    source : path-like
        The model, for messages.

    Examples
    --------
    >>> from qformats.folder.chat_render import Renderer
    >>> with Renderer("{{ messages[-1].content }}{{ end }}", variables={"end": "."}, source="model") as renderer:
    ...     [renderer.render([{"role": "user", "content": said}]) for said in ("Yes", "No")]
    ['Yes.', 'No.']
    """

    def __init__(self, template: str, *, variables: Mapping[str, Any], source: str | PathLike[str]) -> None:
        self._template, self._variables, self._source = template, dict(variables), source
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._complaints: IO[bytes] | None = None

    def render(
        self, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any] | None = None
    ) -> str:
        """Render the template.

        Parameters
        ----------
        messages : sequence of mapping
            With ``role`` and ``content``.
        variables : mapping, optional
            More that the template may use, such as ``enable_thinking``.

        Raises
        ------
        CheckpointError
            If the template fails, or exceeds a limit.
        BackendUnavailableError
            If jinja2 is missing or too old.
        """
        said = (text for message in messages for text in message.values())
        request = {
            "template": self._template,
            "messages": list(messages),
            "variables": {**self._variables, **(variables or {})},
            "seconds": _SECONDS,
            "memory": _MEMORY,
            "characters": _TEXT + 4 * sum(len(text) for text in said if isinstance(text, str)),
        }
        with self._lock:
            answer = self._answer(json.dumps(request) + "\n")
        if "text" in answer:
            return str(answer["text"])
        if "missing" in answer:
            raise BackendUnavailableError(
                "chat templates", answer["missing"], "Install it: pip install -U jinja2"
            )
        reason = " ".join(str(answer["error"]).split()).rstrip(".")
        if len(reason) > _SHOWN:
            reason = reason[:_SHOWN] + "..."
        raise CheckpointError(self._source, f"its chat template {reason}", _EXPECTED, hint=_HINT)

    def close(self) -> None:
        """End the process, if there is one."""
        with self._lock:
            self._end()

    def __enter__(self) -> Renderer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _answer(self, request: str) -> dict[str, Any]:
        """Let the process answer; what ends it is an answer too."""
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        late = threading.Event()

        def give_up() -> None:
            late.set()
            process.kill()

        patience = threading.Timer(_PATIENCE, give_up)
        patience.daemon = True
        patience.start()
        line = b""
        try:
            # A process that has ended is asked for its reason below.
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(request.encode())
                process.stdin.flush()
                line = process.stdout.readline()
        except BaseException:
            # Half a conversation cannot be continued.
            self._end()
            raise
        finally:
            patience.cancel()
        if line.endswith(b"\n"):
            answer: dict[str, Any] = json.loads(line)
            return answer
        code, told = self._end()
        if late.is_set():
            return {"error": f"does not end within {_PATIENCE} seconds"}
        if code == -signal.SIGXCPU:
            return {"error": f"needs more than {_SECONDS} seconds"}
        if code < 0:
            return {"error": f"ends its process by signal {-code}"}
        return {"error": f"cannot be run: {told or 'its process says nothing'}"}

    def _running(self) -> subprocess.Popen[bytes]:
        """The process; a new one if there is none, or the last has ended."""
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._end()
        # Its libraries need no threads, and each would take address space.
        quiet = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}
        self._complaints = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            env={**os.environ, **quiet},
            # Ctrl-C in a terminal is for the program that asks.
            process_group=0,
        )
        return self._process

    def _end(self) -> tuple[int, str]:
        """End the process; gives its exit code and the last line that it complained with."""
        process, complaints = self._process, self._complaints
        self._process = self._complaints = None
        if process is None or complaints is None:
            return 0, ""
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        try:
            process.wait(1)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
        with complaints:
            complaints.seek(0)
            told = complaints.read().decode("utf-8", "replace").strip().splitlines()
        return process.returncode, told[-1] if told else ""
