"""What Transformers' own class says about the tensors of a model: asked without memory, by its own loading code.

The model is built on the meta device and loaded from tensors there, which have shapes and no values. So whatever
Transformers accepts is accepted: renamed and merged tensors, prefixes of base models, tied weights, names of old.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from qformats.folder.classes import own_class, without_storage

__all__ = ["Shapes", "Verdict", "classes_of", "is_computed", "judge", "pooler_of", "takes_no_pooler"]

Shapes = Mapping[str, tuple[int, ...]]
"""Shape of every tensor as Transformers stores it, by name."""

_COMPUTED = re.compile(
    r"inv_freq$|position_ids$|masked_bias$|(?:cos|sin)_cached$|embed_scale$|num_batches_tracked$"
)
"""Buffers that a class computes when it is made, or does not read, whatever a checkpoint holds or lacks."""
_EAGER = "eager"
_MAPPINGS = (
    "MODEL_FOR_CAUSAL_LM_MAPPING",
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING",
    "MODEL_FOR_PRETRAINING_MAPPING",
    "MODEL_MAPPING",
)


@dataclass
class Verdict:
    """How tensors and a class fit together.

    Attributes
    ----------
    model_class : str
        The class.
    known : set of str
        Tensors that are part of it.
    ignored : list of str
        Tensors that are not, and that it leaves unread on purpose.
    unexpected : list of str
        Tensors that it does not know.
    missing : list of str
        Parameters that no tensor fills.
    misshapen : list of (str, tuple of int, tuple of int)
        Parameters, the shape that the tensors give, and their own.
    broken : dict of str to str
        Parameters that are made from several tensors, and why that failed.
    exact : bool
        Whether the tensors have the names of the class's own parameters.
    """

    model_class: str
    known: set[str] = field(default_factory=set)
    ignored: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    misshapen: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)
    exact: bool = False

    @property
    def fits(self) -> bool:
        """Whether every tensor has its place, and every parameter its tensor."""
        return not (self.unexpected or self.missing or self.misshapen or self.broken)


def classes_of(config: Mapping[str, Any]) -> tuple[Any, list[Any]]:
    """Transformers' configuration of a config.json, and its classes for it, the most likely first.

    If a plugin brings a class for this model, that is the only one. Otherwise these are the classes that
    ``architectures`` names, and then those for the model's type: a causal language model, the one that it was
    pretrained as, and the model without a head. No code of the model's own is run.

    Raises
    ------
    Exception
        Whatever Transformers raises if it does not understand the configuration; `LookupError` for an unknown type.
    """
    import transformers
    from transformers import CONFIG_MAPPING, PreTrainedModel
    from transformers.models.auto import modeling_auto

    with _quietly():
        brought = own_class(config)
        if brought is not None:
            return brought[0], [brought[1]]
        kept = without_storage(config)
        own = CONFIG_MAPPING[str(config["model_type"])]
        parsed = own.from_dict(own._decode_special_floats(kept))
        parsed._attn_implementation = _EAGER
        usual: list[Any] = []
        for mapping in _MAPPINGS:
            # Some types have several.
            listed = getattr(modeling_auto, mapping, {}).get(own, None)
            usual += listed if isinstance(listed, tuple) else [listed]
        given = config.get("architectures")
        named = [
            getattr(transformers, str(name), None) for name in (given if isinstance(given, list) else ())
        ]
    # A class for another type of model would be built from a configuration that is not its own.
    named = [each for each in named if each in usual or getattr(each, "config_class", None) is own]
    found = (
        each for each in (*named, *usual) if isinstance(each, type) and issubclass(each, PreTrainedModel)
    )
    return parsed, list(dict.fromkeys(found))


def judge(model_class: Any, config: Any, shapes: Shapes) -> Verdict:
    """Let a class load these tensors, and see what it makes of them.

    Parameters
    ----------
    model_class : type
        From :func:`classes_of`.
    config : PreTrainedConfig
        Its configuration.
    shapes : mapping of str to tuple of int
        The tensors.

    Raises
    ------
    Exception
        Whatever the class raises if it cannot be built from this configuration.

    Examples
    --------
    >>> import qformats
    >>> from qformats.folder.skeleton import classes_of, judge
    >>> model = qformats.open("demo")
    >>> config, (llama, *_) = classes_of(model.config)
    >>> shapes = {name: tensor.shape for name, tensor in model.tensors.items()}
    >>> judge(llama, config, shapes).fits
    True
    >>> del shapes["model.norm.weight"]
    >>> judge(llama, config, shapes).missing
    ['model.norm.weight']
    """
    import torch

    from qformats.work.compat import (
        LoadStateDictConfig,
        convert_and_load_state_dict_in_model,
        get_model_conversion_mapping,
    )

    with _quietly(), contextlib.ExitStack() as stack:
        for context in model_class.get_init_context(torch.float32, False, False, None):
            stack.enter_context(context)
        # Some classes change it.
        model = model_class(copy.deepcopy(config))
    with _quietly():
        mapping: Any = get_model_conversion_mapping(model)
        for entry in mapping:
            if getattr(entry, "force_cpu", False):
                # It saves memory, of which none is used here.
                entry.force_cpu = False
        wanted = dict(model.state_dict())
        computed = {name for name, _ in model.named_buffers()}
        given = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
        told = LoadStateDictConfig(device_map={"": "meta"}, dtype=torch.float32, weight_mapping=mapping)
        info, _ = convert_and_load_state_dict_in_model(model, given, told)
        every = set(info.unexpected_keys)
        model._adjust_missing_and_unexpected_keys(info)
    found = Verdict(model_class.__name__, exact=shapes.keys() <= wanted.keys())
    _sort_out(found, model, mapping, wanted, shapes, every, set(info.unexpected_keys), computed)
    broken = set(info.conversion_errors)
    found.broken = {name: " ".join(why.split())[-160:] for name, why in info.conversion_errors.items()}
    found.misshapen = [(name, tuple(was), tuple(own)) for name, was, own in sorted(info.mismatched_keys)]
    missing = _untied(set(info.missing_keys), dict(model.all_tied_weights_keys)) - broken
    if takes_no_pooler(model_class) and pooler_of(wanted) <= missing:
        missing -= pooler_of(wanted)
    found.missing = [
        name for name in wanted if name in missing and not (name in computed and _COMPUTED.search(name))
    ]
    return found


def _sort_out(
    found: Verdict,
    model: Any,
    mapping: list[Any],
    wanted: dict[str, Any],
    shapes: Shapes,
    every: set[str],
    unexpected: set[str],
    computed: set[str],
) -> None:
    """Which tensors the class knows; it tells the others by the names that it has given to them."""
    if not every:
        found.known = set(shapes)
        return
    from qformats.work.compat import WeightConverter, rename_source_key

    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    renamings = [entry for entry in mapping if not isinstance(entry, WeightConverter)]
    prefix = model.base_model_prefix
    for name in shapes:
        renamed, pattern = rename_source_key(name, renamings, converters, prefix, wanted)
        plain, _ = rename_source_key(name, [], [], prefix, wanted)
        if renamed in wanted or plain in wanted:
            found.known.add(name)
            continue
        targets = [each.target_patterns for each in converters if pattern in each.source_patterns]
        names = {renamed, *(renamed.replace(t[0], each) for t in targets[:1] for each in t)}
        if names.isdisjoint(unexpected) or any(
            is_computed(each, prefix, computed) for each in (name, *names)
        ):
            found.ignored.append(name)
        else:
            found.unexpected.append(name)


def takes_no_pooler(model_class: Any) -> bool:
    """Whether a class can be made without the layer that turns the first token's state into one of a whole text.

    Embeddings of texts are made without it, and many models come without its weights.

    Examples
    --------
    >>> from transformers import BertModel, LlamaModel
    >>> from qformats.folder.skeleton import takes_no_pooler
    >>> takes_no_pooler(BertModel), takes_no_pooler(LlamaModel)
    (True, False)
    """
    return "add_pooling_layer" in inspect.signature(model_class.__init__).parameters


def pooler_of(names: Iterable[str]) -> set[str]:
    """Names of that layer's tensors.

    >>> pooler_of(["pooler.dense.bias", "encoder.layer.0.output.dense.bias"])
    {'pooler.dense.bias'}
    """
    return {name for name in names if name.startswith("pooler.")}


def is_computed(name: str, prefix: str, buffers: Collection[str]) -> bool:
    """Whether a tensor is a table that the class computes: of a rotation, a mask, the ids of positions.

    Parameters
    ----------
    name : str
        Of a tensor that is not part of the class.
    prefix : str
        In front of the names of its base model, which checkpoints may leave out.
    buffers : collection of str
        Every buffer that the class has, stored or not.

    Examples
    --------
    >>> from qformats.folder.skeleton import is_computed
    >>> is_computed("h.0.attn.bias", "transformer", {"transformer.h.0.attn.bias"})
    True
    """
    spelled = (name, f"{prefix}.{name}", name.removeprefix(f"{prefix}."))
    return any(each in buffers for each in spelled) or _COMPUTED.search(name) is not None


def _untied(missing: set[str], tied: Mapping[str, str]) -> set[str]:
    """Parameters that neither a tensor fills nor one that shares its weight with them."""
    twins: dict[str, set[str]] = {}
    for target, source in tied.items():
        twins.setdefault(source, {source}).add(target)
    filled = [group for group in twins.values() if group - missing]
    return missing.difference(*filled)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep Transformers' own messages and progress bars off the terminal: what is wrong is said in one sentence."""
    from transformers.utils import logging as told

    logging: Any = told
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
