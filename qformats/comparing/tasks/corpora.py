"""The texts that have a name, and where libraries of data sets keep them."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CORPORA", "LAMBADA", "Corpus", "DataSet"]

LAMBADA = "lambada"
"""The task that asks for words; all others are texts whose perplexity is measured."""


@dataclass(frozen=True)
class DataSet:
    """A data set on the hub: ``owner/name``, or a name alone as in old versions, and one of its configurations."""

    name: str
    config: str


@dataclass(frozen=True)
class Corpus:
    """A text that has a name.

    Attributes
    ----------
    title : str
        What people call it.
    data_sets : tuple of DataSet
        Where its test split is found, the best first.
    """

    title: str
    data_sets: tuple[DataSet, ...]


def _sets(names: tuple[str, ...], *configs: str) -> tuple[DataSet, ...]:
    return tuple(DataSet(name, config) for config in configs for name in names)


_WIKITEXT = ("Salesforce/wikitext", "wikitext")

CORPORA = {
    LAMBADA: Corpus(
        "LAMBADA",
        _sets(("EleutherAI/lambada_openai",), "default", "en")
        + _sets(("cimec/lambada", "lambada"), "plain_text"),
    ),
    # Perplexity counts words, and those of the raw text are others: wiki.test.tokens comes first, as in reports.
    "wikitext2": Corpus("WikiText-2", _sets(_WIKITEXT, "wikitext-2-v1", "wikitext-2-raw-v1")),
    "wikitext103": Corpus("WikiText-103", _sets(_WIKITEXT, "wikitext-103-v1", "wikitext-103-raw-v1")),
    "ptb": Corpus("Penn Treebank", _sets(("ptb-text-only/ptb_text_only", "ptb_text_only"), "penn_treebank")),
}
"""By the name of their task."""
