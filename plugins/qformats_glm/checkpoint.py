"""A folder of a ChatGLM repository as a checkpoint; none of its Python code is run."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from qformats import Checkpoint, PackedTensor, Packer, StoredTensor
from qformats.errors import CheckpointError, ConfigError, Described
from qformats.folder import FolderCheckpoint
from qformats.interfaces import ModuleFields, Values, dense, same_values
from qformats.work.files import refuse_link_out, refuse_pointer
from qformats_glm.family import GLM
from qformats_glm.generations import TOKENS, Generation, Weight, chatglm2_sizes, generation
from qformats_glm.native import INV_FREQ, native_config, to_native
from qformats_glm.packers import GLMPacker
from qformats_glm.tokenizers import completed

__all__ = ["ChatGLMCheckpoint", "outline"]

_CODE = ("modeling_*.py", "configuration_*.py", "tokenization_*.py", "quantization.py")
_OURS = ("quantization_bit", "quantization_embeddings")
"""What says how the folder is quantized, which the tensors themselves say here."""
_HEAD = "lm_head.weight"
_DTYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


class _FolderFamily(GLM):
    """Finds the format of each module of a ChatGLM folder, whose files do not tell the width of a code.

    Parameters
    ----------
    own : Generation
        Shapes of all weights.
    bits : int
        Width that config.json declares; 0 if none.
    """

    def __init__(self, own: Generation, bits: int) -> None:
        self._shapes = {weight.name: weight.shape for weight in own.weights}
        self._shapes |= dict.fromkeys(own.ignored, self._shapes[own.token_embedding])
        self._declared = bits

    def locate(self, packer: Packer, module: ModuleFields) -> tuple[Packer, tuple[int, int]] | None:
        """Width from the shape that the configuration tells, dtype of the scale as stored."""
        shape = self._shapes.get(f"{module.name}.weight", ())
        dims, dtype = module.stored.get("weight", ((), ""))
        if dtype != "i8" or len(shape) != 2 or len(dims) != 2:
            return super().locate(packer, module)
        rows, columns = shape
        for bits in (8, 4):
            if dims == (rows, columns * bits // 8) and columns * bits % 8 == 0:
                break
        else:
            expected = f"({rows}, {columns}) in int8 or ({rows}, {columns // 2}) in int4"
            raise ConfigError("weight", Described(f"i8 of shape {dims}"), f"{expected}, from config.json")
        if self._declared not in (0, bits):
            raise ConfigError(
                "weight", Described(f"int{bits}"), f"int{self._declared}, the quantization_bit of config.json"
            )
        return super().locate(GLMPacker(bits), module)


class ChatGLMCheckpoint(Checkpoint):
    """A model of a ChatGLM repository.

    `tensors` and `config` are those of Transformers' class ``glm`` for ChatGLM2, ChatGLM3 and GLM-4; ChatGLM-6B and
    GLM-130B, which the plugin has classes for, keep their own names.

    Parameters
    ----------
    path : Path
        The folder, or the config.json of a model that is not there.
    stored : mapping of str to StoredTensor
        Tensors under their own names.
    config : mapping
        config.json of the repository.
    folder : FolderCheckpoint, optional
        The folder's files; without it there are no weights.

    Attributes
    ----------
    stored : dict of str to StoredTensor
        Tensors under the names that they have on disk.
    stored_config : dict
        config.json as it is on disk.
    generation : Generation
        What the model consists of.
    """

    container = "chatglm"

    def __init__(
        self,
        path: Path,
        stored: Mapping[str, StoredTensor],
        config: Mapping[str, Any],
        folder: FolderCheckpoint | None = None,
    ) -> None:
        self.path, self.stored, self.stored_config = path, dict(stored), dict(config)
        self.generation = generation(config, path)
        self._folder = folder
        self._completed: dict[str, bytes] | None = None
        self.left_out: dict[str, str] = {}
        self.notes = folder.notes if folder else ()
        if self.generation.architecture == "glm":
            if INV_FREQ in self.stored:
                self.left_out[INV_FREQ] = "computed by Transformers' class"
            self._config = native_config(config, path)
            self.tensors = to_native(self.stored, chatglm2_sizes(config, path))
        else:
            plain = {name: value for name, value in config.items() if name not in _OURS}
            self._config = {"max_sequence_length": TOKENS} | plain
            self.tensors = self.stored
            # Whatever the configuration says: the model's code has no weight but these.
            self._config["tie_word_embeddings"] = _HEAD not in self.stored
        if folder is not None:
            for name in self.generation.ignored & folder.tensors.keys():
                why = "the same weight as the quantized embedding"
                self.left_out |= dict.fromkeys(folder.tensors[name].names, why)

    @classmethod
    def open(cls, path: Path, config: Mapping[str, Any]) -> ChatGLMCheckpoint:
        """Open a folder: headers only.

        Raises
        ------
        CheckpointError
            If a file is missing or broken, or the tensors are not those of the configuration.
        UnsupportedModelError
            If the model's generation is not known.
        """
        file = path / "config.json"
        own = generation(config, file)
        bits = _declared_bits(config, file)
        for vocabulary in sorted(path.glob("*.model")):
            # Weights that are pointers are refused when they are opened; a tokenizer would be copied as it is.
            if vocabulary.is_file():
                refuse_pointer(vocabulary)
        declares = config.get("quantization_config") is not None
        folder = FolderCheckpoint(
            path, None if declares else (_FolderFamily(own, bits), GLMPacker(bits or 8))
        )
        return cls(path, _checked(folder.tensors, own, folder.files), config, folder)

    @property
    def stored_names(self) -> Collection[str]:
        """Names in the folder's files."""
        return self.stored if self._folder is None else self._folder.stored_names

    @property
    def architecture(self) -> str:
        """``glm``, ``chatglm-6b`` or ``glm-130b``."""
        return self.generation.architecture

    @property
    def config(self) -> dict[str, Any]:
        """Configuration of Transformers' class ``glm``, or the model's own, which the plugin's class takes."""
        return self._config

    @property
    def files(self) -> list[Path]:
        """config.json, weights, tokenizer, and the repository's Python files, which are copied as data."""
        return [] if self._folder is None else [*self._folder.files, *self._code()]

    def tokenizer_files(self) -> dict[str, bytes]:
        """Tokenizer files, by name, with a tokenizer.json and a chat template in place of the repository's code."""
        if self._completed is None:
            files, code = self.stored_tokenizer_files(), self.code_files()
            self._completed = completed(files, self.stored_config, self.path, code)
        return dict(self._completed)

    def stored_tokenizer_files(self) -> dict[str, bytes]:
        """Tokenizer files as they are in the folder, by name."""
        return {} if self._folder is None else self._folder.tokenizer_files()

    def code_files(self) -> dict[str, bytes]:
        """Python files of the repository, by name."""
        return {file.name: file.read_bytes() for file in self._code()}

    def _code(self) -> list[Path]:
        found = [file for pattern in _CODE for file in sorted(self.path.glob(pattern)) if file.is_file()]
        for file in found:
            refuse_link_out(file, self.path)
        return found


def _declared_bits(config: Mapping[str, Any], file: Path) -> int:
    return Values(config, str(file)).integer("quantization_bit", 0, among=(0, 4, 8))


def _checked(
    found: Mapping[str, StoredTensor], own: Generation, files: list[Path]
) -> dict[str, StoredTensor]:
    """Tensors of a folder in the order of the model; all there, of the right shapes, and no others."""
    checked: dict[str, StoredTensor] = {}
    for weight in own.weights:
        tensor = found.get(weight.name)
        if tensor is None:
            if weight.optional:
                continue
            raise CheckpointError(files[0].parent, "is missing", "a complete model", tensor=weight.name)
        if tuple(tensor.shape) != weight.shape:
            found_shape = f"shape {tuple(tensor.shape)}"
            expected = f"{weight.shape}, from config.json"
            raise CheckpointError(tensor.file, found_shape, expected, tensor=weight.name)
        checked[weight.name] = tensor
    for name, tensor in found.items():
        if name in own.ignored:
            embedding = checked[own.token_embedding]
            if not same_values(tensor, embedding):
                told = f"differs from {embedding.name}, which the model's code uses in its place"
                raise CheckpointError(tensor.file, told, "a copy of it", tensor=name)
        elif name not in checked:
            hint = "it belongs to another model, or to an adapter, which must be merged first"
            raise CheckpointError(
                tensor.file, "is not known", "only tensors of the model", tensor=name, hint=hint
            )
    return checked


def outline(config: Mapping[str, Any], path: Path) -> ChatGLMCheckpoint:
    """Model of a configuration, without its weights; stored as the configuration says.

    Raises
    ------
    CheckpointError, UnsupportedModelError
        If the configuration does not describe such a model.
    """
    own = generation(config, path)
    bits = _declared_bits(config, path)
    dtype = _DTYPES.get(str(config.get("torch_dtype", config.get("dtype"))), "f16")
    stored = {weight.name: _empty(weight, bits, dtype, path) for weight in own.weights}
    return ChatGLMCheckpoint(path, stored, config)


def _empty(weight: Weight, bits: int, dtype: str, path: Path) -> StoredTensor:
    def load(start: int, stop: int) -> PackedTensor:
        raise CheckpointError(
            path, "has no weights, only a configuration", "a folder with weights", tensor=weight.name
        )

    if weight.linear and bits:
        packer = GLMPacker(bits)
        problem = packer.veto(weight.shape)
        if problem:
            raise CheckpointError(
                path, f"quantization_bit {bits}: {problem}", "even sizes", tensor=weight.name
            )
        return StoredTensor(weight.name, weight.shape, packer, packer.nbytes(weight.shape), path, load)
    plain = dense(weight.dtype or dtype)
    return StoredTensor(weight.name, weight.shape, plain, plain.nbytes(weight.shape), path, load)
