"""Options of the GGUF loader, as data and as values."""

from __future__ import annotations

from collections.abc import Mapping

from qformats.interfaces import Option, switch

__all__ = ["OPTIONS", "ignore_unsupported"]

OPTIONS = (
    Option(
        "arch", "GGUF architecture, if config.json does not tell it or several hold its model type", flag=True
    ),
    Option(
        "base",
        "of an adapter: folder or config.json of its base, if adapter_config.json names none that is here",
        flag=True,
        metavar="PATH",
    ),
    Option(
        "mmproj",
        "write the vision model of a multimodal folder (Gemma 3), as llama.cpp's --mmproj takes it",
        flag=True,
        bare=True,
    ),
    Option("pre", "pre-tokenizer, if tokenizer.json is not recognised", flag=True),
    Option("ignore-unsupported", "yes: go on even if the target does not support a feature of the model"),
    Option(
        "max-shard-size",
        "split the output into files of at most this size, such as 2GB",
        flag=True,
        metavar="SIZE",
    ),
)


def ignore_unsupported(options: Mapping[str, str]) -> bool:
    """Value of the option of that name.

    Raises
    ------
    ConfigError
        If it is neither yes nor no.
    """
    return switch(options, "ignore-unsupported", False)
