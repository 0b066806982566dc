"""Names of models by which llama.cpp reads tokens otherwise, or does not load a file at all."""

import warnings

import gguf
import pytest
from models import architectures
from oracles import hf
from oracles.llama_cpp import LlamaCpp, LlamaCppError

import qformats
from qformats_gguf.metadata import ValueType, array, string
from qformats_gguf.model_name import with_safe_name

TEXT = "a word <|im_start|>  two spaces <|im_end|> one"


def tokenizer_metadata(name, tokens, types, **flags):
    metadata = {
        "general.name": string(name),
        "tokenizer.ggml.tokens": array(ValueType.STRING, tokens),
        "tokenizer.ggml.token_type": array(ValueType.I32, types),
    }
    for flag, ids in flags.items():
        metadata[f"qformats.tokenizer.{flag}"] = array(ValueType.I32, ids)
    return metadata


@pytest.mark.parametrize(
    ("folder", "name", "instead"),
    [("phi3-mini", "Phi3 Mini", "Phi 3 Mini"), ("my-PHI3", "My PHI3", "My PHI 3")],
)
def test_a_name_that_llama_cpp_cannot_load_is_written_otherwise(tmp_path, folder, name, instead):
    """The vocabulary has no <|endoftext|>, and spaces after its special tokens count."""
    folder = architectures.build("ph3-partial", tmp_path / folder)
    file = tmp_path / "m.gguf"
    with pytest.warns(UserWarning, match=f"by the name '{name}' llama.cpp would treat tokens otherwise"):
        qformats.export(folder, file, format="gguf:q8_0")
    with LlamaCpp(file, vocab_only=True) as vocabulary:
        expected = hf.tokenizer_json(folder).encode(TEXT).ids
        assert vocabulary.tokenize(TEXT) == expected
    written = gguf.GGUFReader(file).fields["general.name"].contents()
    assert written == instead
    # What the name would have done: llama.cpp asks its table for a token that is not there.
    risky = written.replace(" 3", "-3").encode()
    content = file.read_bytes()
    assert content.count(written.encode()) == 1
    (tmp_path / "risky.gguf").write_bytes(content.replace(written.encode(), risky))
    with pytest.raises(LlamaCppError, match=r"error loading model vocabulary: .*::at"):
        LlamaCpp(tmp_path / "risky.gguf", vocab_only=True)


TOKENS = ["<unk>", "<s>", "</s>", "a", "<|endoftext|>", "<|end|>"]
TYPES = [2, 3, 3, 1, 3, 3]


@pytest.mark.parametrize(
    ("name", "tokens", "flags", "written"),
    [
        # As the published Phi-3: spaces are removed after its own tokens and after </s>.
        ("Phi-3-mini", TOKENS, {"rstrip": [2, 5]}, "Phi-3-mini"),
        ("Phi-3-mini", TOKENS, {"rstrip": [2, 4, 5]}, "Phi 3-mini"),
        ("Phi-3-mini", TOKENS, {}, "Phi 3-mini"),
        ("Phi-3-mini", [*TOKENS[:4], "b", "c"], {"rstrip": [2, 5]}, "Phi 3-mini"),
        ("phi-4", TOKENS, {}, "phi-4"),
        ("modern-bert-base", TOKENS, {}, "modern bert-base"),
        ("modern-bert-base", [*TOKENS[:5], "[MASK]"], {"lstrip": [5]}, "modern-bert-base"),
    ],
)
def test_a_name_is_kept_where_the_tokenizer_does_the_same(name, tokens, flags, written):
    metadata = tokenizer_metadata(name, tokens, TYPES, **flags)
    with warnings.catch_warnings():
        warnings.simplefilter("error" if written == name else "ignore")
        found = with_safe_name(metadata, "folder")
    assert found == metadata | {"general.name": string(written)}


def test_a_window_that_a_file_of_phi3_names_is_kept(tmp_path):
    """llama.cpp's converter always writes the key, with 0 for none; the model has the window, whoever computes it."""
    folder = architectures.build("ph3-partial", tmp_path / "model")
    file = tmp_path / "m.gguf"
    qformats.export(folder, file, format="gguf:q8_0")
    reader, path = gguf.GGUFReader(file), tmp_path / "theirs.gguf"
    for window, expected in ((0, None), (47, 47)):
        writer = gguf.GGUFWriter(path, "phi3")
        for key, field in reader.fields.items():
            if not key.startswith(("GGUF.", "general.architecture")):
                kind = field.types[0]
                item = field.types[-1] if kind is gguf.GGUFValueType.ARRAY else None
                writer.add_key_value(key, field.contents(), kind, item)
        writer.add_sliding_window(window)
        for tensor in reader.tensors:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        assert qformats.open(path).config["sliding_window"] == expected
