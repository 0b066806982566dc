"""Lists of merges for vocabularies that other programs store without them."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["merges_by_rank", "merges_by_score"]


def merges_by_score(scores: Mapping[str, float]) -> list[list[str]]:
    """List every way to make a token of two, best score first.

    SentencePiece joins the neighbours whose joined text scores highest; as a list of merges these are all
    splits of each token into two tokens, in the order of the whole's score.

    Parameters
    ----------
    scores : mapping of str to float
        The normal tokens, in the order of their ids.

    Examples
    --------
    >>> from qformats.vocabularies import merges_by_score
    >>> merges_by_score({"a": -3.0, "b": -4.0, "ab": -1.0, "aab": -2.0})
    [['a', 'b'], ['a', 'ab']]
    """
    index = {token: number for number, token in enumerate(scores)}
    tokens = list(scores)
    found: list[tuple[float, int, int, int]] = []
    for token, number in index.items():
        for at in range(1, len(token)):
            left = index.get(token[:at])
            if left is not None:
                right = index.get(token[at:])
                if right is not None:
                    found.append((-scores[token], number, left, right))
    found.sort()
    return [[tokens[left], tokens[right]] for _, _, left, right in found]


def merges_by_rank(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """List the merge that makes each token of more than one byte, lowest rank first.

    Parameters
    ----------
    ranks : mapping of bytes to int
        Tokens as tiktoken has them: two neighbours are joined where the joined bytes have the lowest rank. The
        last merge before a token is complete is the one that makes it; tokens that no merges make have none.

    Examples
    --------
    >>> from qformats.vocabularies import merges_by_rank
    >>> merges_by_rank({b"a": 0, b"b": 1, b"c": 2, b"bc": 3, b"ab": 4, b"abc": 5})
    [(b'b', b'c'), (b'a', b'b'), (b'a', b'bc')]
    """
    found = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) > 1:
            parts = _parts(token, rank, ranks)
            if len(parts) == 2:
                found.append((parts[0], parts[1]))
    return found


def _parts(token: bytes, rank: int, ranks: Mapping[bytes, int]) -> list[bytes]:
    """Join the bytes of a token as far as merges of a lower rank than its own go."""
    parts = [token[at : at + 1] for at in range(len(token))]
    while len(parts) > 2:
        best, place = rank, -1
        for at in range(len(parts) - 1):
            joined = ranks.get(parts[at] + parts[at + 1])
            if joined is not None and joined < best:
                best, place = joined, at
        if place < 0:
            break
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return parts
