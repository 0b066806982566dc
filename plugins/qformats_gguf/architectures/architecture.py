"""A model seen through its row of the table: names, metadata and configuration, in both directions."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from qformats.errors import UnsupportedModelError
from qformats_gguf.architectures import further, llama3, longrope, mixers, multimodal, rope, windows
from qformats_gguf.architectures.config import PREDICTING, computed, limits, normalize, predicting, restore
from qformats_gguf.architectures.find import around, find, row_of
from qformats_gguf.architectures.keys import strangers
from qformats_gguf.architectures.limits import Config, Problem
from qformats_gguf.architectures.names import Names
from qformats_gguf.architectures.schema import Row
from qformats_gguf.architectures.size_label import size_label
from qformats_gguf.metadata import Metadata, ValueType, boolean, f32, string, u32

__all__ = ["Architecture"]


_QUANTIZATION_VERSION = 2
_CAUSAL = "attention.causal"


@dataclass(frozen=True)
class Architecture(Names):
    """One model as a GGUF architecture.

    Made by `from_config` on the way to GGUF and by `from_metadata` on the way back; the results are
    the same thing.

    Its attributes are those of :class:`~qformats_gguf.architectures.names.Names`.
    """

    @classmethod
    def from_config(
        cls,
        config: Config,
        *,
        names: Collection[str] = (),
        override: str | None = None,
        source: str = "config.json",
        force: bool = False,
    ) -> Architecture:
        """Find the row for a Hugging Face model.

        Parameters
        ----------
        config : mapping
            Contents of ``config.json``, of any Transformers version.
        names : collection of str
            Tensors of the folder: they tell whether it has blocks that predict further tokens.
        override : str, optional
            GGUF architecture to use (``--arch``): one of those that hold the model's type, or that of a
            configuration which names neither its type nor its class.
        source : str
            File name for messages.
        force : bool
            Go on if llama.cpp computes something different from Transformers; see `ignored`.

        Raises
        ------
        UnsupportedModelError
            If no row describes the model, llama.cpp does not compute a feature of it, or a key that may change
            what it computes is unknown.
        CheckpointError, ConfigError
            If a size is missing or impossible.
        """
        outer = around(config, source)
        if outer:
            config = multimodal.text_part(config, outer[0][1])
        row, model, identified = find(config, override, source, outer)
        full = normalize(config, model, row, source)
        problems = limits(full, row, model) + strangers(config, row, model, identified=identified)
        if row.rope:
            problems += _rope_metadata("", full, row)[1]
        found = cls(row, full, source, _settle(problems, source, force, row.tolerated), bool(outer))
        return found._with_further(names)

    def _with_further(self, names: Collection[str]) -> Architecture:
        """The same with the blocks after the last one whose tensors are among these, if GGUF holds them."""
        if not any(rule.layers == further.PREDICTING for rule in self.row.tensors):
            return self
        found = frozenset(own for name in names if (own := self._in_block(name)) is not None)
        counted = [int(at[1]) for name in found if (at := re.search(r"\.layers\.(\d+)\.", name))]
        count = max(counted, default=self.block_count - 1) + 1 - self.block_count
        return replace(self, predicting=count, further=found)

    @classmethod
    def from_metadata(
        cls,
        metadata: Metadata,
        names: Iterable[str],
        *,
        extra_tensors: Mapping[str, np.ndarray] | None = None,
        source: str = "GGUF file",
        force: bool = False,
    ) -> Architecture:
        """Find the row for a GGUF file.

        Parameters
        ----------
        metadata : Metadata
            All of the file's metadata; the vocabulary size is the number of tokens.
        names : iterable of str
            Names of all tensors: they tell tied embeddings and biases.
        extra_tensors : mapping of str to numpy.ndarray, optional
            Values of ``rope_freqs.weight`` and of ``rope_factors_*.weight``, needed where the file has them.
        source : str
            File name for messages.
        force : bool
            Go on if Transformers computes something different from llama.cpp; see `ignored`.

        Raises
        ------
        UnsupportedModelError
            If the architecture is not in the table, or no configuration can express its metadata.
        CheckpointError
            If other metadata is missing or contradicts itself.
        """
        arch = metadata.get("general.architecture")
        named = arch.data if arch is not None and arch.type is ValueType.STRING else None
        row = row_of(named, metadata, source)
        separate = frozenset(part for name in names for part in row.separate(name))
        config, problems = restore(metadata, row, separate, extra_tensors or {}, source)
        count = predicting(metadata, row.arch, source)
        return cls(row, config, source, _settle(problems, source, force), predicting=count)

    def metadata(self, *, name: str, parameters: int | None = None) -> Metadata:
        """Metadata of the GGUF file, without tokenizer and ``general.file_type``.

        Parameters
        ----------
        name : str
            Name of the model.
        parameters : int, optional
            Number of weights, for ``general.size_label``.
        """
        prefix = self.arch + "."
        metadata: Metadata = {
            "general.architecture": string(self.arch),
            "general.type": string("model"),
            "general.name": string(name),
        }
        if parameters is not None:
            metadata["general.size_label"] = string(size_label(parameters, self._stacks()))
        for rule in self.row.metadata:
            if not rule.write:
                continue
            value = computed(rule, self.config) if rule.computed else self.config.get(rule.config)
            value = rule.null if value is None and rule.optional else value
            if rule.config == self.row.blocks:
                value = self._blocks
            if value is not None:
                metadata[rule.under(prefix)] = rule.make(value)
        if self.further:
            metadata[prefix + PREDICTING] = u32(self.predicting)
        if not self.row.causal:
            metadata[prefix + _CAUSAL] = boolean(False)
        if self.row.window:
            always = self.row.window_pattern
            metadata |= windows.to_metadata(prefix, self.config, self.row.window, always=always)
        if self.row.mixers:
            more = self._blocks - self.block_count
            metadata |= mixers.to_metadata(prefix, self.config, self.row.mixers, more)
        if self.row.local_rope and windows.slide(self.config):
            theta = self.config["local_rope_parameters"]["rope_theta"]
            metadata[prefix + "rope.freq_base_swa"] = f32(theta)
        if self.row.rope:
            metadata |= _rope_metadata(prefix, self.config, self.row)[0]
        metadata["general.quantization_version"] = u32(_QUANTIZATION_VERSION)
        return metadata

    def extra_tensors(self) -> dict[str, np.ndarray]:
        """Tensors that only GGUF has, float32 by GGUF name: the factors of a llama3 or longrope rotary scaling."""
        parameters = self.config.get("rope_parameters", {})
        if "longrope" in self.row.rope and parameters.get("rope_type") == "longrope":
            return {**longrope.tensors(parameters)}
        if "llama3" not in self.row.rope or parameters.get("rope_type") != "llama3":
            return {}
        return {"rope_freqs.weight": llama3.factors(parameters, self.config["head_dim"])}


def _rope_metadata(prefix: str, config: Config, row: Row) -> tuple[Metadata, list[Problem]]:
    """Keys of the rotary embedding, and what llama.cpp does not compute of it."""
    head_dim = int(config["head_dim"]) if row.partial_rotary else None
    parameters: dict[str, Any] = config["rope_parameters"]
    positions = int(config["max_position_embeddings"])
    return rope.to_metadata(prefix, parameters, row.rope, head_dim, yarn=row.yarn, positions=positions)


def _settle(
    problems: list[Problem], source: str, force: bool, tolerated: tuple[str, ...] = ()
) -> tuple[Problem, ...]:
    grave = [problem for problem in problems if problem.key not in tolerated]
    if grave and not force:
        first = grave[0]
        raise UnsupportedModelError(
            f"{source}: {first.key}",
            first.found,
            first.supported,
            f"--option ignore-unsupported=yes exports it anyway, but {first.reason}",
        )
    return tuple(problems)
