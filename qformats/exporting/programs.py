"""Whether another program loads what would be written: its format, and modules that it joins into one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from qformats.errors import ConfigError, Described
from qformats.folder.experts import share_of
from qformats.interfaces.checkpoint import Checkpoint
from qformats.interfaces.layout import Assignment
from qformats.interfaces.packer import Packer
from qformats.registry import registry

__all__ = ["JOINING", "NEIGHBOURS", "PROGRAMS", "apart", "known", "require_loadable", "require_stacks"]

PROGRAMS = ("vllm", "llama.cpp", "transformers", "mlx")
"""What ``--for`` takes."""
_STACKING = "transformers"
"""The program whose classes load experts in stacks only, where a model has stacks."""
JOINING = "vllm"
"""The program that loads neighbours as one matrix, so that they need one format.

Source: vllm:vllm/model_executor/layers/quantization/utils/quant_utils.py (``is_layer_skipped``).
"""
NEIGHBOURS = re.compile(r"(.+)\.(?:(?P<qkv>[qkv]_proj)|(?P<gate>gate_proj|up_proj)|(?P<w>w1|w3))\.weight")
"""Weights of modules that it joins; those of one place and one group belong together."""
_EXPERTS = re.compile(r"(.+\.experts)\.\d+\.\w+\.weight")
_PLAIN = "plain numbers"


def known(program: str) -> str:
    """A program's name, as it is spelt here.

    Raises
    ------
    ConfigError
        If nothing is known of it.

    Examples
    --------
    >>> from qformats.exporting.programs import known
    >>> known("vLLM")
    'vllm'
    """
    lowered = program.lower()
    if lowered not in PROGRAMS:
        raise ConfigError("for", program, " or ".join(PROGRAMS))
    return lowered


def apart(formats: Mapping[str, str]) -> list[str]:
    """Neighbours in different formats, a clause for each place.

    Parameters
    ----------
    formats : mapping of str to str
        Format of each matrix, by its name in a folder; plain numbers of any dtype count as one.

    Examples
    --------
    >>> from qformats.exporting.programs import apart
    >>> layer = "model.layers.0.self_attn"
    >>> apart({f"{layer}.q_proj.weight": "four", f"{layer}.k_proj.weight": "eight"})
    ['q_proj (four) and k_proj (eight) of model.layers.0.self_attn']
    """
    places: dict[tuple[str, str], dict[str, str]] = {}
    for name, format in formats.items():
        found = NEIGHBOURS.fullmatch(name)
        if found is not None:
            kind = str(found.lastgroup)
            places.setdefault((found[1], kind), {})[str(found[kind])] = format
        stack = _EXPERTS.fullmatch(name)
        if stack is not None:
            inside = name.removeprefix(f"{stack[1]}.").removesuffix(".weight")
            places.setdefault((stack[1], "experts"), {})[inside] = format
    told = []
    for (place, _), parts in places.items():
        first: dict[str, str] = {}
        for part, format in parts.items():
            first.setdefault(format, part)
        if len(first) > 1:
            told.append(" and ".join(f"{part} ({format})" for format, part in first.items()) + f" of {place}")
    return told


def require_stacks(program: str, assignments: Sequence[Assignment], source: Checkpoint) -> None:
    """Refuse experts that are written one by one for a program that loads only stacks of this model's.

    Raises
    ------
    ConfigError
        Naming one of them.
    """
    if program != _STACKING:
        return
    listed = [a.draft.name for a in assignments if share_of(a.draft.name, source.config) is not None]
    if listed:
        found = Described(f"{listed[0]}, a matrix of one expert")
        expected = f"stacks of experts, which {program} loads of this model, and only as plain numbers"
        raise ConfigError("for", found, expected, "keep them plain with --tensor-type 'experts=bf16'")


def require_loadable(
    program: str, default: Packer, assignments: Sequence[Assignment], *, folder: bool
) -> tuple[str, ...]:
    """Refuse what a program does not load; without one, say what one of them would not.

    Parameters
    ----------
    program : str
        One of :data:`PROGRAMS`, or empty.
    default : Packer
        The format that was asked for.
    assignments : sequence of Assignment
        All tensors.
    folder : bool
        Whether they are written into a folder, where modules have their own names.

    Returns
    -------
    tuple of str
        Notes for the plan.

    Raises
    ------
    ConfigError
        If the program would not load it, saying why.
    """
    family = registry().family(default)
    packed = {a.draft.name.removesuffix(".weight"): a.packer for a in assignments if a.packer.quantizes}
    if program:
        reason = family.refusal(program, packed or {"": default})
        told = "" if any(a.draft.step is not None for a in assignments) else family.without_steps()
        reason = reason or (told if program in told.lower() else "")
        if reason:
            others = [each.name for each in registry().families() if program in each.programs]
            found = Described(
                f"{default.name}, which {program} does not load as it would be written: {reason}"
            )
            raise ConfigError("for", found, f"a format for it ({', '.join(others)})")
    joined = folder and default.quantizes and JOINING in family.programs
    if not joined or (program and program != JOINING):
        return ()
    formats = {a.draft.name: a.packer.name if a.packer.quantizes else _PLAIN for a in assignments}
    places = apart(formats)
    if not places:
        return ()
    more = f", and {len(places) - 1} more" if len(places) > 1 else ""
    if program:
        found = Described(f"different formats of {places[0]}{more}")
        hint = "give them one with --tensor-type 'PATTERN=TYPE'"
        raise ConfigError(
            "for", found, f"one format for neighbours, which {program} loads as one matrix", hint
        )
    return (f"{JOINING} does not load this: it joins {places[0]}{more}; --for {JOINING} makes this an error",)
