"""Check of what a format promises about values that come from other formats."""

from __future__ import annotations

from collections.abc import Iterator

from qformats.errors import NotExactError
from qformats.exact import Answer
from qformats.interfaces import Packer
from qformats.numbers import QuantizedTensor
from qformats.testing.companions import companions
from qformats.testing.compare import same_values
from qformats.testing.failure import Mismatch, NotApplicable, expect, reported
from qformats.testing.weights import any_codes, normal, shapes, usual_shape

__all__ = ["check_exactness"]


@reported
def check_exactness(packer: Packer) -> None:
    """``foresee`` keeps its word, and what ``represent`` gives packs and decodes to the same values.

    Examples
    --------
    >>> import qformats
    >>> from qformats.testing import check_exactness
    >>> check_exactness(qformats.packer("gguf:q8_0"))
    """
    if packer.grid is None:
        raise NotApplicable("plain numbers have no grid" if packer.dense_dtype else "the format has no grid")
    _its_own(packer)
    for source, shape in _sources(packer):
        answer, reason = packer.foresee(source, shape)
        asked = f"foresee from {source.name}"
        expect(isinstance(answer, Answer), f"{asked}: {answer!r}", "an Answer")
        expect(answer is not Answer.NEVER or reason, f"{asked}: never, without a reason", "a reason")
        for quantized in _tensors(source, shape):
            held = _held(packer, quantized)
            if isinstance(held, str):
                expect(answer is not Answer.ALWAYS, f"{asked}: always, and then {held}", "'needs the data'")
                continue
            expect(
                answer is not Answer.NEVER,
                f"{asked}: never ({reason}), and then the same values",
                "'needs the data'",
            )
            _kept(packer, quantized, held, f"what represent makes of {source.name}")


def _its_own(packer: Packer) -> None:
    """A format can hold what it holds."""
    shape = usual_shape(packer)
    quantized = packer.unpack(packer.encode_reference(normal(shape)))
    held = _held(packer, quantized)
    if isinstance(held, str):
        raise Mismatch(f"represent refuses what unpack gives ({held})", "the same tensor")
    _kept(packer, quantized, held, "what represent makes of the format's own tensor")


def _sources(packer: Packer) -> Iterator[tuple[Packer, tuple[int, int]]]:
    """Packers of other grids, and a shape that both can hold."""
    usual = usual_shape(packer)
    possible = [usual, *(shape for shape in shapes(packer) if shape[0] > 1 and shape[1] >= 16)]
    for source in companions():
        shape = next((each for each in possible if not source.veto(each)), None)
        if shape is not None:
            yield source, shape


def _tensors(source: Packer, shape: tuple[int, int]) -> Iterator[QuantizedTensor]:
    assert source.grid is not None
    yield source.grid.quantize(normal(shape))
    yield any_codes(source, shape)


def _held(packer: Packer, quantized: QuantizedTensor) -> QuantizedTensor | str:
    """The tensor on the format's grid, or why it is not."""
    try:
        return packer.represent(quantized)
    except NotExactError as error:
        return f"NotExactError: {error}"


def _kept(packer: Packer, before: QuantizedTensor, held: QuantizedTensor, what: str) -> None:
    assert packer.grid is not None
    expected = before.dequantize()
    same_values(held.dequantize(), expected, f"values of {what}")
    packer.grid.validate(held)
    same_values(packer.dequantize(packer.pack(held)), expected, f"values of {what}, packed")
