"""Long rotary factors: what they mean in Transformers, and files that hold them wrongly."""

import numpy as np
import pytest
import torch

from qformats.errors import CheckpointError
from qformats_gguf.architectures import Architecture
from qformats_gguf.architectures.longrope import TENSORS, attention_factor

CONFIG = {
    "model_type": "phi3",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "original_max_position_embeddings": 64,
}
SETS = {"short_factor": [1.0, 1.25, 1.5, 2.0], "long_factor": [1.5, 2.5, 4.0, 8.0]}


def written(**rope):
    architecture = Architecture.from_config(CONFIG | rope)
    return architecture.metadata(name="m"), architecture.extra_tensors(), architecture


@pytest.mark.parametrize("kind", ["su", "yarn", "longrope"])
def test_older_names_mean_the_same_as_in_transformers(kind):
    from transformers import AutoConfig

    scaling = {"type": kind, "original_max_position_embeddings": 64, **SETS}
    older = {"rope_theta": 500.0, "rope_scaling": scaling}
    assert AutoConfig.for_model(**CONFIG, **older).rope_parameters["rope_type"] == "longrope"
    metadata, tensors, _ = written(**older)
    expected, others, _ = written(rope_parameters={"rope_type": "longrope", "rope_theta": 500.0, **SETS})
    assert metadata == expected
    assert {name: values.tolist() for name, values in tensors.items()} == {
        name: others[name].tolist() for name in TENSORS
    }


@pytest.mark.parametrize("given", [{}, {"factor": 2.0}, {"factor": 0.5}, {"attention_factor": 1.7}])
def test_the_factor_of_attention_is_that_of_transformers(given):
    from transformers import AutoConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters = {"rope_type": "longrope", "rope_theta": 500.0, **SETS, **given}
    config = AutoConfig.for_model(**CONFIG, rope_parameters=dict(parameters))
    _, expected = ROPE_INIT_FUNCTIONS["longrope"](config, torch.device("cpu"))
    ours = attention_factor(parameters | {"original_max_position_embeddings": 64}, 256)
    assert ours == pytest.approx(expected, rel=1e-12)
    # The way back: from the number that a file keeps, the same factor.
    metadata, tensors, architecture = written(rope_parameters=parameters)
    names = [mapping.gguf for mapping in architecture.expected_tensors()]
    metadata["tokenizer.ggml.tokens"] = _tokens()
    back = Architecture.from_metadata(metadata, [*names, *tensors], extra_tensors=tensors)
    restored = AutoConfig.for_model(**back.config)
    _, again = ROPE_INIT_FUNCTIONS["longrope"](restored, torch.device("cpu"))
    assert again == pytest.approx(expected, rel=1e-7)
    assert [restored.rope_parameters[key] for key in SETS] == list(SETS.values())


def test_what_chooses_the_factors_is_named():
    parameters = {"rope_type": "longrope", "rope_theta": 500.0, **SETS}
    [told] = written(rope_parameters=parameters)[2].ignored
    assert str(told) == (
        "rope_parameters.original_max_position_embeddings = 64 was ignored: llama.cpp takes the long factors in any "
        "context beyond it; run short texts with -c 64"
    )
    assert not written(rope_parameters=parameters, max_position_embeddings=64)[2].ignored


def _tokens():
    from qformats_gguf.metadata import ValueType, array

    return array(ValueType.STRING, [f"<{i}>" for i in range(64)])


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"rope_factors_long.weight": None}, "no rope_factors_long"),
        ({"rope_factors_short.weight": np.ones(3, np.float32)}, "4 positive numbers"),
        ({"rope_factors_short.weight": np.array([1, 1, -1, 1], np.float32)}, "4 positive numbers"),
        ({"rope_factors_long.weight": np.array([1, 1, np.inf, 1], np.float32)}, "4 positive numbers"),
    ],
)
def test_a_file_with_a_broken_set_is_refused(changed, named):
    metadata, tensors, architecture = written(rope_parameters={"rope_type": "longrope", **SETS})
    metadata["tokenizer.ggml.tokens"] = _tokens()
    tensors = {name: values for name, values in (tensors | changed).items() if values is not None}
    names = [mapping.gguf for mapping in architecture.expected_tensors()]
    with pytest.raises(CheckpointError, match=named):
        Architecture.from_metadata(metadata, [*names, *tensors], extra_tensors=tensors)
