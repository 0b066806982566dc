"""What a comparison found: plain data, for programs, tables and pages."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from qformats.comparing.estimate import Estimate
from qformats.comparing.task_report import Finding, TaskChange, TaskResult, TaskUsed
from qformats.errors import ConfigError, Described
from qformats.numbers.error import percent, relative_error
from qformats.work.shown import Shown, nbytes

__all__ = [
    "BehaviourChange",
    "BehaviourResult",
    "CompareReport",
    "Estimate",
    "Finding",
    "Histogram",
    "IdenticalTensors",
    "KLDivergence",
    "ModelResult",
    "Percentiles",
    "ProbabilityChange",
    "SpeedResult",
    "TaskChange",
    "TaskResult",
    "TaskUsed",
    "TensorError",
    "TextUsed",
    "TokenChance",
    "TokenChange",
    "WeightError",
    "WeightsResult",
    "WindowChange",
]


@dataclass(frozen=True)
class WeightError:
    """How far weights lie from the base's.

    Attributes
    ----------
    count : int
        Weights compared.
    max_error : float
        Largest absolute difference; weight units.
    rmse : float
        Root of the mean squared difference; weight units.
    base_rms : float
        Root of the mean square of the base's weights; weight units.
    cosine : float
        Cosine of the angle between the two, as vectors; 1 if both are zero, 0 if one is.
    """

    count: int
    max_error: float
    rmse: float
    base_rms: float
    cosine: float

    @property
    def relative_rmse(self) -> float:
        """The relative error: `rmse` over `base_rms`; see :func:`qformats.numbers.error.relative_error`."""
        return relative_error(self.rmse**2, self.base_rms**2)

    @property
    def sqnr_db(self) -> float:
        """Signal to quantization noise, dB: ``-20 log10(relative_rmse)``; infinite for equal weights."""
        if self.relative_rmse == 0:
            return math.inf
        return -20 * math.log10(self.relative_rmse)


@dataclass(frozen=True)
class TensorError:
    """One tensor of a model against the base's.

    Attributes
    ----------
    name : str
        Canonical name.
    layer : int or None
        Number of the block it belongs to, if it belongs to one.
    kind : str
        What it is within its block, such as ``self_attn.q_proj``; experts of one layer share a kind.
    shape : tuple of int
        ``(N, K)`` of the weight, or ``(N,)``.
    format : str
        ``family:variant`` of the stored bytes.
    nbytes : int
        Stored bytes.
    bits_per_weight : float
        Stored bits per weight.
    quantized : bool
        Whether the format is one that quantizes; plain numbers are not.
    error : WeightError
        Against the base.
    identical : bool
        Whether format and stored bytes are the base's.
    """

    name: str
    layer: int | None
    kind: str
    shape: tuple[int, ...]
    format: str
    nbytes: int
    bits_per_weight: float
    quantized: bool
    error: WeightError
    identical: bool


@dataclass(frozen=True, repr=False)
class WeightsResult(Shown):
    """The weights of a model against the base's.

    Attributes
    ----------
    total : WeightError
        Over all tensors that both models have in one shape; NaN, like `linears`, if one of them is not finite.
    linears : WeightError
        Over the quantized matrices of the blocks: without the embedding and the output layer, which some formats
        leave alone.
    linear_nbytes, linear_parameters : int
        Stored bytes and number of weights of the tensors in `linears`.
    by_tensor : tuple of TensorError
        In the base's order.
    """

    total: WeightError
    linears: WeightError
    linear_nbytes: int
    linear_parameters: int
    by_tensor: tuple[TensorError, ...]

    def _shown_facts(self) -> dict[str, str]:
        return {
            "tensors": f"{len(self.by_tensor):,} tensors",
            "error": f"error {percent(self.total.relative_rmse)}",
            "blocks": f"of blocks {percent(self.linears.relative_rmse)}" if self.linear_parameters else "",
        }

    @property
    def linear_bits_per_weight(self) -> float:
        """Mean stored bits per weight of the tensors in `linears`; 0 if there are none."""
        return self.linear_nbytes * 8 / max(1, self.linear_parameters)


@dataclass(frozen=True)
class Percentiles:
    """Distribution over scored tokens, interpolated linearly between the two nearest; ``p99_9`` is 99.9 %."""

    min: float
    p0_1: float
    p1: float
    p5: float
    p10: float
    p25: float
    median: float
    p75: float
    p90: float
    p95: float
    p99: float
    p99_9: float
    max: float


@dataclass(frozen=True)
class KLDivergence:
    """Kullback-Leibler divergence of the model's next-token distribution from the base's, nats per token.

    Attributes
    ----------
    mean : Estimate
        Over all scored tokens.
    percentiles : Percentiles
        Over all scored tokens.
    """

    mean: Estimate
    percentiles: Percentiles


@dataclass(frozen=True)
class ProbabilityChange:
    """Probability of the actual next token, the model's minus the base's; from -1 to 1.

    Attributes
    ----------
    mean, rms : Estimate
        Mean, and root of the mean square.
    percentiles : Percentiles
        Over all scored tokens.
    """

    mean: Estimate
    rms: Estimate
    percentiles: Percentiles


@dataclass(frozen=True)
class Histogram:
    """How many tokens lie between two values.

    Attributes
    ----------
    edges : tuple of float
        Ascending, evenly spaced in the logarithm; one more than there are counts.
    counts : tuple of int
        Tokens in ``[edges[i], edges[i + 1])``; the first takes all that lie below it, the last all above.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class TokenChance:
    """A token that a model thinks may be next."""

    text: str
    probability: float


@dataclass(frozen=True)
class TokenChange:
    """One position where the model expects something else than the base.

    Attributes
    ----------
    window, position : int
        Window of the text, and index in it of the token that is predicted.
    before : str
        Text before it, at most 200 characters.
    token : str
        The actual next token.
    kl : float
        Kullback-Leibler divergence here, nats.
    p_base, p_model : float
        Probability of `token`.
    top_base, top_model : tuple of TokenChance
        The most probable tokens, at most five, most probable first.
    """

    window: int
    position: int
    before: str
    token: str
    kl: float
    p_base: float
    p_model: float
    top_base: tuple[TokenChance, ...]
    top_model: tuple[TokenChance, ...]


@dataclass(frozen=True)
class WindowChange:
    """Means over the scored tokens of one window, nats per token.

    Attributes
    ----------
    kl : float
        Divergence of the model from the base.
    log_ratio : float
        By how much more the model loses on the actual tokens than the base does.
    """

    kl: float
    log_ratio: float


@dataclass(frozen=True, repr=False)
class BehaviourChange(Shown):
    """What a model predicts, against what the base predicts at the same positions.

    Attributes
    ----------
    perplexity_difference, perplexity_ratio : Estimate
        The model's minus the base's, and the model's over the base's.
    log_ratio : Estimate
        Logarithm of the ratio, nats per token.
    correlation : float
        Of the two models' log-likelihoods, -1 to 1.
    kl : KLDivergence
        Nats per token.
    probability : ProbabilityChange
        Of the actual next token.
    same_top : Estimate
        Share of positions where both models have the same most probable token, 0 to 1.
    kl_histogram : Histogram
        Of the divergence, nats.
    worst : tuple of TokenChange
        Positions of the largest divergence, largest first.
    windows : tuple of WindowChange
        What a verdict is based on: windows are independent of each other, tokens are not.
    """

    perplexity_difference: Estimate
    perplexity_ratio: Estimate
    log_ratio: Estimate
    correlation: float
    kl: KLDivergence
    probability: ProbabilityChange
    same_top: Estimate
    kl_histogram: Histogram
    worst: tuple[TokenChange, ...]
    windows: tuple[WindowChange, ...]

    def _shown_facts(self) -> dict[str, str]:
        return {
            "ratio": f"perplexity over the base's {self.perplexity_ratio.value:.4f}",
            "kl": f"mean KL {self.kl.mean.value:.3g}",
            "same": f"same top {self.same_top.value:.1%}",
        }


@dataclass(frozen=True, repr=False)
class BehaviourResult(Shown):
    """What a model predicts for the text.

    Attributes
    ----------
    tokens : int
        Scored tokens.
    perplexity : Estimate
        ``exp`` of the mean negative log-likelihood of the scored tokens.
    against : BehaviourChange or None
        Against the base; ``None`` for the base itself, and for a model of another vocabulary.
    """

    tokens: int
    perplexity: Estimate
    against: BehaviourChange | None

    def _shown_facts(self) -> dict[str, str]:
        found = {"perplexity": f"perplexity {self.perplexity.value:.2f}", "tokens": f"{self.tokens:,} tokens"}
        return found | (self.against._shown_facts() if self.against else {})


@dataclass(frozen=True)
class SpeedResult:
    """Speed and memory on this machine.

    Attributes
    ----------
    device : str
        ``cpu``, or the GPU's number and name.
    load_seconds : float
        From opening the files until the model can run.
    tokens_per_second : float
        Generated tokens, one sequence at a time.
    prompt_tokens_per_second : float
        Tokens of a prompt that is read in one go.
    peak_bytes : int
        Most memory that loading and running the model took, beyond what the process had before; on a GPU, of the GPU.
    bytes_per_token : int
        Weights that are read to generate a token, as they are stored.
    copied_per_second : float
        Bytes that the device copies in a second, read and written.
    """

    device: str
    load_seconds: float
    tokens_per_second: float
    prompt_tokens_per_second: float
    peak_bytes: int
    bytes_per_token: int = 0
    copied_per_second: float = 0.0

    @property
    def most_tokens_per_second(self) -> float | None:
        """What reading the weights alone allows, at the speed of a copy; None if that was not measured."""
        return self.copied_per_second / self.bytes_per_token if self.bytes_per_token else None


@dataclass(frozen=True, repr=False)
class ModelResult(Shown):
    """One model of the comparison.

    Attributes
    ----------
    name : str
        Short, and unlike every other name in the report.
    path : str
        What was opened; of a tried format, what it was made from.
    format : str
        ``family:variant`` of nine tenths of the blocks' quantized weights (of a plain model: of all weights), or
        ``"family:mixed"`` where only the family has so many, and ``"mixed"`` where there are several.
    formats : mapping of str to int
        How many weights each format holds, most first.
    container : str
        Loader that opened it; of a tried format, the one that would write it.
    tried : bool
        Whether it was quantized on the fly and lies in no file.
    quantizer : str
        How a tried format's codes were chosen; empty for models in files, which do not tell.
    nbytes : int
        Stored bytes of all tensors.
    parameters : int
        Number of weights.
    bits_per_weight : float
        Mean stored bits per weight.
    weights : WeightsResult or None
        Against the base; ``None`` for the base, and for a model that shares no tensor with it.
    behaviour : BehaviourResult or None
        ``None`` without a text, and where the model cannot be run.
    speed : SpeedResult or None
        ``None`` if not asked for, and where the model cannot be run.
    notes : tuple of str
        Notes about these numbers, in sentences.
    tasks : mapping of str to TaskResult
        By name of the task; those that the model could be run on.
    """

    name: str
    path: str
    format: str
    formats: Mapping[str, int]
    container: str
    tried: bool
    quantizer: str
    nbytes: int
    parameters: int
    bits_per_weight: float
    weights: WeightsResult | None = None
    behaviour: BehaviourResult | None = None
    speed: SpeedResult | None = None
    notes: tuple[str, ...] = ()
    tasks: Mapping[str, TaskResult] = field(default_factory=dict)

    def _shown_facts(self) -> dict[str, str]:
        return {
            "name": self.name,
            "format": self.format if self.format != self.name else "",
            "bytes": nbytes(self.nbytes),
            "bits": f"{self.bits_per_weight:.4g} bits per weight",
            "error": f"error {percent(self.weights.total.relative_rmse)}" if self.weights else "",
            **(self.behaviour._shown_facts() if self.behaviour else {}),
        }


@dataclass(frozen=True)
class IdenticalTensors:
    """Tensors that two models have in common.

    Attributes
    ----------
    first, second : str
        Names of the two models.
    common : int
        Tensors that both have under one name and in one shape.
    same_bytes : tuple of str
        Those with one format and the same stored bytes.
    same_values : tuple of str
        Those with other bytes that mean the same numbers.
    """

    first: str
    second: str
    common: int
    same_bytes: tuple[str, ...]
    same_values: tuple[str, ...]


@dataclass(frozen=True)
class TextUsed:
    """The text that behaviour was measured on.

    Attributes
    ----------
    source : str
        File it came from.
    characters : int
        Length of the whole text.
    tokens : int
        Tokens of the windows, which the base's tokenizer makes.
    windows, window_length : int
        Whole windows, and tokens of each. What is left at the end is not used.
    scored : int
        Tokens that are scored: the second half of every window, whose tokens have enough before them.
    """

    source: str
    characters: int
    tokens: int
    windows: int
    window_length: int
    scored: int


@dataclass(frozen=True, repr=False)
class CompareReport(Shown):
    """A model in many formats, side by side.

    Attributes
    ----------
    base : ModelResult
        The model that all others are measured against.
    models : tuple of ModelResult
        The others, in the order in which they were named; tried formats last.
    text : TextUsed or None
        ``None`` if only weights were compared.
    machine : mapping of str to str
        ``cpu``, ``threads``, ``gpu`` (empty if there is none), ``system``, ``python``, ``torch``.
    identical : tuple of IdenticalTensors
        For every two models that share a tensor, the base included.
    notes : tuple of str
        Notes about the comparison, in sentences.
    version : str
        Of qformats.
    tasks : tuple of TaskUsed
        Tasks, with their texts.
    """

    base: ModelResult
    models: tuple[ModelResult, ...]
    text: TextUsed | None = None
    machine: Mapping[str, str] = field(default_factory=dict)
    identical: tuple[IdenticalTensors, ...] = ()
    notes: tuple[str, ...] = ()
    version: str = ""
    tasks: tuple[TaskUsed, ...] = ()

    def _shown_facts(self) -> dict[str, str]:
        return {
            "base": self.base.name,
            "models": "against " + (", ".join(model.name for model in self.models) or "nothing"),
            "text": f"{self.text.scored:,} scored tokens" if self.text else "weights only",
        }

    def _shown_rows(self) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = [("model", "bytes", "bits", "error", "perplexity", "mean KL")]
        for model in (self.base, *self.models):
            behaviour = model.behaviour
            against = behaviour.against if behaviour else None
            rows.append(
                (
                    model.name,
                    f"{model.nbytes:,}",
                    f"{model.bits_per_weight:.2f}",
                    percent(model.weights.total.relative_rmse) if model.weights else "",
                    f"{behaviour.perplexity.value:.2f}" if behaviour else "",
                    f"{against.kl.mean.value:.3g}" if against else "",
                )
            )
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; infinite and undefined numbers are ``None``."""
        plain = _plain(self)
        assert isinstance(plain, dict)
        return plain

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CompareReport:
        """The report that :meth:`to_dict` gave as plain data.

        Raises
        ------
        ConfigError
            If something is missing in it.
        """
        try:
            report = _typed(cls, data)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(
                "report", Described(error), "the data of a whole report, as compare writes it"
            ) from error
        assert isinstance(report, cls)
        return report

    def to_json(self) -> str:
        """All numbers as one JSON object."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def to_csv(self) -> str:
        """One line per model, the base first; names of columns are paths such as ``behaviour.against.kl.mean.value``.

        What a model has many of (tensors, tokens, notes) is in the JSON only; what is not known is empty.
        """
        rows = [
            {_cell(name): _cell(value) for name, value in _columns(_plain(model))}
            for model in (self.base, *self.models)
        ]
        # A model without behaviour has fewer columns than one with.
        names = list(dict.fromkeys(name for row in rows for name in row))
        out = io.StringIO()
        writer = csv.DictWriter(out, names, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return out.getvalue()


def _cell(value: Any) -> Any:
    """The value; text that a spreadsheet would take for a formula begins with an apostrophe, which it does not show."""
    if not isinstance(value, str):
        return value
    # The csv module does not quote a carriage return, at which readers begin a new line.
    text = value.replace("\r", "\\r")
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t")) else text


def _plain(value: Any) -> Any:
    """Data without classes: attributes and properties of dataclasses by name."""
    if dataclasses.is_dataclass(value):
        names = [each.name for each in dataclasses.fields(value)]
        names += [name for name, found in vars(type(value)).items() if isinstance(found, property)]
        return {name: _plain(getattr(value, name)) for name in names}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.value if isinstance(value, Enum) else value


def _typed(kind: Any, value: Any) -> Any:
    """The value of a type hint that :func:`_plain` turned into `value`."""
    if isinstance(kind, types.UnionType):
        options = [option for option in typing.get_args(kind) if option is not types.NoneType]
        return None if value is None else _typed(options[0], value)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        # Properties follow from the attributes; reports of older versions lack the newest ones.
        known = [each.name for each in dataclasses.fields(kind) if each.name in value]
        found = {name: _typed(hints[name], value[name]) for name in known}
        return kind(**found)  # type: ignore[operator]
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind(value)
    if typing.get_origin(kind) is Mapping and value:
        of = typing.get_args(kind)[1]
        return {name: _typed(of, item) for name, item in value.items()}
    if typing.get_origin(kind) is tuple:
        return tuple(_typed(typing.get_args(kind)[0], item) for item in value)
    if kind is float and value is None:
        return math.inf
    return value


def _columns(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in data.items():
        path = f"{prefix}{name}"
        if path == "formats":
            yield path, " ".join(f"{format}={count}" for format, count in value.items())
        elif isinstance(value, Mapping):
            yield from _columns(value, f"{path}.")
        elif value is not None and not isinstance(value, list):
            yield path, value
