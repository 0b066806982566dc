"""Settings of a calibration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from qformats.errors import ConfigError
from qformats.interfaces.option import Option, number, size

__all__ = ["OPTIONS", "Settings"]


OPTIONS = (
    Option(
        "calibration",
        "text file, .jsonl file or hub data set to calibrate on (default: a public-domain text)",
        flag=True,
        metavar="FILE",
        file=True,
    ),
    Option("samples", "number of pieces of text (128)", flag=True, metavar="N"),
    Option(
        "sequence-length",
        "tokens per piece (as many as the model takes, at most 2048)",
        flag=True,
        metavar="N",
    ),
    Option("seed", "decides which pieces of the text are taken (0)"),
    Option(
        "device",
        "where to compute: cpu, cuda, cuda:1, ... (calibration: a GPU if there is one; rtn: cpu)",
        flag=True,
        metavar="DEVICE",
    ),
    Option(
        "compute-dtype",
        "dtype that the model runs in: f32, f16 or bf16 (its own, if the device is fast with it)",
    ),
    Option(
        "activation-memory",
        "how much of the hidden states to keep in memory rather than on disk, such as 4GB (2GB)",
        decides=False,
    ),
    Option(
        "log",
        "file for the loss, damping and time of every layer, as JSON lines",
        decides=False,
        flag=True,
        metavar="FILE",
    ),
)
"""Options of every quantizer that calibrates."""


@dataclass(frozen=True)
class Settings:
    """Options of a calibration, checked.

    Attributes
    ----------
    calibration : str
        File or data set; empty for the text that comes with the package.
    samples, sequence_length : int
        Pieces of text and tokens of each; 0 tokens for as many as the model takes.
    seed : int
        Which pieces are taken.
    device : str
        As torch spells it; empty for a GPU if there is one. Several, with commas between them, share the work.
    compute_dtype : str
        ``"f32"``, ``"f16"``, ``"bf16"``; empty for the model's own where the device is fast with it.
    activation_memory : int
        Bytes of hidden states that are kept in memory.
    log : Path or None
        File for one line of JSON per layer.

    Examples
    --------
    >>> from qformats.calibration import Settings
    >>> settings = Settings.parse({"samples": "16", "activation-memory": "1GB"})
    >>> settings.samples, settings.activation_memory
    (16, 1000000000)
    """

    calibration: str = ""
    samples: int = 128
    sequence_length: int = 0
    seed: int = 0
    device: str = ""
    compute_dtype: str = ""
    activation_memory: int = 2 * 10**9
    log: Path | None = None

    @classmethod
    def parse(cls, options: Mapping[str, str]) -> Settings:
        """Read options as users write them; other options are ignored.

        Raises
        ------
        ConfigError
            If a value is not possible.
        """
        dtype = options.get("compute-dtype", "")
        if dtype not in ("", "f32", "f16", "bf16"):
            raise ConfigError("compute-dtype", dtype, "f32, f16 or bf16")
        log = options.get("log")
        return cls(
            calibration=options.get("calibration", ""),
            samples=number(options, "samples", 128, 1, 1 << 20),
            sequence_length=number(options, "sequence-length", 0, 2, 1 << 20),
            seed=number(options, "seed", 0, 0, (1 << 63) - 1),
            device=options.get("device", ""),
            compute_dtype=dtype,
            activation_memory=size(options, "activation-memory", "2GB", low=0),
            log=Path(log).expanduser() if log else None,
        )

    @property
    def devices(self) -> tuple[str, ...]:
        """Where to compute; a process runs on each."""
        return tuple(each.strip() for each in self.device.split(","))

    @property
    def identity(self) -> dict[str, str]:
        """What decides the result."""
        without = [option.name.replace("-", "_") for option in OPTIONS if not option.decides]
        return {f.name: str(getattr(self, f.name)) for f in fields(self) if f.name not in without}
