"""The process in which chat templates are rendered: for each line of JSON on standard input, one line as the answer.

A sandbox keeps a template from reaching the system, but not from ``'x' * 10**9`` or loops without an end: only the
operating system stops these wherever they hide, in operators, filters, formats or the compiler.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

__all__: list[str] = []


def _limit(seconds: int, memory: int) -> None:
    """Allow so much more CPU time and address space than the imports, and what was rendered before, have taken."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    _set(resource.RLIMIT_CPU, int(usage.ru_utime + usage.ru_stime) + 1 + seconds)
    _set(resource.RLIMIT_CORE, 0)
    status = Path("/proc/self/statm")
    if status.exists():
        used = int(status.read_text().split()[0]) * resource.getpagesize()
        _set(resource.RLIMIT_AS, used + memory)
    else:
        # macOS, which does not enforce the first of these.
        for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
            with suppress(ValueError, OSError):
                _set(kind, 8 * memory)


def _set(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, hard))


def _render(request: dict[str, Any]) -> dict[str, str]:
    try:
        import jinja2
        from transformers.utils.chat_template_utils import render_jinja_template
    except ImportError as error:
        return {"missing": f"{error.name or error} is not installed"}
    _limit(request["seconds"], request["memory"])
    try:
        rendered: Any = render_jinja_template(
            conversations=[request["messages"]],
            chat_template=request["template"],
            add_generation_prompt=True,
            **request["variables"],
        )
        text = rendered[0][0] if isinstance(rendered, tuple) else rendered[0]
    except ImportError as error:
        return {"missing": str(error)}
    except jinja2.TemplateSyntaxError as error:
        return {"error": f"has an error in line {error.lineno}: {error.message}"}
    except jinja2.TemplateError as error:
        return {"error": f"fails: {error.message or type(error).__name__}"}
    except MemoryError:
        return {"error": f"needs more than {request['memory'] >> 20} MiB of memory"}
    except RecursionError:
        return {"error": "is nested too deeply"}
    except Exception as error:
        return {"error": f"fails: {type(error).__name__}: {error}"}
    if len(text) > request["characters"]:
        return {"error": f"writes {len(text)} characters, more than {request['characters']}"}
    return {"text": text}


def _main() -> None:
    # Whatever a library prints is no answer.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for line in sys.stdin:
        answers.write(json.dumps(_render(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    _main()
