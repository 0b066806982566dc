"""Internals of Transformers and torch that this project reaches, all of them here.

They may change with any release. Whoever needs one imports it from this module, inside a function where Transformers is
not wanted yet; a release without it is named in one sentence. ``tests/runtime/test_compat.py`` looks at each of them:
a new release of either library fails there first, by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import transformers

from qformats.errors import BackendUnavailableError

__all__ = [
    "AUTO_QUANTIZATION_CONFIG_MAPPING",
    "MODEL_ATTRIBUTES",
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "MODEL_MAPPING_NAMES",
    "ConversionOps",
    "DisableTorchFunctionSubclass",
    "HfQuantizer",
    "LoadStateDictConfig",
    "QuantizationConfigMixin",
    "QuantizationMethod",
    "WeightConverter",
    "WeightRenaming",
    "convert_and_load_state_dict_in_model",
    "get_checkpoint_conversion_mapping",
    "get_model_conversion_mapping",
    "register_quantization_config",
    "register_quantizer",
    "rename_source_key",
    "revert_weight_conversion",
]

_TESTED = "transformers>=5.17,<6 and torch>=2.11,<3"

try:
    from torch._C import DisableTorchFunctionSubclass
    from transformers.conversion_mapping import (
        get_checkpoint_conversion_mapping,
        get_model_conversion_mapping,
    )
    from transformers.core_model_loading import (
        ConversionOps,
        WeightConverter,
        WeightRenaming,
        convert_and_load_state_dict_in_model,
        rename_source_key,
        revert_weight_conversion,
    )
    from transformers.modeling_utils import LoadStateDictConfig
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        MODEL_MAPPING_NAMES,
    )
    from transformers.quantizers.auto import (
        AUTO_QUANTIZATION_CONFIG_MAPPING,
        register_quantization_config,
        register_quantizer,
    )
    from transformers.quantizers.base import HfQuantizer
    from transformers.utils.quantization_config import QuantizationConfigMixin, QuantizationMethod
except ImportError as error:
    raise BackendUnavailableError(
        f"transformers {transformers.__version__} with torch {torch.__version__}",
        f"lacks what models are loaded with ({' '.join(str(error).split())})",
        f"Install versions that are tested: pip install '{_TESTED.replace(' and ', chr(39) + ' ' + chr(39))}'",
    ) from error

if TYPE_CHECKING:
    from collections.abc import Mapping

MODEL_ATTRIBUTES: Mapping[str, str] = {
    "_adjust_missing_and_unexpected_keys": "tells which weights of a checkpoint were missing",
    "config_class": "class of its configuration",
    "_keys_to_ignore_on_load_unexpected": "names of tensors that are no part of the model and ignored",
    "_keep_in_fp32_modules": "names of modules that stay float32 in float16",
    "_keep_in_fp32_modules_strict": "names of modules that always stay float32",
    "_tied_weights_keys": "parameters that a class ties if its configuration says so",
    "all_tied_weights_keys": "parameters that share a weight; set when a model is made",
    "base_model_prefix": "what names of the base model begin with",
    "get_init_context": "builds the model without memory, as it is built to be loaded",
    "get_input_embeddings": "the embedding of tokens",
    "resize_token_embeddings": "refused for packed embeddings",
}
"""What is asked of ``PreTrainedModel``, beyond its documented use, and what for."""
