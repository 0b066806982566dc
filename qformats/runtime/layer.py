"""A module whose weight stays packed, in any format."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from qformats.errors import QFormatsError, ShapeError
from qformats.interfaces.packer import PackedTensor, Packer
from qformats.interfaces.rows import cut
from qformats.kernels.device import arrange, restore, uncovered
from qformats.kernels.form import DeviceForm, DeviceWeight
from qformats.kernels.stacking import alone
from qformats.numbers.dtypes import torch_dtype
from qformats.numbers.quantized import QuantizedTensor
from qformats.registry import registry
from qformats.runtime.codes import Codes

if TYPE_CHECKING:
    from qformats.kernels.prepared import PreparedLinear
    from qformats.runtime.neighbours import Neighbours

__all__ = ["PackedLayer"]

_PIECE = 1 << 24
"""Weights decoded at a time, if rows can be decoded separately."""
_BESIDE = ("scale", "shift", "table", "order", "factor", "shift_factor")
"""Tensors of a weight in the device layout beside its planes."""


class PackedLayer(nn.Module):
    """A module whose weight is packed.

    The weight is in one of two states. *Packed*: the format's own fields, each under its own name; they are decoded
    whenever the weight is used. *Arranged*: in the layout of the shared kernels. Neither rounds anything, and
    :meth:`packed` gives back the bytes of the format in both.

    A *tied* module has no weight of its own and uses that of another one.

    Casting the module leaves the weight alone. Moving it to a CUDA device arranges it, if the kernels cover it.
    """

    packer: Packer
    """Format of the weight."""
    shape: tuple[int, int]
    """``(N, K)`` of the weight."""

    def _place(self, packer: Packer | str, shape: Sequence[int], device: torch.device | str | None) -> None:
        """Allocate the fields of a weight, uninitialised."""
        self.packer = registry().packer(packer) if isinstance(packer, str) else packer
        self.shape = (int(shape[0]), int(shape[1]))
        self._names: dict[str, str] = {}
        self._form: DeviceForm | None = None
        self._planes = 0
        self._prepared: PreparedLinear | None = None
        self.neighbours: Neighbours | None = None
        self._reason: str | None = None
        self._kept: dict[str, Tensor] = {}
        self._shell: QuantizedTensor | None = None
        self._tied: tuple[PackedLayer, ...] = ()
        # Transformers fills modules with random numbers unless they say this.
        self._is_hf_initialized = True
        stored = self.packer.stored(self.shape).items()
        self._hold(
            {
                name: torch.empty(dims, dtype=torch_dtype(dtype), device=device)
                for name, (dims, dtype) in stored
            }
        )

    def _hold(self, fields: Mapping[str, Tensor]) -> None:
        """Hold a weight packed."""
        self._drop()
        names = {}
        for name, value in fields.items():
            # Tensors of modules have no dots in their names.
            names[name] = name.replace(".", "_")
            if name == "weight":
                self.register_parameter(name, nn.Parameter(value, requires_grad=False))
            else:
                self.register_buffer(names[name], value)
        self._names = names

    def _hold_arranged(self, weight: DeviceWeight) -> None:
        """Hold a weight in the layout of the kernels."""
        self._drop()
        for number, plane in enumerate(weight.planes):
            self.register_buffer(f"device_plane{number}", plane, persistent=False)
        for part in _BESIDE:
            self.register_buffer(f"device_{part}", getattr(weight, part), persistent=False)
        self._form, self._planes = weight.form, len(weight.planes)

    def _drop(self) -> None:
        self._part()
        for name in self._held():
            self._parameters.pop(name, None)
            self._buffers.pop(name, None)
        self._names, self._form, self._planes, self._prepared = {}, None, 0, None
        self._reason, self._kept, self._shell = None, {}, None

    def _part(self) -> None:
        """Be computed alone from now on."""
        if self.neighbours is not None:
            self.neighbours.part()
            self.neighbours = None

    def _held(self) -> list[str]:
        """Names of the module's tensors that hold the weight."""
        if self._form is None:
            return list(self._names.values())
        return [*(f"device_plane{n}" for n in range(self._planes)), *(f"device_{p}" for p in _BESIDE)]

    def _tensor(self, name: str) -> Tensor:
        value = self._parameters.get(name)
        return cast(Tensor, self._buffers.get(name) if value is None else value)

    @property
    def _home(self) -> PackedLayer:
        """The module that holds the weight."""
        return self._tied[0]._home if self._tied else self

    def tie(self, other: PackedLayer) -> None:
        """Use the weight of another module from now on.

        Raises
        ------
        ShapeError
            If it has another shape.
        """
        if other.shape != self.shape:
            raise ShapeError("weight of a tied layer", other.shape, str(self.shape))
        self._drop()
        self.packer = other.packer
        # In a tuple, so that it does not become a submodule.
        self._tied = (other,)

    @property
    def weight(self) -> Tensor:
        """Tensor of the codes, of some shape and integer dtype, for code that asks a layer for its device.

        It refuses to be computed with; see :class:`qformats.runtime.codes.Codes`.
        """
        home = self._home if "_tied" in self.__dict__ else self
        names = home._held() if "_names" in home.__dict__ else []
        if not names:
            # Module then says that there is none, which lets one be registered.
            raise AttributeError("weight")
        return Codes.of(home._tensor("weight" if "weight" in names else names[0]))

    @property
    def is_arranged(self) -> bool:
        """Whether the weight lies in the layout of the shared kernels."""
        return self._home._form is not None

    @property
    def is_tied(self) -> bool:
        """Whether the weight is that of another module."""
        return bool(self._tied)

    @property
    def kernel_note(self) -> str:
        """How the weight is used; if not by the shared kernels, why."""
        home = self._home
        if home._form is not None:
            return "shared kernel"
        return f"decoded at each use, because {home._reason}" if home._reason else "decoded at each use"

    @property
    def nbytes(self) -> int:
        """Bytes of the weight in memory, also where they are those of the module it is tied to."""
        home = self._home
        held = [home._tensor(name) for name in home._held()]
        return sum(value.nbytes for value in (*held, *home._kept.values()) if value is not None)

    @property
    def addresses(self) -> tuple[int, ...]:
        """Where the tensors that hold the weight are: others than before mean another weight."""
        home = self._home
        return tuple([home._tensor(at).data_ptr() for at in home._names.values()])

    def packed(self) -> PackedTensor:
        """The weight in its format: exactly the bytes that were loaded."""
        home = self._home
        if home._form is None:
            fields = {name: home._tensor(at).detach() for name, at in home._names.items()}
        else:
            fields = {name: field.cpu() for name, field in home._repacked().items()}
        return PackedTensor(home.packer, home.shape, fields)

    def set_packed(self, packed: PackedTensor) -> None:
        """Take another weight of the same shape, of the same format or another one.

        Raises
        ------
        ShapeError
            If it has another shape.
        """
        if tuple(packed.shape) != self.shape:
            raise ShapeError("weight", tuple(packed.shape), str(self.shape))
        self._tied = ()
        self.packer = packed.packer
        self._hold(packed.fields)

    def arranged(self) -> DeviceWeight:
        """The weight in the layout of the shared kernels; only where it :attr:`is_arranged`."""
        home = self._home
        assert home._form is not None
        tensors = [home._buffers[name] for name in home._held()]
        planes = cast("tuple[Tensor, ...]", tuple(tensors[: home._planes]))
        beside = dict(zip(_BESIDE, tensors[home._planes :], strict=True))
        return DeviceWeight(planes, form=home._form, **cast("dict[str, Any]", beside))

    def rearranged(self, weight: DeviceWeight) -> None:
        """Hold the same arranged weight in other memory."""
        for number, plane in enumerate(weight.planes):
            self._buffers[f"device_plane{number}"] = plane
        for part in _BESIDE:
            self._buffers[f"device_{part}"] = getattr(weight, part)
        self._form, self._prepared = weight.form, None

    def prepared(self) -> PreparedLinear:
        """Products with an arranged weight on a CUDA device, without gradients."""
        if self._prepared is None:
            from qformats.kernels.prepared import PreparedLinear

            self._prepared = PreparedLinear(self.arranged())
        return self._prepared

    def arrange(self, device: torch.device | str | None = None) -> bool:
        """Move the weight into the layout of the shared kernels, if they support it.

        What does not fit the layout, such as scales of scales, is kept on the CPU.

        Parameters
        ----------
        device : torch.device or str, optional
            Where to; by default where the weight is.

        Returns
        -------
        bool
            Whether the kernels support it. If not, it is still on the device, and :attr:`kernel_note` says why.
        """
        home = self._home
        if home is not self:
            return home.arrange(device)
        device = torch.device(self.weight.device if device is None else device)
        if self._form is not None:
            self.to(device)
            return True
        packed = self.packed()
        if not self.packer.spec.level:
            quantized, reason = None, f"{self.packer.name} has no canonical form"
        else:
            # Most packers' code is compiled for a CPU.
            place = device if self.packer.on_device else "cpu"
            fields = {name: field.to(place) for name, field in packed.fields.items()}
            packed = replace(packed, fields=fields)
            quantized = self.packer.unpack(packed)
            reason = uncovered(quantized, self._bits) or ""
        if quantized is None or reason:
            self._hold({name: field.to(device) for name, field in packed.fields.items()})
            self._reason = reason
            return False
        self._hold_arranged(arrange(quantized.to(device), self._bits))
        if type(quantized) is not QuantizedTensor:
            self._shell = _emptied(quantized)
        self._kept = self._not_given_back(packed)
        return True

    @property
    def _bits(self) -> int | None:
        kernel = self.packer.spec.kernel
        return None if kernel is None else kernel.bits

    def _repacked(self) -> dict[str, Tensor]:
        """Fields of an arranged weight."""
        if self._kept.keys() == self.packer.stored(self.shape).keys():
            return dict(self._kept)
        quantized = restore(self.arranged())
        if not self.packer.on_device:
            quantized = quantized.to("cpu")
        if self._shell is not None:
            scale = quantized.scale.reshape(self._shell.scale.shape)
            quantized = replace(self._shell, codes=quantized.codes, scale=scale)
        return {**self.packer.pack(quantized).fields, **self._kept}

    def _not_given_back(self, packed: PackedTensor) -> dict[str, Tensor]:
        """Fields that restoring and packing do not reproduce bit for bit."""
        try:
            again = self._repacked()
        except QFormatsError:
            again = {}
        return {
            name: field.to("cpu", copy=True)
            for name, field in packed.fields.items()
            if name not in again or not _same_bytes(field, again[name])
        }

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Value of every weight.

        Returns
        -------
        Tensor
            ``(N, K)``, on the device of the weight; new at each call.
        """
        home = self._home
        if home._form is not None:
            from qformats.kernels import ops

            return ops.dequantize(home.arranged(), dtype)
        values: Tensor = _decoded(home.packed(), dtype)
        return values

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        if self._form is not None and self._form.line:
            # What lies together with others is taken apart: it may move alone.
            self._part()
            self.rearranged(alone(self.arranged()))
        before = {id(self._tensor(name)) for name in self._held()}
        came_from = None if self._tied else self.weight.device.type

        def moving(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            # Codes and scales move, but are not cast.
            return tensor.to(moved.device) if id(tensor) in before and moved.dtype != tensor.dtype else moved

        super()._apply(moving, recurse)  # type: ignore[no-untyped-call]
        self._prepared = None
        if came_from == "cpu" and self.weight.device.type == "cuda" and self._form is None:
            self.arrange()
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        for name, value in {} if self._tied else self.packed().fields.items():
            destination[prefix + name] = value
        bias = self._parameters.get("bias")
        if bias is not None:
            destination[prefix + "bias"] = bias if keep_vars else bias.detach()

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        stored = {} if self._tied else self.packer.stored(self.shape)
        found = {name: state_dict[prefix + name] for name in stored if prefix + name in state_dict}
        known = {*stored, *(["bias"] if self._parameters.get("bias") is not None else [])}
        if strict:
            missing_keys += [prefix + name for name in known if prefix + name not in state_dict]
            given = [key for key in state_dict if key.startswith(prefix)]
            unexpected_keys += [key for key in given if key.removeprefix(prefix) not in known]
        for name, value in found.items():
            dims, dtype = stored[name]
            if (tuple(value.shape), value.dtype) != (dims, torch_dtype(dtype)):
                told = f"{tuple(value.shape)} of {value.dtype}, expected {dims} of {torch_dtype(dtype)}"
                error_msgs.append(f"{prefix}{name} of {self.packer.name}: found {told}")
                return
        bias = state_dict.get(prefix + "bias")
        if bias is not None and "bias" in known:
            self._load_bias(bias, assign=bool(local_metadata.get("assign_to_params_buffers")))
        if found and found.keys() == stored.keys():
            device, arranged = self.weight.device, self.is_arranged
            self._hold(
                found if device.type == "meta" else {n: v.to(device).clone() for n, v in found.items()}
            )
            if arranged:
                self.arrange()

    def _load_bias(self, value: Tensor, *, assign: bool) -> None:
        bias = self._parameters["bias"]
        assert bias is not None
        if assign or bias.is_meta:
            self._parameters["bias"] = nn.Parameter(value, requires_grad=bias.requires_grad)
        else:
            with torch.no_grad():
                bias.copy_(value)

    def extra_repr(self) -> str:
        """Sizes, format, and how the weight is used."""
        rows, columns = self.shape
        biased = ", bias=True" if self._parameters.get("bias") is not None else ""
        return f"{columns} -> {rows}{biased}, {self.packer.name}, {self.kernel_note}"


def _emptied(quantized: QuantizedTensor) -> QuantizedTensor:
    """What accompanies a canonical tensor; only the shapes of codes and scales, without memory."""
    codes, scale = quantized.codes.new_zeros(1, 1), quantized.scale.new_zeros(())
    return replace(
        quantized,
        codes=codes.expand(quantized.codes.shape),
        scale=scale.expand(quantized.scale.shape),
    )


def _same_bytes(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    device = one.device if one.device == other.device else torch.device("cpu")
    flat = [value.to(device).contiguous().reshape(-1).view(torch.uint8) for value in (one, other)]
    return torch.equal(*flat)


@torch.compiler.disable  # type: ignore[untyped-decorator] # compiled code of packers
def _decoded(packed: PackedTensor, dtype: torch.dtype) -> Tensor:
    """Values of a packed tensor, in pieces of rows, so that there is never more than a piece of float32."""
    rows, columns = packed.shape
    step = packed.packer.row_step(packed.shape)
    size = max(step, _PIECE // max(1, columns) // step * step) if step else rows
    if dtype == torch.float32 or size >= rows:
        return packed.dequantize().to(dtype)
    device = next(iter(packed.fields.values())).device
    values = torch.empty((rows, columns), dtype=dtype, device=device)
    for start in range(0, rows, size):
        stop = min(rows, start + size)
        values[start:stop] = cut(packed, start, stop).dequantize()
    return values
