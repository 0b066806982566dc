"""Models that make embeddings: BERT's and Nomic's, with WordPiece, as GGUF files and back, and run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from models import portable, tokenizers
from models.converter_goldens import MODELS, content_of
from models.encoders import ENCODERS, build_encoder
from models.text import PROMPTS
from oracles import hf
from oracles.llama_cpp import LlamaCpp
from typer.testing import CliRunner

import qformats
from qformats.cli.app import app
from qformats.errors import CheckpointError, UnsupportedModelError
from qformats_gguf.architectures import Architecture
from qformats_gguf.checkpoint import GGUFCheckpoint
from qformats_gguf.metadata import boolean, string
from qformats_gguf.tokenizer import from_gguf, to_gguf

# llama.cpp computes BERT's GELU from a table of 16-bit floats of its tanh approximation; Nomic's SiLU differs by 1e-6.
TOLERANCE = {**dict.fromkeys(("bert", "bert-cased", "roberta", "xlm_roberta"), 5e-3), "nomic_bert": 1e-4}
# In a file a RoBERTa is a BERT, which computes the same.
OTHER_CLASS = ("roberta", "xlm_roberta")
KOREAN = "서울"
each_encoder = pytest.mark.parametrize("name", ENCODERS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    path = tmp_path_factory.mktemp("encoders")
    return {name: build_encoder(name, path / name) for name in ENCODERS}


@pytest.fixture(scope="module")
def files(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    path = tmp_path_factory.mktemp("files")
    for name, folder in folders.items():
        qformats.export(folder, path / f"{name}.gguf", format="gguf:f32")
    return {name: path / f"{name}.gguf" for name in folders}


@pytest.fixture(scope="module")
def backs(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    path = tmp_path_factory.mktemp("backs")
    for name, file in files.items():
        qformats.export(file, path / name, format="dense:f32")
    return {name: path / name for name in files}


def states(model, ids):
    with torch.inference_mode():
        return model(torch.tensor([list(ids)])).last_hidden_state[0].numpy()


def pooled(name, states):
    return states[0] if ENCODERS[name][3] == "cls_token" else states.mean(0)


def library(folder):
    tokenizer = hf.tokenizer_json(folder)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


@each_encoder
def test_the_file_is_that_of_upstreams_converter(name: str, tmp_path: Path) -> None:
    """Its tokenizer and pooling too; the one key more is for the way back."""
    golden = MODELS[name]
    folder = tmp_path / name
    tokenizers.build(golden["tokenizer"], folder)
    (folder / "1_Pooling").mkdir()
    for file, content in {"config.json": golden["config"], **golden["files"]}.items():
        (folder / file).write_text(json.dumps(content))
    portable.write(folder / "model.safetensors", golden["shapes"])
    qformats.export(folder, tmp_path / "m.gguf", format="gguf:f16")
    ours = content_of(tmp_path / "m.gguf", golden["tensors"], vocabulary=True)
    assert ours["tensors"] == golden["tensors"]
    assert ours["metadata"].pop("qformats.embedding.normalized") == [["BOOL"], True]
    if name == "roberta":
        # The converter knows those of the hub by a hash, ours by how it splits text.
        assert ours["metadata"].pop("tokenizer.ggml.pre")[1] == "gpt-2"
        # Said besides, for the way back.
        assert ours["metadata"].pop("tokenizer.ggml.add_space_prefix")[1] is False
        assert ours["metadata"].pop("tokenizer.ggml.cls_token_id")[1] == 0
        golden = {**golden, "metadata": dict(golden["metadata"])}
        del golden["metadata"]["tokenizer.ggml.pre"]
    if name == "xlm_roberta":
        # The converter reads the model of SentencePiece only, which lacks the last token.
        ours["metadata"], theirs = dict(ours["metadata"]), golden["metadata"]
        last = len(theirs["tokenizer.ggml.tokens"][1]) - 1
        for key, one, other in (
            ("tokens", "<mask>", f"[PAD{last - 1}]"),
            ("scores", 0.0, -10000.0),
            ("token_type", 3, 5),
        ):
            key = f"tokenizer.ggml.{key}"
            assert (ours["metadata"][key][1].pop(), theirs[key][1][-1]) == (one, other)
            ours["metadata"][key][1].append(other)
        # Said besides, for the way back.
        assert ours["metadata"].pop("tokenizer.ggml.cls_token_id")[1] == 0
        assert ours["metadata"].pop("qformats.tokenizer.lstrip")[1] == [last]
    assert ours["metadata"] == golden["metadata"]


@each_encoder
def test_llama_cpp_makes_the_embeddings_of_transformers(
    name: str, folders: dict[str, Path], files: dict[str, Path]
) -> None:
    model, tokenizer = hf.load(folders[name], "AutoModel"), library(folders[name])
    with LlamaCpp(files[name], embeddings=True) as gguf:
        for text in PROMPTS:
            if ENCODERS[name][2] == "wordpiece":
                # llama.cpp takes only the first letter of a Korean syllable apart, where accents are removed.
                text = text.replace(KOREAN, "")
            assert gguf.tokenize(text) == tokenizer.encode(text).ids, text
        ids = tokenizer.encode("\n".join(PROMPTS)).ids[:96]
        expected = pooled(name, states(model, ids))
        assert np.abs(gguf.embedding(ids) - expected).max() < TOLERANCE[name]
        # What a text is after its first half matters, also to its first token.
        assert np.abs(gguf.embedding(ids[:48]) - expected).max() > 0.1


@each_encoder
def test_there_and_back(
    name: str, folders: dict[str, Path], files: dict[str, Path], backs: dict[str, Path], tmp_path: Path
) -> None:
    """The same bytes again, the same numbers in Transformers, the same tokens, the same pooling."""
    qformats.export(backs[name], tmp_path / "again.gguf", format="gguf:f32")
    assert (tmp_path / "again.gguf").read_bytes() == files[name].read_bytes()
    one, other = library(folders[name]), hf.tokenizer_json(backs[name])
    for text in PROMPTS:
        assert other.encode(text).ids == one.encode(text).ids
    ids = one.encode(PROMPTS[0]).ids
    given = [dict(hf.tokenizer(folder)("a ship", "a lamp")) for folder in (folders[name], backs[name])]
    assert given[0]["input_ids"] == given[1]["input_ids"]
    if name not in OTHER_CLASS:
        assert given[0] == given[1]
        assert 1 in given[0]["token_type_ids"]
    from transformers import AutoModel

    back = AutoModel.from_pretrained(backs[name], attn_implementation="eager").eval()
    original = hf.load(folders[name], "AutoModel")
    np.testing.assert_array_equal(states(back, ids), states(original, ids))
    modules, pooling = (
        [json.loads((folder / file).read_text()) for folder in (folders[name], backs[name])]
        for file in ("modules.json", "1_Pooling/config.json")
    )
    assert modules[0] == modules[1]
    assert pooling[1].items() <= pooling[0].items()


@each_encoder
def test_load_model_gives_transformers_class(
    name: str, folders: dict[str, Path], files: dict[str, Path]
) -> None:
    """From a folder and from a file, in which there is no pooler; packed weights give the values that they hold."""
    original, ids = hf.load(folders[name], "AutoModel"), library(folders[name]).encode(PROMPTS[0]).ids
    for source in (folders[name], files[name]):
        model = qformats.load_model(source, device="cpu")
        same = name not in OTHER_CLASS or source is folders[name]
        assert type(model).__name__ == (type(original).__name__ if same else "BertModel")
        assert np.abs(states(model, ids) - states(original, ids)).max() < 1e-5
    packed = qformats.load_model(folders[name], device="cpu", format="gguf:q8_0")
    assert packed.qformats_report.weights
    assert 0 < np.abs(states(packed, ids) - states(original, ids)).max() < 0.2


@pytest.mark.parametrize("command", ["generate", "chat", "serve"])
def test_commands_that_write_text_refuse(command: str, files: dict[str, Path]) -> None:
    more = ["Hello"] if command == "generate" else []
    with pytest.raises(UnsupportedModelError) as told:
        CliRunner().invoke(app, [command, str(files["bert"]), *more], catch_exceptions=False)
    found = "found BertModel, which makes embeddings and writes no text; expected a causal language model"
    assert found in str(told.value)


def test_heads_are_left_out_by_name(tmp_path: Path) -> None:
    """A model with the heads it was trained with, and the first names of its norms' tensors."""
    from safetensors.torch import load_file, save_file

    folder = build_encoder("bert", tmp_path / "bert", "BertForPreTraining")
    plain = tmp_path / "plain.gguf"
    report = qformats.export(folder, plain, format="gguf:f32")
    assert not [name for name in report.tensors if "cls" in name.name and name.format]
    tensors = load_file(folder / "model.safetensors")
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in tensors.items()
    }
    save_file(old, folder / "model.safetensors", {"format": "pt"})
    qformats.export(folder, tmp_path / "old.gguf", format="gguf:f32")
    assert (tmp_path / "old.gguf").read_bytes() == plain.read_bytes()


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("bert", "hidden_act", "relu"),
        ("bert", "is_decoder", True),
        ("bert", "position_embedding_type", "relative_key"),
        ("nomic_bert", "hidden_act", "gelu"),
        ("nomic_bert", "head_dim", 32),
        ("nomic_bert", "rotary_scaling_factor", 2),
        ("nomic_bert", "moe_every_n_layers", 2),
        ("nomic_bert", "rotary_emb_fraction", 0.5),
    ],
)
def test_what_llama_cpp_does_not_compute_is_refused(name: str, key: str, value: object) -> None:
    config = MODELS[name]["config"] | {key: value}
    with pytest.raises(UnsupportedModelError, match=key):
        Architecture.from_config(config)


def test_names_of_nomics_own_code_are_understood() -> None:
    """config.json as the hub's first files have it."""
    own = {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_inner": 96, "n_positions": 8192, "vocab_size": 570}
    more = {"layer_norm_epsilon": 1e-12, "rotary_emb_base": 1000, "activation_function": "swiglu"}
    given = {
        "model_type": "nomic_bert",
        "architectures": ["NomicBertModel"],
        "auto_map": {"AutoModel": "x.Y"},
    }
    ours = Architecture.from_config({**given, **own, **more, "causal": False, "rotary_emb_scale_base": None})
    expected = Architecture.from_config(MODELS["nomic_bert"]["config"] | {"max_position_embeddings": 2048})
    assert ours.metadata(name="m") == expected.metadata(name="m")


def test_a_file_without_the_key_is_causal_to_llama_cpp(files: dict[str, Path]) -> None:
    source = GGUFCheckpoint(files["bert"], {})
    metadata = {key: value for key, value in source.native.items() if key != "bert.attention.causal"}
    for given in (metadata, metadata | {"bert.attention.causal": boolean(True)}):
        with pytest.raises(UnsupportedModelError, match=r"bert\.attention\.causal"):
            Architecture.from_metadata(given, list(source.stored))


@pytest.mark.parametrize(
    ("part", "change", "told"),
    [
        ("normalizer", {"type": "Lowercase"}, "normalizer"),
        ("normalizer", {"type": "BertNormalizer", "handle_chinese_chars": False}, "handle_chinese_chars"),
        ("normalizer", {"type": "BertNormalizer", "clean_text": False}, "clean_text"),
        ("pre_tokenizer", {"type": "Whitespace"}, "pre_tokenizer"),
        ("model", {"continuing_subword_prefix": "@@"}, "continuing_subword_prefix"),
    ],
)
def test_other_ways_to_split_text_are_refused(
    part: str, change: dict[str, object], told: str, folders: dict[str, Path]
) -> None:
    content = json.loads((folders["bert"] / "tokenizer.json").read_text())
    content[part] = content[part] | change if part == "model" else change
    with pytest.raises(UnsupportedModelError, match=told):
        to_gguf({"tokenizer.json": json.dumps(content).encode()}, {})


def test_vocab_txt_says_the_same_as_tokenizer_json(folders: dict[str, Path]) -> None:
    folder = folders["bert-cased"]
    every = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
    content = {name: (folder / name).read_bytes() for name in every}
    with_json = to_gguf(content, {})
    del content["tokenizer.json"]
    plain = to_gguf(content, {})
    ends = {f"tokenizer.ggml.add_{role}_token" for role in ("bos", "eos", "sep")}
    assert {k: v for k, v in plain.items() if k not in ends} == {
        k: v for k, v in with_json.items() if k not in ends
    }
    with pytest.raises(CheckpointError, match=r"lacks '\[SEP\]'"):
        to_gguf({"vocab.txt": b"[UNK]\n[CLS]\n[PAD]\n[MASK]\n"}, {})


def test_older_files_without_marks_are_read(files: dict[str, Path]) -> None:
    """Bracketed tokens without a mark or a type, no roles but llama.cpp's own, and pieces without letters."""
    words = ["[PAD]", *(f"[unused{n}]" for n in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens = [*words, "\u2581ship", "s", ""]
    metadata = {
        key: value
        for key, value in GGUFCheckpoint(files["bert"], {}).native.items()
        if not key.startswith("tokenizer.")
    }
    from qformats_gguf.metadata import ValueType, array

    metadata["tokenizer.ggml.model"] = string("bert")
    metadata["tokenizer.ggml.tokens"] = array(ValueType.STRING, tokens)
    content = from_gguf(metadata)
    vocab = json.loads(content["tokenizer.json"])["model"]["vocab"]
    assert list(vocab) == [*words, "ship", "##s", "##"]
    settings = json.loads(content["tokenizer_config.json"])
    assert (settings["cls_token"], settings["sep_token"], settings["do_lower_case"]) == (
        "[CLS]",
        "[SEP]",
        True,
    )


def test_other_poolings_are_refused_and_other_modules_named(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["bert"], tmp_path / "bert")
    pooling = folder / "1_Pooling" / "config.json"
    given = json.loads(pooling.read_text())
    pooling.write_text(json.dumps(given | {"pooling_mode_max_tokens": True}))
    with pytest.raises(UnsupportedModelError, match="pooling_mode_cls_token and pooling_mode_max_tokens"):
        qformats.export(folder, tmp_path / "m.gguf", format="gguf:f32")
    pooling.write_text(json.dumps({"pooling_mode": "lasttoken"}))
    qformats.export(folder, tmp_path / "m.gguf", format="gguf:f32")
    assert qformats.open(tmp_path / "m.gguf").metadata["bert.pooling_type"] == 3
    modules = json.loads((folder / "modules.json").read_text())
    dense = {"idx": 3, "name": "3", "path": "3_Dense", "type": "sentence_transformers.models.Dense"}
    (folder / "modules.json").write_text(json.dumps([*modules, dense]))
    source = qformats.open(folder)
    assert any("modules.json names Dense, which is left out" in note for note in source.notes)
    assert "modules.json" not in source.tokenizer_files()
