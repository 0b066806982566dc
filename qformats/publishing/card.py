"""The model card of a publisher's run, as the hub shows it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from qformats.exporting import ExportReport, Plan
from qformats.exporting.report import needs_us, run_command
from qformats.publishing.report import Published, PublishReport
from qformats.registry import registry
from qformats.version import __version__
from qformats.work.shown import size

if TYPE_CHECKING:
    from qformats.comparing.report import Estimate

__all__ = ["Card", "card_text", "divergence"]

_CARRIED = ("license", "license_name", "license_link", "language", "pipeline_tag", "library_name")
_LONGEST = 200
"""Characters of a value that is carried over: whatever stands in the source's card stays small."""
_MOST = 100
"""Values of a list that are carried over."""
_SHOWN = 6
"""Tensors of an output that were left out, and are named."""
_TINY = 1e-4
"""Divergences below it are written with an exponent, as ``qformats compare`` writes them."""
_MARKUP = re.compile(r"([\\|\[\]<>`*])")
_CAUSAL = "ForCausalLM"
_HUB = "https://huggingface.co"


@dataclass(frozen=True)
class Card:
    """What is known of a model for its card.

    Attributes
    ----------
    source : mapping
        Front matter of the source's own card.
    base_model : str
        Id on the hub; empty if it is not known.
    config : mapping
        The model's configuration.
    notes : tuple of str
        What is missing: a sentence each, without the full stop.
    """

    source: Mapping[str, Any]
    base_model: str
    config: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def license(self) -> Any:
        """The source's, from its card or else its configuration."""
        return _carried(self.source.get("license")) or _carried(self.config.get("license"))

    def front_matter(self, families: Sequence[str], folders: bool) -> dict[str, Any]:
        """What the hub reads of the new card.

        Parameters
        ----------
        families : sequence of str
            Of the formats, for the tags.
        folders : bool
            Whether any output is a Hugging Face folder.
        """
        found: dict[str, Any] = {"base_model": self.base_model} if self.base_model else {}
        found["base_model_relation"] = "quantized"
        carried = {name: _carried(self.source.get(name)) for name in _CARRIED}
        carried["license"] = self.license
        link = carried["license_link"]
        if isinstance(link, str) and self.base_model and not re.match(r"[a-z]+:", link):
            # It means a file of the base model's repository.
            carried["license_link"] = f"{_HUB}/{self.base_model}/blob/main/{link.lstrip('./')}"
        classes = self.config.get("architectures")
        causal = isinstance(classes, list) and any(str(name).endswith(_CAUSAL) for name in classes)
        if causal and not carried["pipeline_tag"]:
            carried["pipeline_tag"] = "text-generation"
        if folders and not carried["library_name"]:
            carried["library_name"] = "transformers"
        found |= {name: value for name, value in carried.items() if value}
        tags = _carried(self.source.get("tags")) or []
        tags = [tags] if isinstance(tags, str) else tags
        found["tags"] = list(dict.fromkeys([*tags, *families, "quantized"]))
        return found


def card_text(report: PublishReport, card: Card, plans: Sequence[Plan]) -> str:
    """The card: front matter for the hub, then a table of the files, how to run them, and what they were made from.

    Parameters
    ----------
    report : PublishReport
        What was written, and measured.
    card : Card
        What is known of the model.
    plans : sequence of Plan
        Of the outputs, in their order.
    """
    import yaml

    formats = [registry().packer(plan.recipe.format) for plan in plans]
    # Plain numbers in a folder are what every model of Transformers is.
    tags = [
        packer.family
        for packer, plan in zip(formats, plans, strict=True)
        if packer.quantizes or not plan.layout.folder
    ]
    front = card.front_matter(tags, any(plan.layout.folder for plan in plans))
    base = card.base_model
    of = f"[{_plain(base)}]({_HUB}/{quote(base)})" if base else f"**{_plain(report.name)}**"
    first = report.outputs[0].report
    bits = first.source_nbytes * 8 / max(1, first.parameters)
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n",
        f"# {_plain(report.name)}, quantized\n",
        f"{of} ({first.parameters:,} weights, {_plain(first.architecture)}, {bits:.4g} bits per weight) in "
        f"{len(report.outputs)} format{'s' if len(report.outputs) > 1 else ''}, written by qformats {__version__}.\n",
        _table(report),
        *_explained(report),
        "## Run\n",
        *(_run(output, plan) for output, plan in zip(report.outputs, plans, strict=True)),
        "## How it was made\n",
        *(_made(output) for output in report.outputs),
        "",
        "## Check the download\n",
        f"```sh\nsha256sum -c {report.checksums}\n```",
    ]
    return "\n".join(parts) + "\n"


def divergence(found: Estimate | None) -> str:
    """A mean divergence and its standard error, as ``qformats compare`` writes it.

    Examples
    --------
    >>> from qformats.comparing.report import Estimate
    >>> from qformats.publishing.card import divergence
    >>> divergence(Estimate(0.016171, 0.00036)), divergence(Estimate(7.46e-05, 1.6e-06)), divergence(None)
    ('0.01617 ±0.00036', '7.5e-05 ±1.6e-06', '-')
    """
    if found is None:
        return "-"
    how = ".5f" if abs(found.value) >= _TINY else ".1e"
    error = f" ±{found.error:{how}}" if found.error == found.error else ""
    return f"{found.value:{how}}{error}"


def _table(report: PublishReport) -> str:
    measured = report.text is not None
    heads = [
        "File",
        "Format",
        "Bits per weight",
        "Size",
        *(["Mean KL", "Same top token"] if measured else []),
    ]
    rows = [heads, ["---", "---", *["---:"] * (len(heads) - 2)]]
    for output in report.outputs:
        made = output.report
        name = output.name if len(made.files) == 1 else f"{output.name} ({len(made.files)} files)"
        where = _where(output)
        cells = [
            f"[{_plain(name)}]({quote(where)})",
            f"`{made.format}`",
            f"{made.bits_per_weight:.2f}",
            f"{size(made.file_nbytes)} ({made.file_nbytes:,} bytes)",
        ]
        if measured:
            same = "-" if output.same_top is None else f"{output.same_top.value:.1%}"
            cells += [divergence(output.mean_kl), same]
        rows.append(cells)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def _where(output: Published) -> str:
    """Path of an output, or of the first file of a split one, in the repository."""
    files = output.report.files
    whole = len(files) == 1 or any("/" in name or name == "config.json" for name, _ in files)
    return output.name if whole else files[0][0]


def _explained(report: PublishReport) -> list[str]:
    """What the columns mean."""
    told = ["Bits per weight count every tensor of the file, scales and unquantized ones included."]
    text = report.text
    if text is not None:
        told.append(
            f"Mean KL is the divergence of its predictions from the original's, in nats per token (0 is no change), on "
            f"{text.scored:,} tokens in {text.windows:,} windows of {text.window_length} of "
            f"{_plain(PurePath(text.source).name)}, as `qformats compare` measures it."
        )
    found = [" ".join(told) + "\n"]
    for output in report.outputs:
        found += [f"{_plain(output.name)}: {_plain(note)}\n" for note in output.notes]
    return found


def _run(output: Published, plan: Plan) -> str:
    where = _where(output)
    command = run_command(plan, where)
    if not command:
        command = run_command(plan, where, 'qformats generate {target} "Once upon a time"')
    lines = [f"```sh\n{command}\n```"]
    if plan.layout.folder and not plan.layout.run_with:
        told = (
            "Transformers loads it after `import qformats; qformats.register_with_transformers()`."
            if needs_us(plan.target)
            else "Transformers' `from_pretrained` loads it too, with the packages that it asks for."
        )
        lines.append(told)
    return "\n\n".join(lines) + "\n"


def _made(output: Published) -> str:
    """Quantizer, text and importances of an output, and what is not in it."""
    made: ExportReport = output.report
    told = [f"quantizer {made.quantizer}"]
    if not any(tensor.action in ("quantized", "requantized") for tensor in made.tensors):
        told = ["no weight was quantized"]
    if made.calibration:
        size_of, of, text = made.calibration.partition(" tokens of ")
        told.append(f"calibrated on {size_of}{of}{PurePath(text).name}")
    if made.importance is not None:
        files = ", ".join(PurePath(file).name for file in made.importance["files"])
        told.append(f"errors weighed by {files}")
    types = ", ".join(f"{count} {name.partition(':')[2]}" for name, count in made.types.items())
    told.append(f"tensors: {types}")
    lines = [f"- {_plain(output.name)}: {_plain('; '.join(told))}"]
    reasons: dict[str, list[str]] = {}
    for each in made.left_out:
        reasons.setdefault(each.reason, []).append(each.name)
    for reason, names in reasons.items():
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        lines.append(f"  - left out, {_plain(reason)}: {_plain(', '.join(names[:_SHOWN]))}{more}")
    return "\n".join(lines)


def _plain(text: str) -> str:
    """Text in which nothing is markup."""
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return _MARKUP.sub(r"\\\1", line)


def _carried(value: Any) -> Any:
    """A value of the source's card, if it is a short text or a list of them; ``None`` for anything else."""
    if isinstance(value, str) and 0 < len(value) <= _LONGEST:
        return value
    if isinstance(value, list):
        kept = [each for each in value[:_MOST] if isinstance(each, str) and 0 < len(each) <= _LONGEST]
        return kept or None
    # YAML 1.1 reads the language "no" as a truth value.
    return "no" if value is False else None
