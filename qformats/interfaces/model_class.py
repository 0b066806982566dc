"""Model classes: what runs a model that Transformers has no class for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from qformats.errors import ConfigError, Described
from qformats.interfaces.checkpoint import Checkpoint
from qformats.interfaces.evaluation import Evaluation
from qformats.work.guard import Guarded
from qformats.work.shown import Shown

__all__ = ["ModelClass"]


class ModelClass(Shown, Guarded, ABC):
    """A causal language model that runs with a plugin's own code.

    Subclasses set :attr:`name` and say which configurations are theirs; the two classes are Transformers' kind, with
    parameters under the canonical names of the model's tensors. They are imported when they are asked for, not before.
    Whatever runs a model, or compares its tensors with its class, asks plugins first and then Transformers.

    Examples
    --------
    Transformers' own class under another name:

    >>> from qformats import ModelClass
    >>> class Shouted(ModelClass):
    ...     name = "LLAMA"
    ...     summary = "Llama, spelt in capital letters"
    ...
    ...     def config_class(self):
    ...         from transformers import LlamaConfig
    ...
    ...         return LlamaConfig
    ...
    ...     def model_class(self):
    ...         from transformers import LlamaForCausalLM
    ...
    ...         return LlamaForCausalLM
    >>> Shouted().describes({"model_type": "LLAMA"}), Shouted().model_class().__name__
    (True, 'LlamaForCausalLM')
    """

    guarded = ("describes", "config_class", "model_class", "text_prefix", "evaluation", "share")
    role = "model class"

    name: ClassVar[str]
    summary: ClassVar[str] = ""

    def _shown_facts(self) -> dict[str, str]:
        return {"name": getattr(self, "name", ""), "summary": self.summary}

    def describes(self, config: Mapping[str, Any]) -> bool:
        """Whether this is the configuration of such a model; by default, whether ``model_type`` is :attr:`name`.

        Parameters
        ----------
        config : mapping
            Of a checkpoint; nothing is known about it.
        """
        return config.get("model_type") == self.name

    @abstractmethod
    def config_class(self) -> Any:
        """Subclass of Transformers' ``PreTrainedConfig``."""

    @abstractmethod
    def model_class(self) -> Any:
        """Subclass of Transformers' ``PreTrainedModel`` and ``GenerationMixin``, built from that configuration."""

    def text_prefix(self, config: Mapping[str, Any]) -> tuple[int, ...]:
        """Ids that begin a text which continues no prompt, where the model cannot run without them.

        They stand in front of every piece of text that a model is calibrated or compared on.
        """
        return ()

    def evaluation(self, config: Mapping[str, Any]) -> Evaluation | None:
        """How the model reads the texts of ``qformats compare --tasks``; by default from left to right."""
        return None

    def share(self, source: Checkpoint, rank: int, ranks: int) -> Checkpoint:
        """What one of several devices holds of a model: tensors of its share, and a configuration to match.

        The class that runs it exchanges what the devices need of each other, over torch's default process group.

        Parameters
        ----------
        source : Checkpoint
            The whole model.
        rank, ranks : int
            Which device, from 0, of how many: more than one.

        Raises
        ------
        ConfigError
            If the model cannot be divided so; by default, if it cannot be divided at all.
        """
        found = Described(f"{ranks} devices for {self.name}")
        raise ConfigError("tensor parallelism", found, "one device: this model is not divided")
