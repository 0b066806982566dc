"""What users mean by the name of a format: short names, names that other programs use, and near misses."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

from qformats.errors import UnknownFormatError
from qformats.interfaces.family import Family
from qformats.interfaces.packer import Packer

__all__ = ["meanings", "nearest", "substitutes"]

_SHOWN = 3
"""How many names a message suggests."""
_ALIKE = 0.6
"""Least likeness of a suggestion, as difflib counts it, and its own default; unrelated names reach 0.5."""
_PART = 3
"""Characters from which a word counts as part of a name."""


def meanings(name: str, families: Iterable[Family]) -> list[Packer]:
    """Formats that a name stands for, in any case: more than one if families share it.

    What can be written comes alone if there is any. A name with a colon belongs to one family; one without is a family,
    or a variant of any of them.
    """
    word = name.lower()
    prefix, colon, variant = word.partition(":")
    families = list(families)
    named = [family for family in families if prefix in (family.name, *family.other_names)]
    if named or colon:
        found = [_variant(family, variant or family.default_variant) for family in named]
    else:
        found = [_variant(family, word) for family in families]
    packers = {packer.name: packer for packer in found if packer is not None}
    return [packer for packer in packers.values() if packer.writable] or list(packers.values())


def _variant(family: Family, word: str) -> Packer | None:
    try:
        return family.parse(family.aliases.get(word, word))
    except UnknownFormatError:
        return None


def nearest(name: str, families: Iterable[Family]) -> list[str]:
    """Names of at most three formats that an unknown name may mean, best first.

    Those that families declare as similar come before those that are spelt alike. Formats that can only be read are
    left out.
    """
    families = list(families)
    prefix, _, word = name.lower().rpartition(":")
    own = [family for family in families if prefix in (family.name, *family.other_names)]
    formats = {p.name: p for family in own or families for p in _listed(family) if p.writable}
    declared = [
        f"{family.name}:{variant}"
        for family in own or families
        for known, variants in family.similar.items()
        if _plain(known) == _plain(word)
        for variant in variants
    ]
    found = [each for each in dict.fromkeys(declared) if each in formats]
    if found:
        return found[:_SHOWN]
    likeness = {
        full: max(_alike(name, full), *(_alike(word, spelt) for spelt in (packer.spec.variant, *spellings)))
        for family in own or families
        for full, packer, spellings in _spelt(family)
        if full in formats
    }
    ranked = sorted(likeness, key=lambda full: -likeness[full])
    return [full for full in ranked if likeness[full] >= _ALIKE][:_SHOWN]


def substitutes(packer: Packer, families: Iterable[Family]) -> list[str]:
    """Names of at most three formats to write instead of one that can only be read: of its family, and near in size."""
    families = list(families)
    own = [family for family in families if family.name == packer.family]
    formats = [p for family in own for p in _listed(family) if p.writable and p.quantizes]
    formats = formats or [p for family in families for p in _listed(family) if p.writable and p.quantizes]
    names = {p.name for p in formats}
    declared = [
        f"{family.name}:{variant}"
        for family in own
        for variant in family.similar.get(packer.spec.variant, ())
    ]
    size = packer.spec.bits_per_weight
    close = sorted(formats, key=lambda p: abs(p.spec.bits_per_weight - size))
    return list(dict.fromkeys([*(d for d in declared if d in names), *(p.name for p in close)]))[:_SHOWN]


def _listed(family: Family) -> list[Packer]:
    return [*(family.parse(variant) for variant in family.variants()), *family.mixtures]


def _spelt(family: Family) -> Iterable[tuple[str, Packer, Sequence[str]]]:
    """Each listed format of a family with the other words for it."""
    for packer in _listed(family):
        variant = packer.spec.variant
        words = [alias for alias, meant in family.aliases.items() if meant == variant]
        if variant == family.default_variant:
            words += [family.name, *family.other_names]
        yield packer.name, packer, words


def _alike(word: str, known: str) -> float:
    """Likeness of two names, from 0 to 1, without punctuation; part of a name is nearly the name."""
    word, known = _plain(word), _plain(known)
    ratio = difflib.SequenceMatcher(None, word, known).ratio()
    shorter = min(len(word), len(known))
    return max(ratio, 0.9 * (shorter >= _PART and (word in known or known in word)))


def _plain(word: str) -> str:
    """A name without punctuation: ``q4km`` is ``q4_k_m``."""
    return re.sub(r"[^a-z0-9]", "", word.lower())
