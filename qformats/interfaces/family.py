"""Families: which formats belong together, their names, and their folders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from qformats.errors import ConfigError, UnknownFormatError
from qformats.interfaces.activations import Place, Scheme, Step
from qformats.interfaces.packer import Packer
from qformats.numbers.dtypes import FLOATS
from qformats.work.guard import Guarded

__all__ = ["Family", "ModuleFields"]


@dataclass(frozen=True)
class ModuleFields:
    """What one module of a folder stores.

    Attributes
    ----------
    name : str
        Name of the module.
    stored : mapping of str to (tuple of int, str)
        Shape and dtype of its tensors whose names its format may use, by the name beside the module.
    read : callable
        Raw bytes of one of them; for small ones, such as a description in JSON.
    expected : callable
        Shape ``(N, K)`` of its weight in the model that config.json describes; ``None`` if that is not known. For
        layouts that do not store it: to ask may build the model's class.

    Examples
    --------
    >>> from qformats.interfaces import ModuleFields
    >>> stored = {"weight": ((64, 32), "u8"), "scale": ((64,), "f16")}
    >>> module = ModuleFields("model.layers.0.mlp.up_proj", stored, read=lambda field: b"")
    >>> sorted(module.stored)
    ['scale', 'weight']
    """

    name: str
    stored: Mapping[str, tuple[tuple[int, ...], str]]
    read: Callable[[str], bytes]
    expected: Callable[[], tuple[int, int] | None] = lambda: None


class Family(Guarded):
    """Formats that belong together: names of their variants, and what their folders declare.

    A subclass sets :attr:`name` and lists :attr:`packers`; that is all for a family with a fixed list of variants.
    One that accepts more names than it lists overrides :meth:`variants` and :meth:`parse`. One whose folders have a
    ``quant_method`` of their own overrides :meth:`detect` and :meth:`to_config`; without them its folders declare
    ``{"quant_method": "qformats", "format": "family:variant"}``.

    Examples
    --------
    >>> from qformats import Family, FieldSpec, FormatSpec, Packer
    >>> class Bits(Packer):
    ...     def __init__(self, bits):
    ...         fields = (FieldSpec("codes", ("N", f"K * {bits} / 8"), "u8"),)
    ...         self.spec = FormatSpec("example", f"int{bits}", f"{bits} bits", fields, bits=bits)
    >>> class Example(Family):
    ...     name = "example"
    ...     packers = (Bits(4), Bits(8))
    >>> Example().variants(), Example().default_variant, Example().parse("int8").name
    (('int4', 'int8'), 'int4', 'example:int8')
    """

    guarded = (
        "variants",
        "hub_name",
        "parse",
        "detect",
        "undeclared",
        "foreign",
        "to_config",
        "to_mixed_config",
        "limits",
        "refusal",
        "schemes",
        "step",
        "place",
        "without_steps",
        "with_steps",
        "extra_files",
        "suffixes",
        "locate",
        "separate",
    )

    role = "family"
    name: ClassVar[str]
    """First half of the formats' names."""
    packers: ClassVar[Sequence[Packer]] = ()
    """A packer of each variant; the first one is the default."""
    mixtures: ClassVar[Sequence[Packer]] = ()
    """Names for choices of formats, tensor by tensor, beside the variants; :meth:`parse` knows them too."""
    other_names: ClassVar[tuple[str, ...]] = ()
    """What users also call the family, in lower case: ``("bnb",)``."""
    aliases: ClassVar[Mapping[str, str]] = {}
    """What users also call its variants, in lower case, and the variant that each name stands for: ``{"q8": "q8_0"}``.
    A name that several families declare, or have, is ambiguous; then users choose."""
    similar: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Names of formats that it does not have or cannot write, and the variants that come nearest, best first. They are
    suggested, never taken."""
    known: ClassVar[Mapping[str, str]] = {}
    """What names are, in lower case, that users know from elsewhere: ``{"exl2": "EXL2, which is not supported"}``."""
    asides: ClassVar[Mapping[str, str]] = {}
    """Names beside a module of tensors in the family's folders that are no weights, and what each is, for plans and
    summaries to say: ``{"input_scale": "says how activations are quantized, and weights do without it"}``."""
    config_files: ClassVar[tuple[str, ...]] = ()
    """Files of a folder that hold its ``quantization_config`` if config.json has none."""

    programs: ClassVar[tuple[str, ...]] = ()
    """Programs that load its files or folders: any of ``"vllm"``, ``"llama.cpp"``, ``"transformers"``, ``"mlx"``."""
    config_keys: ClassVar[tuple[str, ...]] = ()
    """Keys of config.json under which its folders declare the same as ``quantization_config``; they are looked at
    first, and written beside it."""

    @property
    def default_variant(self) -> str:
        """Variant meant by the family's bare name."""
        return self.variants()[0]

    def variants(self) -> Sequence[str]:
        """Variants to list; :meth:`parse` may accept more."""
        return tuple(packer.spec.variant for packer in self.packers)

    def parse(self, variant: str) -> Packer:
        """Packer of one variant.

        Raises
        ------
        UnknownFormatError
            If the family has no such variant.
        """
        for packer in (*self.packers, *self.mixtures):
            if packer.spec.variant == variant:
                return packer
        raise self.unknown(variant)

    def hub_name(self, packer: Packer) -> str:
        """What is added to a model's name when it is published in one of these formats: ``MODEL-NAME``."""
        return packer.spec.variant

    def about(self, word: str) -> str:
        """What a name is, in lower case and of no format of the family; empty if that is not known either."""
        return self.known.get(word, "")

    def unknown(self, variant: str, more: Sequence[str] = ()) -> UnknownFormatError:
        """Error for :meth:`parse`; `more` are patterns of names that are not listed."""
        return UnknownFormatError(
            f"{self.name}:{variant}",
            [f"{self.name}:{known}" for known in self.variants()],
            patterns=[f"{self.name}:{pattern}" for pattern in more],
        )

    # Hugging Face folders: what config.json declares, and which tensors of a module belong to its weight.

    @property
    def reads_folders(self) -> bool:
        """Whether it knows a ``quant_method`` of its own."""
        return type(self).detect is not Family.detect

    @property
    def locates(self) -> bool:
        """Whether it finds the shape of a weight by more than the shapes of its fields."""
        return type(self).locate is not Family.locate

    def detect(self, quantization_config: Mapping[str, Any]) -> Packer | None:
        """Packer of a folder whose config.json holds this ``quantization_config``; ``None`` if it is not ours."""
        return None

    def undeclared(self, module: ModuleFields) -> dict[str, Any] | None:
        """Work out what a folder would declare that declares nothing, for :meth:`detect`, from one of its modules.

        Called for modules that store integers. Answer only if the names and shapes leave no doubt.

        Returns
        -------
        dict or None
            A ``quantization_config``; ``None`` if these are not the fields of this family.
        """
        return None

    def foreign(self, module: ModuleFields) -> str:
        """Name in :attr:`known` of the format whose folders store such a module; empty if these are not its fields.

        Called for folders that name no method. `module` also holds fields of modules within, as ``"inner.field"``.
        Answer only if the names and shapes leave no doubt.
        """
        return ""

    def to_config(
        self,
        packer: Packer,
        *,
        dense_modules: Sequence[str] = (),
        packed_modules: Sequence[str] = (),
        dtype: str = "float32",
    ) -> dict[str, Any]:
        """``quantization_config`` of a folder written in one of this family's formats.

        Parameters
        ----------
        packer : Packer
            The format.
        dense_modules : sequence of str
            Linear modules that are left as plain numbers, such as ``"lm_head"``.
        packed_modules : sequence of str
            Modules that are stored in this format.
        dtype : str
            dtype of the model's plain numbers, as config.json spells it.

        Raises
        ------
        ConfigError
            If readers of such folders could not load one of these modules.
        """
        return {"quant_method": "qformats", "format": packer.name}

    @property
    def mixes(self) -> bool:
        """Whether a folder can declare several of its formats."""
        return type(self).to_mixed_config is not Family.to_mixed_config

    def to_mixed_config(
        self, packer: Packer, packed: Mapping[str, Packer], *, dense_modules: Sequence[str], dtype: str
    ) -> dict[str, Any]:
        """``quantization_config`` of a folder with several formats; families whose folders can say that override it.

        Parameters
        ----------
        packer : Packer
            The format that was asked for.
        packed : mapping of str to Packer
            Format of each module that is packed.
        dense_modules, dtype
            As for :meth:`to_config`.
        """
        raise NotImplementedError

    def limits(self, packed_modules: Sequence[str]) -> str:
        """What other programs do not load of a folder with these modules: a sentence for users, without the full stop.

        Parameters
        ----------
        packed_modules : sequence of str
            Modules that are stored in a format of this family, such as ``"model.embed_tokens"``.

        Returns
        -------
        str
            Empty if they load everything.
        """
        return ""

    def refusal(self, program: str, packed: Mapping[str, Packer]) -> str:
        """Why a program does not load a model with these modules: a clause, empty if it does.

        By default those of :attr:`programs` load everything but what :meth:`limits` says that they do not.

        Parameters
        ----------
        program : str
            ``"vllm"``, ``"llama.cpp"``, ``"transformers"`` or ``"mlx"``.
        packed : mapping of str to Packer
            Format of each module that is packed.
        """
        if program not in self.programs:
            return f"it does not know {self.name}"
        told = self.limits(list(packed))
        return told if program in told.lower() else ""

    # Activations: what folders declare of them, and the numbers that they keep for them.

    def schemes(self, quantization_config: Mapping[str, Any]) -> tuple[Scheme, ...]:
        """How a folder with this ``quantization_config`` quantizes activations; empty if it leaves them alone."""
        return ()

    def step(self, name: str, packer: Packer | None, quantization_config: Mapping[str, Any]) -> Step | None:
        """What a tensor stands for that is one of :attr:`asides`; ``None`` if no other folder can hold it.

        Parameters
        ----------
        name : str
            Its name in the folder.
        packer : Packer or None
            Format of the weight beside it.
        quantization_config : mapping
            What the folder declares.
        """
        return None

    def place(self, step: Step, packer: Packer | None) -> Place | None:
        """Where a folder of this family keeps such a number.

        Parameters
        ----------
        step : Step
            What it stands for.
        packer : Packer or None
            Format of the weight of its module; ``None`` for those of the cache.

        Returns
        -------
        Place or None
            ``None`` if it has no place for it.
        """
        return None

    def without_steps(self) -> str:
        """What programs miss in a folder without numbers for activations: a sentence like that of :meth:`limits`."""
        return ""

    def with_steps(
        self,
        quantization_config: Mapping[str, Any],
        steps: Sequence[Step],
        source: Mapping[str, Any],
    ) -> dict[str, Any]:
        """A ``quantization_config`` of :meth:`to_config` that declares what is known of activations.

        Parameters
        ----------
        quantization_config : mapping
            Without it.
        steps : sequence of Step
            Numbers that the folder holds, for all modules of a format or for none of them.
        source : mapping
            ``quantization_config`` of the folder that the model comes from, if it is of the same family; else empty.
        """
        return dict(quantization_config)

    def extra_files(self, packer: Packer, quantization_config: Mapping[str, Any]) -> dict[str, bytes]:
        """More files of a folder with this ``quantization_config``, by name."""
        return {}

    def suffixes(self, packer: Packer) -> frozenset[str]:
        """Every name under which a module may store its weight, in a folder that declares `packer`."""
        return frozenset(field.name for field in packer.spec.fields)

    def locate(self, packer: Packer, module: ModuleFields) -> tuple[Packer, tuple[int, int]] | None:
        """Format and shape ``(N, K)`` of the weight that a module of a folder stores.

        Called for each module that has one of :meth:`suffixes`.

        Parameters
        ----------
        packer : Packer
            What the folder declares.
        module : ModuleFields
            What is stored beside the module.

        Returns
        -------
        tuple or None
            ``None`` for a module of plain numbers.

        Raises
        ------
        ConfigError
            If the fields are incomplete or contradict each other.
        """
        fields = {field.name: field for field in packer.spec.fields}
        missing = sorted(fields.keys() - module.stored.keys())
        if not missing:
            return packer, packer.weight_shape(module.stored)
        for name, (_, dtype) in module.stored.items():
            # A module that was not quantized has a float `weight` of its own; integers alone mean nothing.
            if name in fields and dtype == fields[name].dtype and dtype not in FLOATS:
                present = sorted(fields.keys() & module.stored.keys())
                raise ConfigError(f"fields of {packer.name}", present, " and ".join(fields))
        return None

    def separate(self, packer: Packer, module: ModuleFields) -> frozenset[str]:
        """Names among :meth:`suffixes` of tensors that are not part of this module's weight, such as its bias."""
        return frozenset()
