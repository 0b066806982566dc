"""Checks of the shared kernels on what a format stores."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING

from qformats.interfaces import KernelSpec, Packer
from qformats.interfaces.spec import MODES
from qformats.numbers import QuantizedTensor
from qformats.testing.compare import same_canonical, same_values
from qformats.testing.failure import NotApplicable, expect, reported
from qformats.testing.weights import any_codes, normal, sample, usual_shape

if TYPE_CHECKING:
    from qformats.kernels.form import DeviceWeight

__all__ = ["check_device_layout", "check_triton_kernels"]

_WIDE = 64
_CLOSE = 2e-6
"""Sums of products in float32, of some hundred columns."""


def _kernel(packer: Packer) -> KernelSpec:
    if packer.spec.kernel is None:
        raise NotApplicable("the descriptor has no KernelSpec: the format is decoded by its own dequantize")
    return packer.spec.kernel


def _weights(packer: Packer) -> Iterator[tuple[str, QuantizedTensor]]:
    # Four blocks, unless they are so wide that they take the interpreter long.
    shape = usual_shape(packer, blocks=4 if packer.spec.block_size <= _WIDE else 2)
    yield "weights", packer.unpack(sample(packer, shape))
    if packer.grid is not None:
        yield "every code", packer.unpack(packer.pack(any_codes(packer, shape)))


def _arranged(quantized: QuantizedTensor, kernel: KernelSpec, what: str) -> DeviceWeight:
    from qformats.kernels.device import arrange, uncovered

    problem = uncovered(quantized, kernel.bits)
    expect(problem is None, f"{what} that the kernels do not cover ({problem})", "what the KernelSpec says")
    return arrange(quantized, kernel.bits)


@reported
def check_device_layout(packer: Packer) -> None:
    """The KernelSpec fits what is stored, and the device layout decodes to the format's own values.

    Examples
    --------
    >>> import qformats
    >>> from qformats.testing import check_device_layout
    >>> check_device_layout(qformats.packer("gguf:q4_0"))
    """
    import torch

    from qformats.kernels import reference
    from qformats.kernels.device import restore

    kernel = _kernel(packer)
    for what, quantized in _weights(packer):
        weight = _arranged(quantized, kernel, what)
        form, columns = weight.form, quantized.shape[1]
        mode = MODES[form.mode]
        expect(
            mode == kernel.mode, f"a tensor for the mode {mode!r}", f"{kernel.mode!r}, as the KernelSpec says"
        )
        group = min(kernel.block_size or columns, columns)
        expect(form.group == group, f"groups of {form.group} columns", f"{group}, as the KernelSpec says")
        expect(
            form.outer == kernel.outer,
            f"outer scales of {form.outer} columns",
            f"{kernel.outer}, as the KernelSpec says",
        )
        dtype = "f16" if restore(weight).scale.dtype == torch.float16 else "f32"
        expect(
            dtype == kernel.scale_dtype, f"scales of {dtype}", f"{kernel.scale_dtype}, as the KernelSpec says"
        )
        same_canonical(restore(weight), quantized, f"{what} from the device layout")
        expected = packer.dequantize(packer.pack(quantized)) if packer.grid else quantized.dequantize()
        same_values(reference.dequantize(weight, torch.float32), expected, f"values of {what} on a device")


@reported
def check_triton_kernels(packer: Packer) -> None:
    """The Triton kernels give the format's own values; on a GPU, or in Triton's interpreter.

    Examples
    --------
    >>> import qformats
    >>> from qformats.testing import NotApplicable, check_triton_kernels
    >>> try:
    ...     check_triton_kernels(qformats.packer("gguf:q4_0"))
    ... except NotApplicable as reason:
    ...     pass  # no GPU, and TRITON_INTERPRET is not set
    """
    kernel = _kernel(packer)
    if find_spec("triton") is None:
        raise NotApplicable("triton is not installed")
    import torch

    cuda = torch.cuda.is_available()
    if not cuda and os.environ.get("TRITON_INTERPRET") != "1":
        reason = "no CUDA device, and TRITON_INTERPRET=1 is not set (before anything imports triton)"
        raise NotApplicable(reason)
    from qformats.kernels import launch

    for what, quantized in _weights(packer):
        weight = _arranged(quantized.to("cuda") if cuda else quantized, kernel, what)
        values = quantized.dequantize()
        found = launch.dequantize(weight, torch.float32).cpu()
        same_values(found, values, f"values of {what} from Triton")
        x = normal((3, quantized.shape[1]), seed=6)
        product = launch.linear(x.to(weight.scale.device), weight, None).cpu().double()
        expected = x.double() @ values.double().T
        error = float((product - expected).norm() / expected.norm().clamp(min=1e-30))
        expect(error < _CLOSE, f"products of {what} that are off by {error:.2g}", f"less than {_CLOSE:g}")
