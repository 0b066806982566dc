"""What a shell may complete: values that only the installed plugins know."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["containers", "devices", "formats", "quantizers", "subjects", "variants"]


def _beginning(incomplete: str, words: Iterable[str]) -> list[str]:
    return [word for word in words if word.startswith(incomplete)]


def formats(incomplete: str) -> list[str]:
    """Families and formats; variants alone where nothing else begins like that."""
    from qformats.registry import registry

    known = registry()
    names = known.format_names()
    full = _beginning(incomplete, [*dict.fromkeys(name.partition(":")[0] for name in names), *names])
    return full or _beginning(incomplete, dict.fromkeys(name.partition(":")[2] for name in names))


def variants(incomplete: str) -> list[str]:
    """Variants of all families."""
    from qformats.registry import registry

    return _beginning(incomplete, dict.fromkeys(n.partition(":")[2] for n in registry().format_names()))


def quantizers(incomplete: str) -> list[str]:
    """Names of quantizers."""
    from qformats.registry import registry

    return _beginning(incomplete, registry().quantizer_names())


def containers(incomplete: str) -> list[str]:
    """Names of containers."""
    from qformats.registry import registry

    return _beginning(incomplete, [loader.name for loader in registry().loaders()])


def subjects(incomplete: str) -> list[str]:
    """Everything that can be checked."""
    return list(dict.fromkeys(formats(incomplete) + quantizers(incomplete) + containers(incomplete)))


def devices(incomplete: str) -> list[str]:
    """Kinds of devices."""
    return _beginning(incomplete, ["cpu", "cuda"])
