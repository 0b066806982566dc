"""Every error that qformats raises on purpose.

::

    QFormatsError(Exception)
      UnknownFormatError(LookupError)         no such format; says what is near and what failed to load
      AmbiguousFormatError(LookupError)       a short name that several formats share
      NameTakenError(ValueError)              two plugins claim one name
      PluginLoadError(ImportError)            a plugin could not be loaded
      PluginError(RuntimeError)               a plugin's code raised what it should not have
      ShapeError(ValueError)                  a tensor's shape is not the one its format needs
      ConfigError(ValueError)                 an option or a configuration value is not allowed
      CheckpointError(ValueError)             a file is missing, truncated or corrupt
      ModelNotFoundError(FileNotFoundError)   no model at this path or under this name
      UnsupportedModelError(ValueError)       an architecture or a tokenizer that is not supported
      NonFiniteError(ValueError)              values are NaN or infinite, or too large for the format
      WeightsError(ValueError)                the same, with the file and the tensor named
      NotExactError(ValueError)               another format cannot hold a tensor's values unchanged
      InexactExportError(ValueError)          an export that must keep every value would change some
      OutputError(OSError)                    the target cannot be written
      BackendUnavailableError(RuntimeError)   a requested runtime is not available
      WorkerError(RuntimeError)               another process that shares the work failed

Constructors take data and format the sentence in one place.
"""

from __future__ import annotations

import contextlib
import difflib
import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from os import PathLike
from typing import Any

__all__ = [
    "AmbiguousFormatError",
    "BackendUnavailableError",
    "CheckpointError",
    "ConfigError",
    "Described",
    "InexactExportError",
    "ModelNotFoundError",
    "NameTakenError",
    "NonFiniteError",
    "NotExactError",
    "OutputError",
    "PluginError",
    "PluginLoadError",
    "QFormatsError",
    "ShapeError",
    "UnknownFormatError",
    "UnsupportedModelError",
    "WeightsError",
    "WorkerError",
    "on_the_command_line",
    "shown",
    "spelled",
]


_SHOWN_REASONS = 5
"""How many different reasons one message lists."""
_SHOWN_NAMES = 6
"""How many installed names a message lists; of more it gives the nearest ones."""
_NEAREST = 3
"""How many names a message suggests."""
_SHORT = reprlib.Repr()
_SHORT.maxlevel = 4
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = _SHORT.maxset = _SHORT.maxfrozenset = 12
_SHORT.maxstring = _SHORT.maxother = 320
_SHORT.maxlong = 40


def shown(value: object) -> str:
    """A value as a message shows it: ``repr``, cut where it is long or nested deeply.

    Values of files may be anything: an integer of more digits than Python prints, or lists in lists beyond its stack.

    Examples
    --------
    >>> from qformats.errors import shown
    >>> shown("gptq"), shown([[[[[[1]]]]]]), len(shown("x" * 10**6))
    ("'gptq'", '[[[[...]]]]', 320)
    """
    if isinstance(value, int) and value.bit_length() > _PRINTED:
        return f"{'-' * (value < 0)}2**{value.bit_length() - 1} or more"
    return _SHORT.repr(value)


_typed = False


@contextlib.contextmanager
def on_the_command_line() -> Iterator[None]:
    """Let messages name options as they are typed, and not as arguments of functions.

    Examples
    --------
    >>> from qformats.errors import on_the_command_line, spelled
    >>> with on_the_command_line():
    ...     spelled("--force", "force=True")
    '--force'
    """
    global _typed
    before, _typed = _typed, True
    try:
        yield
    finally:
        _typed = before


def spelled(typed: str, called: str) -> str:
    """Words of a message for whoever uses the program, or for whoever calls functions.

    Examples
    --------
    >>> from qformats.errors import spelled
    >>> spelled("--force", "force=True")
    'force=True'
    """
    return typed if _typed else called


_LONGEST = 400
"""Characters of a foreign exception's text that a message repeats."""
_PRINTED = 1 << 10
"""Bits of an integer whose digits a message shows, at most."""


def _sentence(subject: str, found: str, expected: str | None, hint: str | None) -> str:
    text = f"{subject}: {found}" if subject else found
    if expected:
        text += f"; expected {expected}"
    if hint:
        text += f". {_capital(hint)}"
    return text.rstrip(".") + "."


_PROGRAMS = ("pip", "python", "qformats")
"""Names of programs, which a command begins with."""


def _capital(sentence: str) -> str:
    """A sentence with a capital, unless it begins with something to type: ``tensor.float() makes one of it``."""
    first = sentence.split(maxsplit=1)[0].rstrip(",;:")
    typed = not first.isalpha() or first in _PROGRAMS
    return sentence if typed else sentence[0].upper() + sentence[1:]


def _or(names: Iterable[str]) -> str:
    """``'a', 'b' or 'c'``."""
    *first, last = [repr(name) for name in names]
    return f"{', '.join(first)} or {last}" if first else last


class Described(str):
    """What was found, in words: a message prints it without the quotes that a value gets.

    Examples
    --------
    >>> from qformats.errors import ConfigError, Described
    >>> print(ConfigError("--chat", Described("a model without a chat template"), "a chat model"))
    --chat: found a model without a chat template; expected a chat model.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


class QFormatsError(Exception):
    """Base class: catch it to catch everything that qformats reports about its input.

    Examples
    --------
    >>> import qformats
    >>> try:
    ...     qformats.packer("gguf:q9_9")
    ... except qformats.QFormatsError as error:
    ...     print(type(error).__name__)
    UnknownFormatError
    """

    nearest: tuple[str, ...] = ()
    """Formats to use instead, best first, if the error is about a format."""

    def __reduce__(self) -> tuple[Any, ...]:
        """For other processes: constructors take data, and what is kept is the sentence."""
        return _restored, (type(self), self.args, self.__dict__)

    def advise(self, advice: str) -> None:
        """Add a sentence to the message, where more is known about what to do than where the error arose."""
        self.args = (f"{self} {_capital(advice).rstrip('.')}.", *self.args[1:])


def _restored(kind: type[QFormatsError], args: tuple[Any, ...], state: dict[str, Any]) -> QFormatsError:
    """An error of another process."""
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class UnknownFormatError(QFormatsError, LookupError):
    """A name of a format, quantizer or loader that no installed plugin provides.

    Parameters
    ----------
    name : str
        The requested name.
    installed : iterable of str
        The names that would have worked.
    failed : mapping of str to str
        Plugins that did not load, and why.
    kind : str
        What was looked up: ``"format"``, ``"quantizer"`` or ``"loader"``.
    nearest : iterable of str, optional
        Names to suggest, best first; by default installed ones that are spelt alike.
    patterns : iterable of str
        What else would have worked, where names cannot be listed.
    about : str
        What the name is, if it is that of something known.

    Examples
    --------
    >>> from qformats.errors import UnknownFormatError
    >>> print(UnknownFormatError("toy:int7", ["toy:int6"]))
    no format 'toy:int7'. Did you mean 'toy:int6'? Installed: toy:int6
    >>> print(UnknownFormatError("toy:int7", [f"toy:{kind}{n}" for kind in ("int", "fp", "nf") for n in (4, 6, 8)]))
    no format 'toy:int7'. Did you mean 'toy:int8', 'toy:int6' or 'toy:int4'? qformats formats toy lists all 9
    """

    def __init__(
        self,
        name: str,
        installed: Iterable[str],
        failed: Mapping[str, str] | None = None,
        kind: str = "format",
        *,
        nearest: Iterable[str] | None = None,
        patterns: Iterable[str] = (),
        about: str = "",
    ) -> None:
        self.name, self.installed, self.kind = name, sorted(installed), kind
        self.failed = dict(failed or {})
        close = difflib.get_close_matches(name, self.installed, n=_NEAREST) if nearest is None else nearest
        self.nearest, self.patterns, self.about = tuple(close), tuple(patterns), about
        few = len(self.installed) <= _SHOWN_NAMES
        suggested = _or(self.nearest[: 1 if few else _NEAREST]) if self.nearest else ""
        # Who names something that exists has not mistyped it.
        suggestion = suggested and (f"Nearest: {suggested}. " if about else f"Did you mean {suggested}? ")
        listed = self._listed(few)
        head = f"no {kind} {name!r}" + (f": {about}" if about else "")
        if suggestion and not listed.startswith("qformats"):
            listed = listed[0].upper() + listed[1:]
        parts = [f"{head}. {suggestion}{listed}" if suggestion else f"{head}; {listed}"]
        if self.patterns:
            parts.append(f"names such as {', '.join(self.patterns)} work too")
        if self.failed:
            reasons = ", ".join(f"{plugin} ({reason})" for plugin, reason in sorted(self.failed.items()))
            parts.append(f"failed to load: {reasons}")
        super().__init__("; ".join(parts))

    def _listed(self, few: bool) -> str:
        """What is installed: all of it, or where to find it."""
        if not self.installed:
            return "no plugin is installed: install the package (pip install .)"
        if few:
            return "installed: " + ", ".join(self.installed)
        if "format" in self.kind.split():
            families = sorted({name.partition(":")[0] for name in self.installed if ":" in name})
            only = f" {families[0]}" if len(families) == 1 else ""
            of = "" if self.nearest or only else f", of the families {', '.join(families)}"
            return f"qformats formats{only} lists all {len(self.installed)}{of}"
        if self.nearest:
            return f"there are {len(self.installed)} in all"
        return "known: " + ", ".join(self.installed)

    def __str__(self) -> str:
        return str(self.args[0])


class AmbiguousFormatError(QFormatsError, LookupError):
    """A short name that formats of several families share.

    Parameters
    ----------
    name : str
        The requested name.
    formats : mapping of str to str
        Full names of the formats that it may mean, and what each one is.

    Examples
    --------
    >>> from qformats.errors import AmbiguousFormatError
    >>> print(AmbiguousFormatError("int8", {"toy:int8": "8 bits, one scale per row", "my:int8": "8 bits"}))
    the name 'int8' may mean toy:int8 (8 bits, one scale per row) or my:int8 (8 bits). Give the full name.
    """

    def __init__(self, name: str, formats: Mapping[str, str]) -> None:
        self.name, self.formats = name, dict(formats)
        self.nearest = tuple(self.formats)
        *first, last = [f"{full} ({summary})" for full, summary in self.formats.items()]
        shown = f"{', '.join(first)} or {last}" if first else last
        super().__init__(_sentence("", f"the name {name!r} may mean {shown}", None, "give the full name"))

    def __str__(self) -> str:
        return str(self.args[0])


class NameTakenError(QFormatsError, ValueError):
    """Two plugins claim one name; the first one keeps it.

    Examples
    --------
    >>> from qformats.errors import NameTakenError
    >>> print(NameTakenError("format", "toy:int6", "plugin 'toy' of a 1.0", "plugin 'toy2' of b 1.0"))
    the format name 'toy:int6' is taken by plugin 'toy' of a 1.0; plugin 'toy2' of b 1.0 claims it too and was
    rejected. Rename it in plugin 'toy2' of b 1.0, or uninstall one of the two.
    """

    def __init__(self, kind: str, name: str, owner: str, intruder: str) -> None:
        self.kind, self.name, self.owner, self.intruder = kind, name, owner, intruder
        super().__init__(
            f"the {kind} name {name!r} is taken by {owner}; {intruder} claims it too and was rejected. "
            f"Rename it in {intruder}, or uninstall one of the two."
        )


class PluginLoadError(QFormatsError, ImportError):
    """A plugin failed to import, or registered something that is not a plugin.

    Examples
    --------
    >>> from qformats.errors import PluginLoadError
    >>> print(PluginLoadError("toy", "ImportError: no module named 'toy'"))
    plugin toy was not loaded: ImportError: no module named 'toy'
    """

    def __init__(self, plugin: str, reason: str) -> None:
        self.plugin, self.reason = plugin, reason
        super().__init__(f"plugin {plugin} was not loaded: {reason}")


class PluginError(QFormatsError, RuntimeError):
    """A plugin's code raised an unexpected exception, which is the cause of this one.

    Parameters
    ----------
    plugin : str
        Top-level module of the plugin.
    what : str
        What was called, such as ``"ToyPacker.pack"``.
    error : Exception
        What it raised.

    Examples
    --------
    >>> from qformats.errors import PluginError
    >>> error = PluginError("qformats_toy", "ToyPacker.pack", KeyError("scale"))
    >>> error.about(subject="format toy:int6", tensor="lm_head.weight", file="model.toy")
    >>> print(error)
    model.toy: plugin qformats_toy: ToyPacker.pack raised KeyError: 'scale' (format toy:int6, tensor
    'lm_head.weight'). Report it to the plugin's authors; qformats --debug shows the traceback.
    """

    def __init__(self, plugin: str, what: str, error: Exception) -> None:
        self.plugin, self.what, self.error = plugin, what, error
        self.subject = self.tensor = self.file = ""
        super().__init__()

    def about(self, *, subject: str = "", tensor: str = "", file: str | PathLike[str] = "") -> None:
        """Add the subject (``"format toy:int6"``), the tensor and the file, unless they are known already."""
        self.subject, self.tensor = self.subject or subject, self.tensor or tensor
        self.file = self.file or str(file)

    def __str__(self) -> str:
        told = " ".join(str(self.error).split())
        if len(told) > _LONGEST:
            told = f"{told[:_LONGEST]} ..."
        raised = f"{type(self.error).__name__}{': ' if told else ''}{told}"
        where = [self.subject] if self.subject else []
        where += [f"tensor {self.tensor!r}"] if self.tensor else []
        within = f" ({', '.join(where)})" if where else ""
        hint = "Report it to the plugin's authors; qformats --debug shows the traceback"
        file = f"{self.file}: " if self.file else ""
        return f"{file}plugin {self.plugin}: {self.what} raised {raised}{within}. {hint}."


class ShapeError(QFormatsError, ValueError):
    """A tensor whose shape its format cannot hold, or a field that is not there (`found` is ``None``).

    Examples
    --------
    >>> from qformats.errors import ShapeError
    >>> print(ShapeError("weight", (3, 5), "a multiple of 4 columns"))
    tensor 'weight': shape (3, 5); expected a multiple of 4 columns.
    """

    def __init__(self, tensor: str, found: object, expected: str, hint: str | None = None) -> None:
        self.tensor, self.found, self.expected = tensor, found, expected
        told = "it is missing" if found is None else f"shape {found}"
        super().__init__(_sentence(f"tensor {tensor!r}", told, expected, hint))


class ConfigError(QFormatsError, ValueError):
    """An option or a configuration value that is not allowed; a value told in words is :class:`Described`.

    `nearest` are formats to use instead, best first.

    Examples
    --------
    >>> from qformats.errors import ConfigError
    >>> print(ConfigError("bits", 7, "4 or 8"))
    bits: found 7; expected 4 or 8.
    """

    def __init__(
        self,
        key: str,
        value: object,
        allowed: str,
        hint: str | None = None,
        *,
        nearest: Iterable[str] = (),
    ) -> None:
        self.key, self.value, self.allowed = key, value, allowed
        self.nearest = tuple(nearest)
        if self.nearest:
            hint = f"nearest: {', '.join(self.nearest)}"
        super().__init__(_sentence(key, f"found {shown(value)}", allowed, hint))


class CheckpointError(QFormatsError, ValueError):
    """A file of a model that is missing, truncated or corrupt.

    Examples
    --------
    >>> from qformats.errors import CheckpointError
    >>> print(CheckpointError("model.bin", "8 bytes", "16 bytes", tensor="w", hint="fetch the file again"))
    model.bin: tensor 'w': 8 bytes; expected 16 bytes. Fetch the file again.
    """

    def __init__(
        self,
        file: str | PathLike[str],
        found: str,
        expected: str | None = None,
        *,
        tensor: str | None = None,
        hint: str | None = None,
    ) -> None:
        self.file, self.tensor = str(file), tensor
        subject = f"{self.file}: tensor {tensor!r}" if tensor else self.file
        super().__init__(_sentence(subject, found, expected, hint))


class ModelNotFoundError(QFormatsError, FileNotFoundError):
    """There is no model at this path or under this name.

    Examples
    --------
    >>> from qformats.errors import ModelNotFoundError
    >>> print(ModelNotFoundError("some/where", "no such file or folder", "give a path"))
    some/where: no such file or folder. Give a path.
    """

    def __init__(self, model: str | PathLike[str], found: str, hint: str | None = None) -> None:
        self.model = str(model)
        super().__init__(_sentence(self.model, found, None, hint))


class UnsupportedModelError(QFormatsError, ValueError):
    """An architecture or a tokenizer that is not supported.

    Examples
    --------
    >>> from qformats.errors import UnsupportedModelError
    >>> print(UnsupportedModelError("config.json: model_type", "odd", ["gpt2", "llama"]))
    config.json: model_type: found 'odd'; expected one of gpt2, llama.
    """

    def __init__(self, what: str, found: object, supported: Iterable[str], hint: str | None = None) -> None:
        self.what, self.found, self.supported, self.hint = what, found, sorted(supported), hint
        one_of = "one of " if len(self.supported) > 1 else ""
        super().__init__(_sentence(what, f"found {shown(found)}", one_of + ", ".join(self.supported), hint))


class NonFiniteError(QFormatsError, ValueError):
    """Values that a format cannot hold, noticed where the tensor's name is not known.

    Examples
    --------
    >>> from qformats.errors import NonFiniteError
    >>> print(NonFiniteError("2 of 9 values are not finite", "repair the model"))
    2 of 9 values are not finite. Repair the model.
    """

    def __init__(self, found: str, hint: str | None = None) -> None:
        self.found, self.hint = found, hint
        super().__init__(_sentence("", found, None, hint))


class WeightsError(QFormatsError, ValueError):
    """A tensor with values that the output cannot hold.

    Examples
    --------
    >>> from qformats.errors import WeightsError
    >>> print(WeightsError("model.bin", "w", "2 of 9 values are not finite"))
    model.bin: tensor 'w': 2 of 9 values are not finite.
    """

    def __init__(self, file: str, tensor: str, found: str, hint: str | None = None) -> None:
        self.file, self.tensor = file, tensor
        super().__init__(_sentence(f"{file}: tensor {tensor!r}", found, None, hint))


class NotExactError(QFormatsError, ValueError):
    """A quantized tensor whose values another format cannot represent.

    Parameters
    ----------
    reason : str
        What does not fit, as a clause: ``"levels -8 to 8 need 17 codes, but there are only 16"``.

    Examples
    --------
    >>> from qformats.errors import NotExactError
    >>> print(NotExactError("levels -8 to 8 need 17 codes and there are 16"))
    levels -8 to 8 need 17 codes and there are 16.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(_sentence("", reason, None, None))


def alike(reasons: Mapping[str, str]) -> list[list[str]]:
    """Group names whose reasons differ only in numbers."""
    groups: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        groups.setdefault(re.sub(r"-?[\d.]+(e[-+]?\d+)?", "#", reason), []).append(name)
    return list(groups.values())


class InexactExportError(QFormatsError, ValueError):
    """An export that must keep every value would change some.

    Parameters
    ----------
    source, format : str
        The model and the format to export it to.
    reasons : mapping of str to str
        Why each tensor cannot stay unchanged, by its name in the output.
    complete : bool
        Whether all tensors were checked.

    Examples
    --------
    >>> from qformats.errors import InexactExportError
    >>> print(InexactExportError("model", "gguf:q4_0", {"w": "levels -8 to 8 need 17 codes and there are 16"}))
    model: 1 tensor cannot become gguf:q4_0 unchanged: w (levels -8 to 8 need 17 codes and there are 16).
    Leave out require_exact to round them, or choose another format.
    """

    def __init__(self, source: str, format: str, reasons: Mapping[str, str], complete: bool = True) -> None:
        self.source = source
        self.format = format
        self.reasons = dict(reasons)
        self.complete = complete
        shown = []
        groups = alike(reasons)
        for names in groups[:_SHOWN_REASONS]:
            more = f" and {len(names) - 1} like it" if len(names) > 1 else ""
            shown.append(f"{names[0]}{more} ({reasons[names[0]]})")
        if len(groups) > _SHOWN_REASONS:
            shown.append(f"{len(groups) - _SHOWN_REASONS} other reasons")
        count = f"{'' if complete else 'at least '}{len(reasons)} tensor{'s' if len(reasons) > 1 else ''}"
        found = f"{count} cannot become {format} unchanged: {'; '.join(shown)}"
        option = spelled("--require-exact", "require_exact")
        hint = f"Leave out {option} to round them, or choose another format"
        super().__init__(_sentence(source, found, None, hint))


class OutputError(QFormatsError, OSError):
    """The target cannot be written.

    Examples
    --------
    >>> from qformats.errors import OutputError
    >>> print(OutputError("out.gguf", "exists already", "choose another name"))
    out.gguf: exists already. Choose another name.
    """

    def __init__(self, target: str | PathLike[str], found: str, hint: str | None = None) -> None:
        self.target = str(target)
        super().__init__(_sentence(self.target, found, None, hint))


class BackendUnavailableError(QFormatsError, RuntimeError):
    """A requested runtime that is not available.

    Examples
    --------
    >>> from qformats.errors import BackendUnavailableError
    >>> print(BackendUnavailableError("triton", "the package is not installed", "install triton"))
    triton: the package is not installed. Install triton.
    """

    def __init__(self, backend: str, reason: str, hint: str | None = None) -> None:
        self.backend, self.reason = backend, reason
        super().__init__(_sentence(backend, reason, None, hint))


class WorkerError(QFormatsError, RuntimeError):
    """Another process that shares the work failed.

    Attributes
    ----------
    worker : str
        Which.
    lost : bool
        Whether it was killed or crashed, so that the same work may succeed another time.

    Examples
    --------
    >>> from qformats.errors import WorkerError
    >>> print(WorkerError("process 2 of 2 (cuda:1)", "was killed by signal 9"))
    process 2 of 2 (cuda:1): was killed by signal 9.
    """

    def __init__(self, worker: str, found: str, hint: str | None = None, *, lost: bool = False) -> None:
        self.worker, self.lost = worker, lost
        super().__init__(_sentence(worker, found, None, hint))
