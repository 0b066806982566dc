"""Warnings that many tensors of a model give alike, told once."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

__all__ = ["Repeated"]


class Repeated:
    """Collects warnings and tells each of them once, with the number of tensors that gave it.

    Warnings are alike if they differ in the tensor's name only; the first one's text is told.

    Examples
    --------
    >>> import warnings
    >>> from qformats.work.repeated import Repeated
    >>> repeated = Repeated()
    >>> for name in ("q_proj", "k_proj", "v_proj"):
    ...     with repeated.of(name):
    ...         warnings.warn(f"{name} is odd", UserWarning)
    >>> with warnings.catch_warnings(record=True, action="always") as caught:
    ...     repeated.tell()
    >>> str(caught[0].message)
    'q_proj is odd (and 2 more tensors alike)'
    """

    def __init__(self) -> None:
        self._found: dict[tuple[type[Warning], str], tuple[str, int]] = {}

    @contextlib.contextmanager
    def of(self, tensor: str) -> Iterator[None]:
        """Collect what is warned of one tensor.

        The list of filters belongs to the process: use this where no other thread warns.
        """
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
        for each in caught:
            text = str(each.message)
            key = each.category, text.replace(tensor, "\0")
            first, count = self._found.get(key, (text, 0))
            self._found[key] = first, count + 1

    def tell(self) -> None:
        """Give each of the warnings once, and forget them."""
        found, self._found = self._found, {}
        for (category, _), (text, count) in found.items():
            rest = count - 1
            more = f" (and {rest} more tensor{'s' if rest > 1 else ''} alike)" if rest else ""
            warnings.warn(text + more, category, stacklevel=2)
