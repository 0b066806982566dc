"""What to type instead: the user's own command line with what was wrong replaced."""

from __future__ import annotations

import difflib
import itertools
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = [
    "WrongCommandLine",
    "commands_instead",
    "example_formats",
    "unknown_command",
    "unknown_option",
    "unusable",
]

_CLOSE = 0.6
"""Least likeness of an option that is suggested, by difflib: formt is 0.91 like format, bogus 0.5 like log."""
_ELSEWHERE = {
    **dict.fromkeys(("convert", "quantize", "quantise", "requantize", "save", "write", "to"), "export"),
    **dict.fromkeys(("dequantize", "dequantise", "unquantize"), "export --format dense:f16"),
    **dict.fromkeys(("run", "complete", "completion-text", "infer", "inference"), "generate"),
    **dict.fromkeys(("talk", "converse", "repl"), "chat"),
    **dict.fromkeys(("server", "api", "web", "webui", "ui"), "serve"),
    **dict.fromkeys(("lora", "adapter", "export-lora", "merge-lora", "fuse", "merge-adapter"), "merge"),
    **dict.fromkeys(("info", "show", "dump", "describe", "stat", "view", "size"), "inspect"),
    **dict.fromkeys(("list", "ls", "types", "families", "list-formats"), "formats"),
    **dict.fromkeys(("eval", "evaluate", "perplexity", "ppl", "bench", "benchmark", "diff"), "compare"),
    **dict.fromkeys(("verify", "validate", "test"), "check"),
    **dict.fromkeys(("plugin", "extensions"), "plugins"),
    "version": "--version",
    "help": "--help",
}
"""What other programs call our commands."""


class WrongCommandLine(Exception):
    """A command line that is not understood.

    Parameters
    ----------
    message : str
        What is wrong with it.
    instead : iterable of str
        Command lines to type instead.
    """

    def __init__(self, message: str, instead: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.instead = tuple(instead)


def unknown_command(name: str, arguments: Sequence[str], known: Iterable[str]) -> WrongCommandLine:
    """A command that does not exist; `arguments` are those that follow it."""
    known = list(known)
    other = _ELSEWHERE.get(name.lower())
    if other is None:
        close = difflib.get_close_matches(name.lower(), known, n=1)
        if not close:
            return WrongCommandLine(
                f"no command {name!r}. Commands are {', '.join(known)}; qformats --help says what they do"
            )
        other, told = close[0], f"Did you mean {close[0]!r}?"
    else:
        told = f"It is {other!r} here"
    command, *options = other.split()
    words = _as_ours(command, arguments)
    given = {word.partition("=")[0] for word in words}
    if command == "export" and not options and not {"--format", "-f", "--type", "-t", "--outtype"} & given:
        options = ["--format", *example_formats()[:1]]
    if command == "compare" and len(_leading(words)) < 2 and "--try" not in given:
        options = ["--try", *example_formats()[:1]]
    if command == "merge" and not {"-o", "--output", "--outfile"} & given:
        options = ["--output", "OUT"]
    return WrongCommandLine(f"no command {name!r}. {told}", [_line(command, *words, *options)])


def example_formats(suffix: str = "") -> list[str]:
    """Families of formats to name in an example: those with files of their own first, or only those of a suffix."""
    from qformats.registry import registry

    known = registry()
    found: dict[str, str] = {}
    for family in known.families():
        packer = family.parse(family.default_variant)
        if packer.quantizes and packer.writable:
            found.setdefault(family.name, known.loader(packer.container).suffix)
    same = [name for name, own in found.items() if suffix and own == suffix]
    return same or sorted(found, key=lambda name: not found[name])


def _as_ours(command: str, arguments: Sequence[str]) -> list[str]:
    """Arguments of another program's command as ours take them.

    llama-quantize takes ``MODEL TARGET TYPE``: the target and the format are options here.
    """
    if command == "formats":
        return [word for word in arguments[:1] if not word.startswith("-")]
    plain = _leading(arguments)
    rest = list(arguments[len(plain) :])
    if command == "merge":
        return [*plain, *("ADAPTER", "BASE")[len(plain) :], *rest]
    if command not in ("export", "generate", "inspect", "compare"):
        return list(arguments)
    model = plain[:1] or ["MODEL"]
    if command == "compare":
        return [*model, *plain[1:], *rest]
    if command == "export":
        for word, option in zip(plain[1:3], ("--output", "--format"), strict=False):
            rest += [option, word]
    elif command == "generate":
        rest = [*(plain[1:2] or ["Once upon a time"]), *rest]
    return [*model, *rest]


def _leading(words: Sequence[str]) -> list[str]:
    """Words before the first option."""
    return list(itertools.takewhile(lambda word: not word.startswith("-"), words))


def unknown_option(name: str, known: Iterable[str], arguments: Sequence[str]) -> WrongCommandLine:
    """An option that does not exist; `arguments` are the whole command line after the program's name."""
    # Without the dashes, which all of them share.
    spelled = {each.removeprefix("--"): each for each in known if each.startswith("--")}
    close = difflib.get_close_matches(name.lstrip("-"), spelled, n=1, cutoff=_CLOSE)
    if not close:
        return WrongCommandLine(f"no option {name}; the command's --help lists all")
    option = spelled[close[0]]
    fixed = [_replaced(word, name, option) for word in arguments]
    return WrongCommandLine(f"no option {name}. Did you mean {option}?", [_line(*fixed)])


def unusable(error: Any, command: str, example: str) -> WrongCommandLine:
    """A command line that lacks something, or has a value that is none, as the parser's error says it.

    Parameters
    ----------
    error : click.UsageError
        Of whichever copy of click the parser uses.
    command, example : str
        The command's name, and a command line that works; empty if there is none.
    """
    told = " ".join(str(error.format_message()).split()).rstrip(".")
    told = re.sub(r"argument\(s\) \((.*)\)", r"argument \1", told[:1].lower() + told[1:])
    about = " ".join(str(getattr(error.param, "help", None) or "").split()) if hasattr(error, "param") else ""
    if about and told.startswith("missing"):
        told += f": {about[:1].lower()}{about[1:].rstrip('.')}"
    name = f"qformats {command}".rstrip()
    ends = "for example" if example else "says more"
    help = f"{name} --help {ends}" if not example else f"{name} --help says more; {ends}"
    return WrongCommandLine(f"{told}. {help}", [example] if example else [])


def commands_instead(name: str, formats: Iterable[str]) -> list[str]:
    """The command line with the name of a format replaced by other formats; empty if it is not there.

    A format may be one word (``--format gguf:q4_k``) or two (``--format gguf --type q4_k``).
    """
    words = sys.argv[1:]
    family, _, variant = name.partition(":")
    lines = []
    for format in formats:
        fixed = [_replaced(word, name, format) for word in words]
        if fixed == words and variant:
            other = format.partition(":")
            fixed = [
                _replaced(_replaced(word, variant, other[2]), family, other[0]) if index else word
                for index, word in enumerate(words)
            ]
        if fixed != words:
            lines.append(_line(*fixed))
    return lines


def _replaced(word: str, old: str, new: str) -> str:
    """A word of a command line with another value: ``OLD``, ``--option=OLD`` or ``-fOLD``."""
    if word == old:
        return new
    head, equals, value = word.partition("=")
    if equals and head.startswith("-") and value == old:
        return f"{head}={new}"
    if equals and head == old:
        return f"{new}={value}"
    if len(word) > 2 and word[0] == "-" and word[1] != "-" and word[2:] == old:
        return word[:2] + new
    return word


def _line(*words: str) -> str:
    return shlex.join(["qformats", *words])
