"""A LoRA adapter as PEFT saves it: a folder with adapter_config.json, put on a model without weights."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qformats.errors import BackendUnavailableError, CheckpointError, Described, QFormatsError
from qformats.folder.adapter import CONFIG, require_adapter, weights_file
from qformats.folder.shards import BinShard, SafetensorsShard
from qformats.runtime.adapters import refuse_changed_base
from qformats.runtime.build import bare_model
from qformats.runtime.names import tied_names

if TYPE_CHECKING:
    from torch import Tensor

    from qformats.interfaces import Checkpoint

__all__ = ["open_adapter"]

_SHOWN = 3
_REPLICAS = "layer_replication"
_WRAPPED = "base_model.model."


def open_adapter(path: Path, base: Checkpoint) -> Any:
    """Read an adapter, for :func:`~qformats.runtime.adapters.updates_of`.

    PEFT itself decides which layers are meant and how they are scaled. The base's weights are not needed for that: they
    are placeholders that take no memory.

    Parameters
    ----------
    path : Path
        Folder of the adapter.
    base : Checkpoint
        The model that it was trained on.

    Returns
    -------
    peft.PeftModel
        With the adapter's own weights. It cannot be run.

    Raises
    ------
    CheckpointError
        If the folder holds no adapter, or one that does not fit the base.
    BackendUnavailableError
        If PEFT is not installed.
    """
    import torch

    try:
        import peft
        from peft.utils import set_peft_model_state_dict
    except ImportError as error:
        hint = "install it (pip install 'qformats[peft]')"
        raise BackendUnavailableError("peft", "is not installed", hint) from error
    told = require_adapter(path)
    if told.get(_REPLICAS):
        found = f"{_REPLICAS}, which repeats layers of the base"
        raise CheckpointError(path / CONFIG, found, "an adapter on the base's own layers")
    model = bare_model(base, torch.float32, "merge an adapter into")
    weights = _weights(path)
    _refuse_tied(path, weights, base, tied_names(model))
    updates = _updates(path, weights, base)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            # Not on the meta device: PEFT moves what it loads to where the base is.
            stand_in = torch.zeros((), dtype=torch.float32).expand(parameter.shape)
            module.register_parameter(name, torch.nn.Parameter(stand_in, requires_grad=False))
    try:
        with warnings.catch_warnings():
            # About paths and settings of the training run.
            warnings.simplefilter("ignore")
            config = peft.PeftConfig.from_pretrained(str(path), local_files_only=True)
            config.inference_mode = True
            # Whole modules are refused above unless they are copies of the base's.
            config.modules_to_save = None
            refuse_changed_base(path.name, config)
            adapted = peft.get_peft_model(model, config)
            result: Any = set_peft_model_state_dict(adapted, updates)
    except QFormatsError:
        raise
    except Exception as error:
        # PEFT's ways of being unhappy with a folder are many, and none is an error class of its own.
        found = f"cannot be put on {base.path} ({type(error).__name__}: {' '.join(str(error).split())[:300]})"
        raise CheckpointError(path, found, "an adapter that was trained on this model") from error
    missing = [key for key in result.missing_keys if ".lora_" in key]
    for kind, keys in (("lacks", missing), ("holds unknown", result.unexpected_keys)):
        if keys:
            more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
            found = f"{kind} {', '.join(keys[:_SHOWN])}{more}"
            raise CheckpointError(path, found, f"the tensors that {CONFIG} implies on {base.path}")
    return adapted


def _weights(path: Path) -> dict[str, Tensor]:
    """Tensors of the adapter's file: the one that PEFT would read."""
    found = weights_file(path)
    shard = SafetensorsShard(found) if found.suffix == ".safetensors" else BinShard(found)
    return {name: shard.tensor(name) for name, _, _ in shard.entries()}


def _refuse_tied(path: Path, weights: Iterable[str], base: Checkpoint, tied: Mapping[str, str]) -> None:
    """Refuse an adapter on one of two layers that share a weight in the base: merging would change both."""
    for key in weights:
        module, lora, _ = key.removeprefix(_WRAPPED).partition(".lora_")
        name = f"{module}.weight" if lora else ""
        other = tied.get(name) or next((t for t, home in tied.items() if home == name), None)
        if other is not None and not {name, other} <= base.tensors.keys():
            raise CheckpointError(
                path,
                f"an adapter on {name}, which {base.path} ties to {other}: the two are one weight, and merging "
                "would change both",
                "an adapter that leaves tied layers alone, or a base that stores both of them",
                hint="untie them in Transformers (tie_word_embeddings=False) and merge there with PEFT",
            )


def _updates(path: Path, weights: dict[str, Tensor], base: Checkpoint) -> dict[str, Tensor]:
    """The adapter's tensors without copies of the base's; a whole weight that is not a copy is refused."""
    import torch

    kept = {}
    for key, value in weights.items():
        if ".lora_" in key:
            kept[key] = value
            continue
        name = key.removeprefix(_WRAPPED).replace(".base_layer.", ".")
        stored = base.tensors.get(name)
        shape = None if stored is None else tuple(stored.shape)
        if (
            stored is None
            or shape != tuple(value.shape)
            or not torch.equal(stored.dequantize().to(value.dtype), value)
        ):
            found = Described(f"a whole {name} of shape {tuple(value.shape)}, which differs from the base's")
            expected = "LoRA, since whole tensors (trained modules, a larger vocabulary) are not merged"
            raise CheckpointError(path, found, expected, hint="merge it with PEFT into the unquantized model")
    return kept
