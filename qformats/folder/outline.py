"""A model of which only config.json is known: names and shapes from Transformers' own class, without any weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qformats.errors import CheckpointError, UnsupportedModelError
from qformats.folder.classes import embedding_class, new_model, runs
from qformats.folder.conv1d import is_conv1d
from qformats.folder.experts import matrix_shapes
from qformats.folder.shapes import MOST_TENSORS, known_shapes
from qformats.interfaces.checkpoint import Checkpoint
from qformats.interfaces.dense import dense
from qformats.interfaces.packer import PackedTensor
from qformats.interfaces.stored import StoredTensor
from qformats.numbers.dtypes import SIZES
from qformats.registry import registry

__all__ = ["Outline", "outline"]

_DTYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers")
_MOST_LAYERS = 4096
"""Each layer is built, if without memory: an absurd number must not take forever."""


class Outline(Checkpoint):
    """Names and shapes of a model; its weights cannot be read.

    Parameters
    ----------
    path : Path
        Where the configuration lies.
    config : mapping
        ``config.json``.
    shapes : mapping of str to tuple of int
        Shape of every tensor by canonical name.
    dtype : str
        Short name of their dtype.
    container : str
        Loader of such models.
    """

    def __init__(
        self,
        path: Path,
        config: Mapping[str, Any],
        shapes: Mapping[str, tuple[int, ...]],
        dtype: str,
        container: str = "huggingface",
    ) -> None:
        self.path = path
        self.name = path.parent.name if path.suffix == ".json" else path.name
        self.container = container
        self._config = dict(config)
        self.tensors = {name: self._tensor(name, shape, dtype) for name, shape in shapes.items()}

    def _tensor(self, name: str, shape: tuple[int, ...], dtype: str) -> StoredTensor:
        def load(start: int, stop: int) -> PackedTensor:
            raise CheckpointError(self.path, "has no weights", "a whole model", tensor=name)

        nbytes = math.prod(shape) * SIZES[dtype]
        return StoredTensor(name, shape, dense(dtype), nbytes, self.path, load)

    @property
    def architecture(self) -> str:
        """``model_type`` of the configuration."""
        return str(self._config.get("model_type", "unknown"))

    @property
    def config(self) -> dict[str, Any]:
        """The configuration."""
        return self._config

    def tokenizer_files(self) -> dict[str, bytes]:
        """None are known."""
        return {}

    @property
    def files(self) -> list[Path]:
        """The configuration."""
        return [self.path]


def outline(config: Mapping[str, Any], path: Path) -> Outline:
    """Names and shapes that Transformers' causal language model of this configuration has on disk.

    Raises
    ------
    UnsupportedModelError
        If Transformers has no such class.
    CheckpointError
        If the configuration describes no model.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise CheckpointError(path, f"model_type {model_type!r}", "a known model type, such as llama")
    for key in _LAYERS:
        layers = config.get(key, 1)
        if not isinstance(layers, int) or not 1 <= layers <= _MOST_LAYERS:
            expected = f"a whole number from 1 to {_MOST_LAYERS}"
            raise CheckpointError(path, f"{key} {layers!r}", expected)
    shapes = None if embedding_class(config) else known_shapes(config)
    if shapes is None:
        shapes = _told(config) or _built(config, path, model_type)
    named = config.get("dtype", config.get("torch_dtype")) or "float16"
    shapes = matrix_shapes(shapes, config)
    return Outline(path, config, shapes, _DTYPES.get(str(named), "f16"))


def _told(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]] | None:
    """What a container knows of a causal language model whose class is Transformers' own."""
    if not runs(config) or registry().model_for(config) is not None:
        return None
    found = (loader.shapes(config) for loader in registry().loaders())
    shapes = next((each for each in found if each is not None), None)
    return None if shapes is None else dict(shapes)


def _built(config: Mapping[str, Any], path: Path, model_type: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of Transformers' class, built without memory."""
    import torch

    from qformats.work.compat import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if not runs(config) and not embedding_class(config):
        known = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
        raise UnsupportedModelError("model_type", model_type, known)
    try:
        with torch.device("meta"):
            model = new_model(config)
            stored = _saved(model)
    except Exception as error:
        # Each model class has its own ways of being wrong.
        found = f"does not describe a model ({type(error).__name__}: {' '.join(str(error).split())[:160]})"
        raise CheckpointError(path, found, f"the configuration of a {model_type} model") from error
    return {name: _canonical(name, tuple(tensor.shape), model_type) for name, tensor in stored.items()}


def _saved(model: Any) -> dict[str, Any]:
    """Tensors under their names in files: in memory experts are stacked, and some modules have other names."""
    from qformats.work.compat import revert_weight_conversion

    experts = sum(each.shape[0] for each in model.parameters() if each.ndim == 3)
    if experts > MOST_TENSORS:
        raise ValueError(f"{experts} experts")
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    held = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    found: dict[str, Any] = revert_weight_conversion(model, held)
    return found


def _canonical(name: str, shape: tuple[int, ...], model_type: str) -> tuple[int, ...]:
    """``(out_features, in_features)`` of matrices that a class holds the other way round."""
    return shape[::-1] if len(shape) == 2 and is_conv1d(model_type, name) else shape
