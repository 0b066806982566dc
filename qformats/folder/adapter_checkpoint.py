"""The folder of an adapter, opened to be written in another container."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qformats.folder.adapter import CONFIG, require_adapter, weights_file
from qformats.folder.plain import plain_tensor
from qformats.folder.resolve import has_weights
from qformats.folder.shards import BinShard, SafetensorsShard
from qformats.interfaces.checkpoint import Checkpoint

__all__ = ["AdapterCheckpoint", "holds_adapter"]


def holds_adapter(path: Path) -> bool:
    """Whether a path is the folder of an adapter, and not that of a model too."""
    return path.is_dir() and (path / CONFIG).is_file() and not has_weights(path)


class AdapterCheckpoint(Checkpoint):
    """What PEFT saves of an adapter: tensors under PEFT's names, and adapter_config.json.

    Only containers that hold adapters are made of it; see :attr:`qformats.Loader.takes_adapters`.

    Raises
    ------
    CheckpointError
        If there is no adapter in the folder, or a file is missing, truncated or corrupt.

    Examples
    --------
    >>> import json, tempfile, torch
    >>> from pathlib import Path
    >>> from safetensors.torch import save_file
    >>> from qformats.folder import AdapterCheckpoint
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     told = Path(folder, "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2}))
    ...     save_file({"a.lora_A.weight": torch.ones(2, 8)}, Path(folder, "adapter_model.safetensors"))
    ...     AdapterCheckpoint(Path(folder)).architecture
    'lora'
    """

    container = "huggingface"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._config = require_adapter(path)
        file = weights_file(path)
        shard = SafetensorsShard(file) if file.suffix == ".safetensors" else BinShard(file)
        self._file = file
        self.tensors = {
            name: plain_tensor(name, shape, dtype, shard, order)
            for order, (name, shape, dtype) in enumerate(shard.entries())
        }

    @property
    def architecture(self) -> str:
        """``peft_type`` of adapter_config.json, in lower case."""
        return str(self._config.get("peft_type") or "peft").lower()

    @property
    def config(self) -> dict[str, Any]:
        """adapter_config.json."""
        return self._config

    @property
    def files(self) -> list[Path]:
        """adapter_config.json and the weights."""
        return [self.path / CONFIG, self._file]

    def tokenizer_files(self) -> dict[str, bytes]:
        """None: the base has them."""
        return {}
