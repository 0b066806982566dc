"""Reading a vocabulary of tiktoken: a line per token, its bytes in base64 and its rank."""

from __future__ import annotations

import binascii

from qformats.errors import CheckpointError

__all__ = ["parse_ranks"]

_EXPECTED = "a token in base64 and its rank"


def parse_ranks(data: bytes, file: str) -> dict[bytes, int]:
    r"""Read the tokens and their ranks, which are their ids.

    Parameters
    ----------
    data : bytes
        Content of the file.
    file : str
        Its name, for messages.

    Raises
    ------
    CheckpointError
        If a line is malformed, a token or a rank comes twice, a rank is missing, or a single byte has no token.

    Examples
    --------
    >>> import base64
    >>> from qformats.vocabularies import parse_ranks
    >>> lines = [base64.b64encode(bytes([at])) + f" {at}".encode() for at in range(256)]
    >>> parse_ranks(b"\n".join([*lines, b"YWI= 256"]), "tokenizer.model")[b"ab"]
    256
    """
    found: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        fields = line.split()
        try:
            text, rank = fields
            token = binascii.a2b_base64(text, strict_mode=True)
            index = int(rank)
        except ValueError as error:
            raise CheckpointError(file, f"line {number} is {line[:40]!r}", _EXPECTED) from error
        if token in found or not token:
            raise CheckpointError(file, f"line {number} has the token {token!r}", "each token once")
        found[token] = index
    if sorted(found.values()) != list(range(len(found))):
        raise CheckpointError(
            file, f"{len(found)} tokens whose ranks are not 0 to {len(found) - 1}", "every rank once"
        )
    missing = [at for at in range(256) if bytes([at]) not in found]
    if missing:
        raise CheckpointError(file, f"no token for byte {missing[0]}", "a token for each of the 256 bytes")
    return found
