"""Plugins that are wrong in one thing each: what the checks of the kit are there to catch.

:data:`BROKEN` says for every check who is caught by it, and what the message must say.
"""

import dataclasses
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from qformats import (
    AffineGrid,
    Family,
    FieldSpec,
    FormatSpec,
    KernelSpec,
    PackedTensor,
    Packer,
    QuantizedTensor,
    Quantizer,
)
from qformats.exact import Answer
from qformats.folder import HuggingFaceFolder
from qformats.interfaces import Option, OutputFile, ReplacedTensors
from qformats.kernels.dense import require_finite
from qformats.numbers import pack_bits, unpack_bits

FIELDS = (FieldSpec("weight", ("N", "K / 2"), "u8"), FieldSpec("weight_scale", ("N", "K / 32"), "f16"))
GRID = AffineGrid(4, 32)


def spec(variant, **changes):
    base = FormatSpec("kit", variant, "4 bits, a scale per 32", FIELDS, bits=4, block_size=32)
    return replace(base, **{"kernel": KernelSpec(4, "affine", 32, "f16"), **changes})


class Right(Packer):
    """Four bits per weight, a float16 for 32 columns: nothing is wrong with it."""

    spec = spec("right", sqnr_floor_db=20.0)
    grid = GRID

    def __init_subclass__(cls, **changes):
        super().__init_subclass__()
        cls.spec = spec(cls.__name__.lower(), **changes)

    def pack(self, quantized):
        fields = {"weight": pack_bits(quantized.codes, 4), "weight_scale": quantized.scale.half()}
        return PackedTensor(self, quantized.shape, fields)

    def unpack(self, packed):
        fields = self.checked(packed).fields
        codes = unpack_bits(fields["weight"], 4, packed.shape[1])
        return QuantizedTensor(codes, fields["weight_scale"], (1, 32), zero_point=8)


class Kit(Family):
    name = "kit"
    packers = (Right(),)


# Descriptor and fields.


class KernelOfOtherBlocks(Right, kernel=KernelSpec(4, "affine", 64, "f16")):
    pass


class WiderScales(Right):
    def pack(self, quantized):
        packed = super().pack(quantized)
        return replace(packed, fields={**packed.fields, "weight_scale": quantized.scale.float()})


class NoScalesForZeros(Right):
    def encode_reference(self, dense):
        packed = super().encode_reference(dense)
        if dense.any():
            return packed
        return replace(packed, fields={**packed.fields, "weight_scale": torch.zeros(1, 1).half()})


# Codes and values.


class SwappedNibbles(Right):
    def unpack(self, packed):
        right = super().unpack(packed)
        return replace(right, codes=right.codes.view(-1, 2).flip(1).view(right.shape).contiguous())


class Fused(Right, fields=(*FIELDS[:1], FieldSpec("weight_scale", ("N", "K / 16"), "f32")), kernel=None):
    """Scale and minimum side by side, in float32; decoded as one fused operation would."""

    grid = AffineGrid(4, 32, kind="minimum", scale_dtype="f32")

    def pack(self, quantized):
        both = torch.stack([quantized.scale.float(), quantized.minimum.float()], -1).flatten(1)
        return PackedTensor(
            self, quantized.shape, {"weight": pack_bits(quantized.codes, 4), "weight_scale": both}
        )

    def unpack(self, packed):
        fields = self.checked(packed).fields
        both = fields["weight_scale"].unflatten(1, (-1, 2))
        codes = unpack_bits(fields["weight"], 4, packed.shape[1])
        return QuantizedTensor(codes, both[..., 0].contiguous(), (1, 32), minimum=both[..., 1].contiguous())

    def dequantize(self, packed):
        right = self.unpack(packed)
        wide = (part.double().repeat_interleave(32, 1) for part in (right.scale, right.minimum))
        scale, minimum = wide
        return (scale * right.codes + minimum).float()


class Distributed(
    Right, fields=(*FIELDS[:1], FieldSpec("weight_scale", ("N", "K / 32"), "f32")), kernel=None
):
    """``scale * code - scale * zero``: the same in real numbers, not in float32."""

    grid = AffineGrid(4, 32, scale_dtype="f32")

    def pack(self, quantized):
        fields = {"weight": pack_bits(quantized.codes, 4), "weight_scale": quantized.scale.float()}
        return PackedTensor(self, quantized.shape, fields)

    def dequantize(self, packed):
        right = self.unpack(packed)
        scale = right.scale.repeat_interleave(32, 1)
        return scale * right.codes - scale * 8


class Unprojected(AffineGrid):
    def project(self, params):
        return params


class ParametersAsFound(Right):
    grid = Unprojected(4, 32)


class OtherRounding(Right):
    def encode_reference(self, dense):
        self.require(dense.shape)
        require_finite(dense)
        params = self.grid.fit(dense.float())
        codes = self.grid.encode(dense.float() * 0.97, params)
        return self.pack(self.grid.quantized(codes, params))


class NotANumberForZeros(Right):
    def dequantize(self, packed):
        scale = packed.fields["weight_scale"].float().repeat_interleave(32, 1)
        return super().dequantize(packed) / scale * scale


class Boastful(Right, sqnr_floor_db=60.0):
    pass


class Careless(Right):
    """Promises what depends on the data."""

    def foresee(self, source, shape):
        return Answer.ALWAYS, ""


class Lossy(Right):
    """Holds whatever comes, rounded."""

    def represent(self, quantized):
        return self.grid.quantize(quantized.dequantize())


# What goes in.


class Different(Right):
    times = 0

    def encode_reference(self, dense):
        Different.times += 1
        packed = super().encode_reference(dense)
        return replace(packed, fields={**packed.fields, "weight": packed.fields["weight"] ^ (self.times % 2)})


class Centering(Right):
    def encode_reference(self, dense):
        return super().encode_reference(dense.sub_(dense.mean()))


class Sorting(Right):
    def unpack(self, packed):
        self.checked(packed)
        packed.fields["weight_scale"].abs_().add_(1)
        return super().unpack(packed)


class Straight(Right):
    """Reads memory in a row, whatever the strides."""

    def encode_reference(self, dense):
        self.require(dense.shape)
        return super().encode_reference(dense.as_strided(dense.shape, (dense.shape[1], 1)))


class Replacing(Right):
    def encode_reference(self, dense):
        return super().encode_reference(dense.nan_to_num(0, 1, -1))


# Shapes and fields that are wrong.


class Squeezed(Right):
    """Loses the dimension of a single row."""

    def unpack(self, packed):
        right = super().unpack(packed)
        return replace(right, codes=right.codes.squeeze(), scale=right.scale.squeeze())


class Padding(Right):
    """Fills rows up that are too short, although veto refuses them."""

    def encode_reference(self, dense):
        if dense.ndim == 2:
            dense = torch.nn.functional.pad(dense, (0, -dense.shape[-1] % 32))
        return super().encode_reference(dense)


class Unpacking(Right):
    """Takes a shape apart before anybody has looked at it."""

    def encode_reference(self, dense):
        rows, columns = dense.shape
        return super().encode_reference(dense.reshape(rows, columns))


class Guessing(Right):
    """Leaves the number of rows to torch, which cannot tell it for a weight without any."""

    def encode_reference(self, dense):
        self.require(dense.shape)
        return super().encode_reference(dense.unflatten(-1, (-1, 32)).view(-1, dense.shape[-1]))


class Trusting(Right):
    def unpack(self, packed):
        codes = unpack_bits(packed.fields["weight"], 4, packed.shape[1])
        return QuantizedTensor(codes, packed.fields["weight_scale"], (1, 32), zero_point=8)


class Enumerating(Right):
    """Knows some scales only."""

    def unpack(self, packed):
        right = super().unpack(packed)
        if not bool(right.scale.isfinite().all()):
            raise KeyError("scale")
        return right


class Chained(Right):
    """Each row is stored as its difference from the one above, and row_step says that rows are by themselves."""

    def pack(self, quantized):
        above = torch.nn.functional.pad(quantized.codes, (0, 0, 1, 0))[:-1]
        return super().pack(replace(quantized, codes=quantized.codes ^ above))

    def unpack(self, packed):
        chained = super().unpack(packed)
        codes, rows = chained.codes.clone(), []
        for row in codes:
            rows.append(row ^ rows[-1] if rows else row)
        return replace(chained, codes=torch.stack(rows) if rows else codes)


class Overlapping(Right):
    """Tells ranges of bytes that begin before the last one ends."""

    def span(self, field, shape, start, stop):
        first, last = super().span(field, shape, start, stop)
        return max(0, first - 1), last


class NarrowKernel(Right, kernel=KernelSpec(3, "affine", 32, "f16")):
    pass


# Folders.


class Undetected(Right):
    pass


class UndetectedFamily(Family):
    name = "kit"
    packers = (Undetected(),)

    def to_config(self, packer, **_):
        return {"quant_method": "undetected"}


class Numbered(Right):
    pass


class NumberedFamily(Family):
    """Keys that JSON turns into text."""

    name = "kit"
    packers = (Numbered(),)

    def to_config(self, packer, **_):
        return {"quant_method": "qformats", "format": packer.name, 4: "bits"}


class Guessed(Right):
    pass


class GuessedFamily(Family):
    """Takes its own modules for those of another family."""

    name = "kit"
    packers = (Guessed(),)

    def detect(self, quantization_config):
        return Guessed() if quantization_config.get("quant_method") == "guessed" else None

    def to_config(self, packer, **_):
        return {"quant_method": "guessed"}

    def undeclared(self, module):
        return {"quant_method": "gussed"}


class Misread(Right):
    """Takes scales of a folder for twice what they are."""

    def from_stored(self, fields, shape):
        return PackedTensor(self, shape, {**fields, "weight_scale": fields["weight_scale"] * 2})


# Quantizers.


class Rounding(Quantizer):
    """Nothing is wrong with it."""

    name = "rounding"
    summary = "plain rounding"
    options = (Option("share", "how much of the range is used (1.0)"),)

    def quantize(self, weight, packer, importance=None):
        return packer.grid.quantize(weight, importance)


def _with(quantized, **changes):
    return dataclasses.replace(quantized, **changes)


class OffTheGrid(Rounding):
    def quantize(self, weight, packer, importance=None):
        right = super().quantize(weight, packer)
        return _with(right, scale=right.scale.float() * 0.9)


class Demeaning(Rounding):
    def quantize(self, weight, packer, importance=None):
        return super().quantize(weight.sub_(0.01), packer)


class Stochastic(Rounding):
    def quantize(self, weight, packer, importance=None):
        return super().quantize(weight + torch.rand(weight.shape) * 0.01 * weight.abs().max(), packer)


class DividingByImportance(Rounding):
    def quantize(self, weight, packer, importance=None):
        right = super().quantize(weight, packer)
        if importance is None:
            return right
        return _with(right, scale=right.scale / importance.min())


class DividingByWeights(Rounding):
    def quantize(self, weight, packer, importance=None):
        right = super().quantize(weight, packer)
        ratio = weight.float().abs().max() / weight.float().abs().max()
        return _with(right, scale=right.scale * ratio)


class NothingLeft(Rounding):
    def quantize(self, weight, packer, importance=None):
        return super().quantize(torch.zeros_like(weight), packer)


class OtherEncode(Rounding):
    def encode(self, dense, packer):
        return packer.pack(packer.grid.quantize(dense.float() * 0.9))


class TakingNaN(Rounding):
    def encode(self, dense, packer):
        return packer.pack(self.quantize(dense.nan_to_num(0, 1, -1), packer))


class NoHelp(Rounding):
    options = (Option("share", ""),)


class Parsing(Rounding):
    def quantize(self, weight, packer, importance=None):
        return super().quantize(weight * float(self.given.get("share", 1)), packer)


# Containers.


class Folder(HuggingFaceFolder):
    """A Hugging Face folder with a mark: nothing is wrong with it."""

    name = "marked"
    summary = "folder with config.json and a file called mark"
    generic = False
    options = ()

    def accepts(self, packer):
        return packer.dense_dtype == "f32"

    def detect(self, path):
        return (path / "mark").is_file()

    def open(self, path, options):
        checkpoint = super().open(path, options)
        checkpoint.container = self.name
        return checkpoint

    def lay_out(self, source, assignments, default, target, options):
        layout = super().lay_out(source, assignments, default, target, options)
        return replace(layout, files=(*map(self.file, layout.files), OutputFile("mark", 0)))

    def file(self, file):
        return file


class Wordless(Folder):
    summary = ""


class Blind(Folder):
    def detect(self, path):
        return False


class Greedy(Folder):
    def detect(self, path):
        return path.exists()


class Listing(Folder):
    """Lists whatever it is given."""

    def detect(self, path):
        return any(file.name == "mark" for file in path.iterdir())


class TooSmall(Folder):
    def file(self, file):
        return replace(file, size=file.size - 64) if file.placements else file


class OneOnAnother(Folder):
    def file(self, file):
        if not file.placements:
            return file
        moved = replace(file.placements[-1], offset=file.placements[0].offset)
        return replace(file, placements=(*file.placements[:-1], moved))


class Forgetting(Folder):
    def file(self, file):
        return replace(file, placements=file.placements[:-1])


class Stamping(Folder):
    """Writes another number each time."""

    def lay_out(self, source, assignments, default, target, options):
        layout = super().lay_out(source, assignments, default, target, options)
        stamp = uuid.uuid4().bytes
        return replace(layout, files=(*layout.files, OutputFile("stamp", len(stamp), stamp)))


def _loaded(stored, change=lambda values: values):
    """The same tensor, from memory."""
    whole = change(stored.dequantize().clone())

    def load(start, stop):
        return PackedTensor(stored.packer, tuple(whole[start:stop].shape), {"weight": whole[start:stop]})

    return replace(stored, load=load)


class Doubling(Folder):
    def open(self, path, options):
        source = super().open(path, options)
        tensors = {
            name: _loaded(tensor, lambda values: values * 2) for name, tensor in source.tensors.items()
        }
        return ReplacedTensors(source, tensors)


class OffByOne(Folder):
    """Gives the row before the one that was asked for."""

    def open(self, path, options):
        checkpoint = super().open(path, options)

        def shifted(stored):
            def load(start, stop):
                return stored.load(max(0, start - 1), stop - 1 if start else stop)

            return replace(stored, load=load)

        checkpoint.tensors = {name: shifted(tensor) for name, tensor in checkpoint.tensors.items()}
        return checkpoint


class Prefixing(Folder):
    def open(self, path, options):
        checkpoint = super().open(path, options)
        checkpoint.tensors = {f"x.{name}": t.renamed(f"x.{name}") for name, t in checkpoint.tensors.items()}
        return checkpoint


class Dropping(Folder):
    def open(self, path, options):
        checkpoint = super().open(path, options)
        checkpoint.tensors = dict(list(checkpoint.tensors.items())[1:])
        return checkpoint


class Eager(Folder):
    def open(self, path, options):
        source = super().open(path, options)
        return ReplacedTensors(source, {name: _loaded(tensor) for name, tensor in source.tensors.items()})


class Complaining(Folder):
    """Tells of broken files in its own words."""

    def open(self, path, options):
        try:
            return super().open(path, options)
        except ValueError as error:
            raise RuntimeError("file is bad") from error


@dataclass(frozen=True)
class Case:
    """Who is caught, and what the message must say.

    Attributes
    ----------
    make : callable
        Gives the packer, quantizer or loader.
    says : str
        Regular expression.
    family : type
        Family to register it with, where one of its own is wrong.
    """

    make: Callable[[], object]
    says: str
    family: type[Family] | None = None


BROKEN = {
    "check_descriptor": [Case(KernelOfOtherBlocks, r"kernel block_size 64; expected 32, as the grid has it")],
    "check_fields_match_descriptor": [
        Case(WiderScales, r"ShapeError: tensor 'weight_scale'.*of f32; expected .*of f16")
    ],
    "check_codes_survive": [
        Case(SwappedNibbles, r"rounded weights after pack and unpack, codes: \d+ of 384 differ")
    ],
    "check_values_are_canonical": [
        Case(Fused, r"values of weights: \d+ of 384 differ, the first is .* expected .* there"),
        Case(Distributed, r"values of weights: \d+ of 384 differ, the first is .* expected .* there"),
    ],
    "check_project_lands_on_grid": [
        Case(ParametersAsFound, r"scale: found '?\d+ values that rounding would change.*; expected no error")
    ],
    "check_reference_bytes": [
        Case(
            OtherRounding,
            r"normal weights: bytes of encode_reference, field 'weight': \d+ of 192 bytes differ",
        )
    ],
    "check_same_bytes_twice": [
        Case(Different, r"normal weights encoded again, field 'weight': 192 of 192 bytes")
    ],
    "check_inputs_stay": [
        Case(Centering, r"encode_reference of normal weights changes its argument"),
        Case(Sorting, r"dequantize changes its argument"),
    ],
    "check_strides_do_not_matter": [
        Case(Straight, r"bytes of a weight that lies transposed, field 'weight': \d+ of 192 bytes differ")
    ],
    "check_sizes_do_not_depend_on_data": [
        Case(
            NoScalesForZeros,
            r"'weight_scale': \(1, 1\)\} for zeros; expected .*\(6, 2\)\}, as for other weights",
        )
    ],
    "check_hard_weights": [Case(NotANumberForZeros, r"infinity or NaN for zeros; expected finite values")],
    "check_odd_shapes": [Case(Squeezed, r"ShapeError: tensor 'codes'.*; expected no error")],
    "check_rows": [
        Case(Chained, r"rows 1 to 6 of \(6, 64\) packed by themselves, field 'weight': .* bytes differ"),
        Case(
            Overlapping, r"span\('weight', \(6, 64\), 1, 6\) \(31, 192\); expected one that begins at byte 32"
        ),
    ],
    "check_sqnr_floor": [Case(Boastful, r"2\d\.\d\d dB; expected at least 60 dB, as sqnr_floor_db says")],
    "check_exactness": [
        Case(
            Careless,
            r"foresee from companion:row: always, and then NotExactError.*; expected 'needs the data'",
        ),
        Case(Lossy, r"values of what represent makes of .*differ"),
    ],
    "check_bad_shapes_are_refused": [
        Case(
            Padding,
            r"bytes for \(6, 65\), which veto refuses \(rows of 65.*\); expected ShapeError\. Call self\.req",
        ),
        Case(Unpacking, r"for a weight of \(\): .*raised ValueError.*; expected ShapeError"),
        Case(
            Guessing, r"for a weight of \(6, 0\): .*raised RuntimeError.*; expected bytes, since veto accepts"
        ),
    ],
    "check_wrong_fields_are_refused": [
        Case(
            Trusting,
            r"dequantize of fields with no weight: .*raised KeyError.*; expected ShapeError or ConfigError",
        )
    ],
    "check_not_finite_is_refused": [
        Case(
            Replacing,
            r"bytes for weights with nan in f32; expected NonFiniteError\. Call .*require_finite first",
        )
    ],
    "check_random_bytes": [
        Case(Enumerating, r"of bytes of 255: .*raised KeyError|of random bytes.*: .*raised KeyError")
    ],
    "check_device_layout": [
        Case(
            NarrowKernel,
            r"weights that the kernels do not cover \(codes run from 0 to 15.*expected what the Kernel",
        )
    ],
    "check_triton_kernels": [
        Case(NarrowKernel, r"weights that the kernels do not cover \(codes run from 0 to 15")
    ],
    "check_config_survives_json": [
        Case(
            Undetected,
            r"no family that detects \{'quant_method': 'undetected'\}.*Override detect",
            UndetectedFamily,
        ),
        Case(Numbered, r"a quantization_config that JSON changes", NumberedFamily),
        Case(Guessed, r"plain numbers by \{'quant_method': 'gussed'\}, which undeclared", GuessedFamily),
    ],
    "check_checkpoint": [Case(Misread, r"values of 'model\..*' read back: \d+ of \d+ differ")],
    "check_result_is_on_the_grid": [
        Case(
            OffTheGrid,
            r"off the grid of companion:symmetric: scale: .*; expected a result on it\. Round parameters",
        )
    ],
    "check_weight_stays": [
        Case(Demeaning, r"quantize of normal weights for companion:symmetric changes its argument")
    ],
    "check_same_codes_twice": [
        Case(Stochastic, r"weights quantized again for companion:symmetric, \w+: \d+ of")
    ],
    "check_importance_is_taken": [Case(DividingByImportance, r"scale: found .*; expected no error")],
    "check_hard_weights_are_quantized": [Case(DividingByWeights, r"scale: found '?infinity or NaN")],
    "check_error_is_small": [
        Case(
            NothingLeft,
            r"a squared error of .* for companion:symmetric; expected at most .*, 4 times that of plain",
        )
    ],
    "check_encode_packs_what_quantize_gives": [
        Case(OtherEncode, r"encode of normal weights for companion:symmetric, field 'codes'|field 'scale'")
    ],
    "check_quantizer_refuses_nan": [Case(TakingNaN, r"bytes for weights with nan; expected NonFiniteError")],
    "check_options": [
        Case(NoHelp, r"the option 'share' without help; expected a line that tells users"),
        Case(Parsing, r"for share='no such value': .*ValueError.*; expected ConfigError\. Read options with"),
    ],
    "check_loader_descriptor": [Case(Wordless, r"no summary; expected one line")],
    "check_detects_its_own": [Case(Blind, r"detect False for model; expected True: it was written here")],
    "check_detects_nothing_else": [
        Case(Greedy, r"detect True for an empty file; expected False"),
        Case(Listing, r"FileNotFoundError: .*nothing.*; expected no error"),
    ],
    "check_placements": [
        Case(
            OneOnAnother, r"of tensor \d+ at bytes \d+ to \d+ of model\.safetensors; expected a place behind"
        ),
        Case(Forgetting, r"fields \[\] of '.*'; expected weight"),
    ],
    "check_files_have_the_planned_sizes": [
        Case(TooSmall, r"bytes of model\.safetensors; expected \d+, as planned")
    ],
    "check_same_files_twice": [
        Case(Stamping, r"other bytes in stamp the second time; expected the same bytes")
    ],
    "check_written_is_read_back": [
        Case(Doubling, r"values of '.*' read back: \d+ of \d+ differ"),
        Case(OffByOne, r"rows 1 to 5 of '.*': \d+ of \d+ differ"),
    ],
    "check_names_are_canonical": [
        Case(Prefixing, r"a tensor 'x\..*'; expected names of the model"),
        Case(Dropping, r"no tensor '.*'; expected every tensor of the model"),
    ],
    "check_opens_headers_only": [
        Case(Eager, r"the old values of '.*'; expected zeros, as the file holds them now")
    ],
    "check_truncated_files_are_refused": [
        Case(
            Complaining,
            r"of 0 instead of \d+ bytes: Complaining\.open raised RuntimeError: file is bad; expected Ch",
        )
    ],
}
