"""Whether the tensors of a model are those of its class: refused if not, and said where nobody can tell."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from qformats.errors import CheckpointError
from qformats.folder.conv1d import is_conv1d
from qformats.folder.experts import share_of, stacked_shapes
from qformats.folder.usual import usual_class, usual_fit
from qformats.interfaces.checkpoint import Checkpoint
from qformats.interfaces.stored import StoredTensor
from qformats.registry import registry

if TYPE_CHECKING:
    from qformats.folder.skeleton import Verdict

__all__ = ["Fit", "belonging", "fitted", "predicts", "refuse_fragments"]

_SHOWN = 3
"""Names that a message lists."""
_ADAPTER = re.compile(
    r"\.(?:lora_\w+|base_layer|modules_to_save|original_module|ia3_\w+|boft_\w+|oft_\w+)(?:\.|$)"
)
"""Tensors of adapters that PEFT writes, and of models into which one is not merged yet."""
_NEXT_TOKENS = (
    "num_nextn_predict_layers",
    "mtp_num_hidden_layers",
    "num_mtp_layers",
    "mtp_num_layers",
    "num_mtp_modules",
)
"""Keys that count layers which predict further tokens; most classes do not read them."""
_PREDICTING = re.compile(r"(?:^|\.)mtp(?:_\w+)?\.")
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
_COUNTS = re.compile(r"(?:layers?|blocks|depth|experts|groups|labels)$")
"""Keys of what a class makes one object for."""
_MOST = 4096
"""Each layer is built, if without memory: an absurd number must not take forever."""
_SEVERAL = 4
"""Parts of names that all tensors may have in front."""


@dataclass(frozen=True)
class Fit:
    """What a model's class says about its tensors.

    Attributes
    ----------
    model_class : str
        The class that has exactly these tensors; empty if nothing could be checked.
    prefix : str
        What all names begin with and the class does not.
    ignored : tuple of str
        Tensors that the class does not read; they are kept.
    unchecked : str
        Why nothing could be checked.
    """

    model_class: str = ""
    prefix: str = ""
    ignored: tuple[str, ...] = ()
    unchecked: str = ""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know: a sentence each, without the full stop."""
        found = []
        if self.unchecked:
            found.append(f"no class to compare names and shapes with: {self.unchecked}")
        if self.prefix:
            found.append(f"the prefix {self.prefix} of all names was removed: {self.model_class} has none")
        if self.ignored:
            found.append(f"kept although {self.model_class} does not read them: {_listed(self.ignored)}")
        return tuple(found)


def fitted(source: Checkpoint) -> Fit:
    """Compare the tensors of a model with those of the class that its configuration describes.

    Parameters
    ----------
    source : Checkpoint
        With canonical names and a ``config.json``.

    Raises
    ------
    CheckpointError
        If tensors are missing, of other shapes, or not part of the class.

    Examples
    --------
    >>> import qformats
    >>> from qformats.folder.fit import fitted
    >>> fitted(qformats.open("demo")).model_class
    'LlamaForCausalLM'
    """
    shapes = _shapes(source)
    refuse_fragments(source)
    common = usual_fit(source.config, shapes)
    if common is not None:
        name, ignored = common
        return Fit(name, ignored=ignored)
    found, problem = _asked(_text(source.config), tuple(shapes.items()))
    if problem is not None:
        what, expected, tensor, hint = problem
        file = source.tensors[tensor].file if tensor in source.tensors else source.path
        raise CheckpointError(file, what, expected, tensor=tensor or None, hint=hint)
    return found


def belonging(source: Checkpoint, spare: Mapping[str, StoredTensor]) -> set[str]:
    """Those of some more tensors that the model's class has a place for; none where nobody can tell."""
    shapes = _own_shapes(source)
    if not spare or usual_class(source.config, shapes) is not None:
        return set()
    more = {name: tensor.shape for name, tensor in spare.items()}
    if next(_absurd(source.config, len(shapes)), None) is not None:
        return set()
    from qformats.folder.skeleton import classes_of, judge

    try:
        parsed, (first, *_) = classes_of(source.config)
        known = judge(first, parsed, stacked_shapes(shapes | more, source.config, source.path)).known
    except Exception:
        # `fitted` says why nothing can be told.
        return set()
    stacks = {name: share.stack for name in more if (share := share_of(name, source.config))}
    return {name for name in more if stacks.get(name, name) in known}


def _shapes(source: Checkpoint) -> dict[str, tuple[int, ...]]:
    """Shapes as Transformers stores them."""
    return stacked_shapes(_own_shapes(source), source.config, source.path)


def _own_shapes(source: Checkpoint) -> dict[str, tuple[int, ...]]:
    """The same, with a shape for each matrix of an expert."""
    model_type = str(source.config.get("model_type"))
    return {
        name: tensor.shape[::-1] if len(tensor.shape) == 2 and is_conv1d(model_type, name) else tensor.shape
        for name, tensor in source.tensors.items()
    }


def _text(config: Mapping[str, Any]) -> str:
    return json.dumps(config, sort_keys=True, default=str)


def refuse_fragments(source: Checkpoint) -> None:
    """Refuse what is not a model under any configuration.

    Parameters
    ----------
    source : Checkpoint
        A Hugging Face folder.

    Raises
    ------
    CheckpointError
        If a tensor belongs to an adapter, or is part of a quantized weight whose other parts are missing.

    Examples
    --------
    >>> import qformats
    >>> from qformats.folder.fit import refuse_fragments
    >>> refuse_fragments(qformats.open("demo"))
    """
    adapter = next((name for name in source.tensors if _ADAPTER.search(name)), None)
    if adapter is not None:
        raise CheckpointError(
            source.tensors[adapter].file,
            "belongs to an adapter, or to a model into which one is not merged yet",
            "the weights of a model",
            tensor=adapter,
            hint="merge the adapter into its base model first (PEFT's merge_and_unload), and export the result",
        )
    fields = {
        field.name
        for packer in registry().formats()
        for field in packer.spec.fields
        if field.name not in ("weight", "bias")
    }
    for name, tensor in source.tensors.items():
        dtype = tensor.packer.dense_dtype or ""
        if name.rpartition(".")[2] in fields and dtype[:1] in ("i", "u"):
            raise CheckpointError(
                tensor.file,
                "is a field of a quantized weight, but config.json does not say how it is quantized",
                "plain weights, or a quantization_config",
                tensor=name,
                hint="add the quantize_config.json of the same model, or say it with -O quantization-config=JSON",
            )


_Problem = tuple[str, str | None, str, str | None]
"""Found, expected, tensor and hint of an error."""


@lru_cache(maxsize=8)
def _asked(config_text: str, listed: tuple[tuple[str, tuple[int, ...]], ...]) -> tuple[Fit, _Problem | None]:
    """What Transformers says; once per model and process, since an export asks several times."""
    config, shapes = json.loads(config_text), dict(listed)
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        return Fit(unchecked="config.json has no model_type"), None
    absurd = next(_absurd(config, len(shapes)), None)
    if absurd is not None:
        return Fit(), (
            f"{len(shapes)} tensors",
            f"enough for {absurd[0]} {absurd[1]}, as config.json says",
            "",
            None,
        )
    from qformats.folder.skeleton import classes_of, judge

    try:
        parsed, classes = classes_of(config)
    except LookupError:
        classes = []
    except Exception as error:
        # Each configuration class has its own ways of being wrong.
        return Fit(unchecked=f"Transformers does not understand config.json ({_told(error)})"), None
    if not classes:
        own = " and its own code is not run" if config.get("auto_map") else ""
        return Fit(unchecked=f"Transformers has none for model_type {model_type}{own}"), None
    try:
        first = judge(classes[0], parsed, shapes)
    except Exception as error:
        # As above; some need a library that is not installed.
        found = f"{classes[0].__name__} cannot be built from config.json ({_told(error)})"
        return Fit(unchecked=found), None
    verdict = _with_others(first, classes, parsed, shapes, config)
    if verdict.fits and verdict.exact:
        return Fit(verdict.model_class, ignored=tuple(verdict.ignored)), None
    for prefix, bare in _without_prefix(shapes):
        inner = _with_others(judge(classes[0], parsed, bare), classes, parsed, bare, config)
        # Transformers takes a part of some prefixes off by itself; others do not.
        if inner.fits and (inner.exact or not verdict.fits):
            ignored = tuple(f"{prefix}{name}" for name in inner.ignored)
            return Fit(inner.model_class, prefix, ignored), None
    if verdict.fits:
        return Fit(verdict.model_class, ignored=tuple(verdict.ignored)), None
    if config.get("auto_map") and 2 * len(verdict.known) < len(shapes):
        found = f"the model has code of its own, which is not run, and {verdict.model_class} is another model"
        return Fit(unchecked=found), None
    return Fit(), _problem(verdict)


def _absurd(config: Mapping[str, Any], tensors: int) -> Iterator[tuple[int, str]]:
    """Numbers of layers or experts that these tensors cannot fill."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _absurd(value, tensors)
        elif _COUNTS.search(key) and type(value) is int and value > max(_MOST, tensors):
            yield value, key


def _with_others(
    first: Verdict,
    classes: list[Any],
    parsed: Any,
    shapes: Mapping[str, tuple[int, ...]],
    config: Mapping[str, Any],
) -> Verdict:
    """The verdict of a model's class, without tensors that other classes of the same type know: heads, mostly."""
    from qformats.folder.skeleton import judge

    found = replace(first, unexpected=list(first.unexpected), ignored=list(first.ignored))
    predicting = [name for name in found.unexpected if predicts(name, config)]
    found.unexpected = [name for name in found.unexpected if name not in predicting]
    for other in classes[1:] if found.unexpected and len(first.known) * 2 >= len(shapes) else ():
        try:
            known = judge(other, parsed, shapes).known
        except Exception:
            # It cannot be built here, so it has nothing to say.
            continue
        predicting += [name for name in found.unexpected if name in known]
        found.unexpected = [name for name in found.unexpected if name not in known]
    found.ignored += predicting
    return found


def predicts(name: str, config: Mapping[str, Any]) -> bool:
    """Whether a tensor belongs to layers that predict further tokens, which most classes do not have.

    Parameters
    ----------
    name : str
        Of the tensor.
    config : mapping
        config.json; tells how many such layers there are.

    Examples
    --------
    >>> from qformats.folder.fit import predicts
    >>> config = {"num_hidden_layers": 61, "num_nextn_predict_layers": 1}
    >>> [predicts(f"model.layers.{number}.eh_proj.weight", config) for number in (60, 61, 62)]
    [False, True, False]
    """
    text = config.get("text_config")
    config = text if isinstance(text, Mapping) else config
    more = next((config[key] for key in _NEXT_TOKENS if type(config.get(key)) is int), 0)
    layers = config.get("num_hidden_layers")
    if more < 1 or not isinstance(layers, int):
        return False
    number = _LAYER.search(name)
    return bool(_PREDICTING.search(name)) or (number is not None and layers <= int(number[1]) < layers + more)


def _without_prefix(
    shapes: Mapping[str, tuple[int, ...]],
) -> Iterator[tuple[str, dict[str, tuple[int, ...]]]]:
    """The tensors without the first part of their names, if all have the same; without the first two, and so on."""
    prefix, bare = "", dict(shapes)
    for _ in range(_SEVERAL):
        starts = {name.partition(".")[0] for name in bare}
        if len(starts) != 1 or any("." not in name for name in bare):
            return
        start = f"{starts.pop()}."
        prefix, bare = prefix + start, {name.removeprefix(start): shape for name, shape in bare.items()}
        yield prefix, bare


def _problem(verdict: Verdict) -> _Problem:
    """The first of what is wrong, and how much more of it there is."""
    own = verdict.model_class
    if verdict.unexpected and not verdict.known:
        found = (
            f"none of its {len(verdict.unexpected)} tensors is part of {own}: {_listed(verdict.unexpected)}"
        )
        return found, f"names such as {verdict.missing[0]}" if verdict.missing else None, "", _ANOTHER
    if verdict.missing:
        found = f"lacks {_number(verdict.missing)} that {own} needs: {_listed(verdict.missing)}"
        if verdict.unexpected:
            found += f"; it has {_number(verdict.unexpected)} that are not part of it: {_listed(verdict.unexpected)}"
            return found, None, "", _ANOTHER
        return found, None, "", "fetch the whole model again, with all its shards"
    if verdict.unexpected:
        found = f"{_number(verdict.unexpected)} not part of {own}, which config.json describes: "
        return found + _listed(verdict.unexpected), f"only tensors of {own}", "", _ANOTHER
    if verdict.misshapen:
        name, given, wanted = verdict.misshapen[0]
        more = f" ({len(verdict.misshapen) - 1} more differ)" if len(verdict.misshapen) > 1 else ""
        return f"shape {given}{more}", f"{wanted}, as {own} has it with this config.json", name, _ANOTHER
    name, why = next(iter(verdict.broken.items()))
    return f"tensors that do not make {name} of {own} ({why})", "the matrices of every expert", "", _ANOTHER


_ANOTHER = "config.json and the weights belong to different models, or to different versions of one"


def _number(names: list[str]) -> str:
    return f"{len(names)} tensor{'' if len(names) == 1 else 's'}"


def _listed(names: tuple[str, ...] | list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
