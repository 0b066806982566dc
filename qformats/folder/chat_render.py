"""Chat templates: programs that come with a model, run where they can neither hang nor fill the memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from qformats.errors import BackendUnavailableError, CheckpointError

__all__ = ["render"]

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
_HINT = "Leave out --chat, or replace the template"


def render(
    template: str,
    messages: Sequence[Mapping[str, str]],
    *,
    variables: Mapping[str, Any],
    source: str | PathLike[str],
) -> str:
    """Render a chat template as Transformers does, up to where the model answers.

    It runs in Transformers' sandbox, in a process with limits: 5 seconds of CPU time, 512 MiB of memory, and one
    million characters of text besides the messages.

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
    most = _TEXT + 4 * sum(len(text) for message in messages for text in message.values())
    request = {
        "template": template,
        "messages": list(messages),
        "variables": dict(variables),
        "seconds": _SECONDS,
        "memory": _MEMORY,
        "characters": most,
    }
    answer = _answer(json.dumps(request))
    if "text" in answer:
        return str(answer["text"])
    if "missing" in answer:
        raise BackendUnavailableError("chat templates", answer["missing"], "pip install -U jinja2")
    reason = " ".join(str(answer["error"]).split()).rstrip(".")
    if len(reason) > _SHOWN:
        reason = reason[:_SHOWN] + "..."
    raise CheckpointError(source, f"its chat template {reason}", _EXPECTED, hint=_HINT)


def _answer(request: str) -> dict[str, Any]:
    """Let the process answer; what ends it is an answer too."""
    # Its libraries need no threads, and each would take address space.
    quiet = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    try:
        done = subprocess.run(
            [sys.executable, "-P", str(_CHILD)],
            input=request.encode(),
            capture_output=True,
            env={**os.environ, **quiet},
            timeout=_PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"does not end within {_PATIENCE} seconds"}
    if done.returncode == -signal.SIGXCPU:
        return {"error": f"needs more than {_SECONDS} seconds"}
    if done.returncode < 0:
        return {"error": f"ends its process by signal {-done.returncode}"}
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        told = done.stderr.decode("utf-8", "replace").strip().splitlines()
        return {"error": f"cannot be run: {told[-1] if told else 'its process says nothing'}"}
    answer: dict[str, Any] = json.loads(lines[-1])
    return answer
