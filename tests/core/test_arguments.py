"""Arguments in another shape than the signature's: understood where there is one meaning, and refused by name."""

from __future__ import annotations

import pytest

import qformats
from qformats.errors import ConfigError


def test_one_format_is_as_good_as_a_list_of_one():
    one, listed = (qformats.compare("demo", try_=given) for given in ("gguf:q8_0", ["gguf:q8_0"]))
    assert [m.name for m in one.models] == [m.name for m in listed.models] == ["gguf:q8_0"]
    assert one.models[0].weights.total == listed.models[0].weights.total
    assert qformats.compare("demo", try_=iter(("gguf:q8_0",))).models[0].name == "gguf:q8_0"


@pytest.mark.parametrize("given", [7, {"gguf:q8_0": 1}, [7], b"gguf:q8_0", None])
def test_what_is_no_list_of_formats_is_refused(given):
    with pytest.raises(ConfigError, match=r"try_: found .*; expected a name, or several of them in a list"):
        qformats.compare("demo", try_=given)


@pytest.mark.parametrize(
    ("call", "more", "keys"),
    [
        ("open", {}, ("options",)),
        ("export", {"format": "gguf:q4_0"}, ("options", "tensor_types", "quantizer_options")),
        ("load_model", {"format": "gguf:q4_0"}, ("options", "tensor_types", "quantizer_options")),
        ("compare", {"try_": "gguf:q4_0"}, ("options", "quantizer_options")),
    ],
)
def test_text_in_place_of_a_dictionary_is_refused_by_name(call, more, keys, tmp_path):
    target = (tmp_path / "x.gguf",) if call == "export" else ()
    for key in keys:
        with pytest.raises(ConfigError) as caught:
            getattr(qformats, call)("demo", *target, **more, **{key: "arch=llama"})
        told = str(caught.value)
        assert told.startswith(f"{key}: found 'arch=llama'; expected a dictionary of names and values")
        assert "{'arch': 'llama'}" in told
    assert list(tmp_path.iterdir()) == []
