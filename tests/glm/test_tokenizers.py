"""The tokenizers of ChatGLM-6B, ChatGLM2, ChatGLM3, GLM-4 and GLM-130B, from their vocabularies and without their code.

Goldens are those of upstream's tokenizer classes; see ``tests/golden/glm_tokenizers``.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiktoken
from models import chatglm, glm
from models.text import CORPUS, PROMPTS
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import qformats
from qformats.errors import CheckpointError, UnsupportedModelError
from qformats.folder.chat_render import render
from qformats.runtime import tokenizer
from qformats.vocabularies import PieceType, SentencePieceModel, parse, serialize
from qformats_glm.tokenizers import completed

GOLDEN = Path(__file__).parents[1] / "golden" / "glm_tokenizers"
ICE, SPM = (GOLDEN / "ice_text.model").read_bytes(), (GOLDEN / "tokenizer.model").read_bytes()
FIRST = {"model_type": "chatglm", "inner_hidden_size": 4, "vocab_size": 768}
SECOND = {"model_type": "chatglm", "ffn_hidden_size": 4}
LARGE = {"model_type": "glm-130b"}


def golden(name):
    return json.loads((GOLDEN / f"{name}.json").read_text())


def base_of_icetk():
    """GLM-130B's file, which icetk completes when it is loaded."""
    model = parse(ICE, "ice_text.model")
    pieces = model.pieces[:400]
    assert not any(piece.type == PieceType.BYTE for piece in pieces)
    return serialize(
        SentencePieceModel(
            pieces,
            model_type=model.model_type,
            remove_extra_whitespaces=True,
            charsmap=model.charsmap,
            ids={"unk": 0, "bos": 1, "eos": 2},
        )
    )


def load(files, config, folder, code=None):
    for name, data in completed(files, config, folder, code or {}).items():
        (folder / name).write_bytes(data)
    return AutoTokenizer.from_pretrained(folder)


def settings(**values):
    return {"tokenizer_config.json": json.dumps(values).encode()}


@pytest.fixture
def loaded(tmp_path):
    def make(name):
        files, config = {
            "chatglm": ({"ice_text.model": ICE}, FIRST),
            "chatglm_20_images": ({"ice_text.model": ICE, **settings(num_image_tokens=20)}, FIRST),
            "glm130b": ({"ice_text.model": base_of_icetk()}, LARGE),
            "chatglm2": ({"tokenizer.model": SPM}, SECOND),
            "chatglm3": ({"tokenizer.model": SPM, **settings(name_or_path="THUDM/chatglm3-6b")}, SECOND),
        }[name]
        return load(files, config, tmp_path)

    return make


def messages(entry):
    turns = [text for turn in entry["history"] for text in turn] + [entry["query"]]
    return [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(turns)]


@pytest.mark.parametrize("name", ["chatglm", "chatglm_20_images", "glm130b", "chatglm2"])
def test_ids_and_texts_are_upstreams(loaded, name):
    made = loaded(name)
    # The names of special tokens are found in a text, as everywhere in Transformers, unless it is told not to.
    for entry in golden(name)["texts"]:
        if entry["text"] == "<sop>" and name != "chatglm2":
            # This small vocabulary has no "<", so that the whole name comes before bytes.
            continue
        ids = made(entry["text"], add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert ids == entry["ids"], entry["text"]
        if "model_input" in entry:
            assert made(entry["text"], split_special_tokens=True)["input_ids"] == entry["model_input"]
        assert made.decode(entry["ids"], skip_special_tokens=True) == entry["decoded"]


@pytest.mark.parametrize("name", ["chatglm", "chatglm_20_images", "chatglm2"])
def test_chats_are_upstreams(loaded, name):
    made = loaded(name)
    for entry in golden(name)["prompts"]:
        chat = messages(entry)
        text = made.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        assert text.replace("[gMASK]<sop>", "") == entry["prompt"]
        found = made.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
        assert list(found) == entry["model_input"]
        assert render(made.chat_template, chat, variables={}, source="model") == text


def test_messages_of_chatglm3_are_encoded_apart(loaded):
    made, chat = loaded("chatglm3"), golden("chatglm2")["v3_chat_own_code"]
    said = [{"role": role, "content": content} for role, content in chat["messages"]]
    found = made.apply_chat_template(said, add_generation_prompt=True)["input_ids"]
    assert list(found) == chat["model_input"]


@pytest.mark.parametrize("name", ["chatglm", "chatglm2"])
def test_roles_that_a_model_does_not_know_are_refused(loaded, name):
    made = loaded(name)
    with pytest.raises(Exception, match="users and assistants in turn; message 1 is of system"):
        made.apply_chat_template([{"role": "system", "content": "x"}, {"role": "user", "content": "y"}])


@pytest.mark.parametrize("name", ["chatglm", "glm130b", "chatglm2", "chatglm3"])
def test_words_are_no_special_tokens(loaded, name):
    made = loaded(name)
    for text in ("The philosophy of a soprano", "sop eop", "image 7"):
        ids = made(text, add_special_tokens=False)["input_ids"]
        assert not set(ids) & set(made.all_special_ids)
        assert made.decode(ids) == text


def test_roles(loaded):
    for name, expected in (
        ("chatglm", {"bos": 404, "eos": 405, "pad": 3, "unk": 0}),
        ("glm130b", {"bos": 20404, "eos": 20405, "pad": 20003, "unk": 20000}),
        ("chatglm2", {"bos": 1, "eos": 2, "pad": 0, "unk": 0}),
    ):
        made = loaded(name)
        assert {role: getattr(made, f"{role}_token_id") for role in expected} == expected
        assert made.padding_side == "left"


def test_ends_of_answers(tmp_path):
    def ends(files, config):
        return json.loads(completed(files, config, "m", {})["generation_config.json"])["eos_token_id"]

    spm = {"tokenizer.model": SPM}
    assert ends(spm, SECOND) == 2
    assert ends(spm | settings(name_or_path="chatglm3-6b"), SECOND) == [2, 646, 648]
    assert ends({"ice_text.model": ICE}, FIRST) == 405
    own = {"generation_config.json": b'{"eos_token_id": 7}'}
    assert completed(spm | own, SECOND, "m", {})["generation_config.json"] == own["generation_config.json"]


def test_a_template_of_the_folder_stays(tmp_path):
    said = "{% for m in messages %}[gMASK]sop<|{{ m['role'] }}|>\n {{ m['content'] }}{% endfor %}"
    user = {"646": {"content": "<|user|>", "special": False}}
    own = settings(chat_template=said, added_tokens_decoder=user)
    made = load({"tokenizer.model": SPM, **own}, SECOND, tmp_path)
    found = made.apply_chat_template([{"role": "user", "content": "Hello"}])["input_ids"]
    assert list(found) == [641, 643, 646, 511, 13, 447, 512, 285, 514]


def test_tokens_of_a_fine_tune_stay(tmp_path):
    entry = {"content": "<|tool|>", "special": True}
    made = load({"tokenizer.model": SPM, **settings(added_tokens_decoder={"650": entry})}, SECOND, tmp_path)
    assert made("a<|tool|>", add_special_tokens=False)["input_ids"][-1] == 650
    entry = {"content": "<|tool|>", "special": False}
    made = load({"ice_text.model": ICE, **settings(added_tokens_decoder={"766": entry})}, FIRST, tmp_path)
    assert made("a<|tool|>", add_special_tokens=False)["input_ids"][-1] == 766


# GLM-4


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """A vocabulary in tiktoken's form, whose ranks are the ids of a byte-level tokenizer."""
    folder = tmp_path_factory.mktemp("glm4")
    glm.tokenizer("glm4", folder)
    made = json.loads((folder / "tokenizer.json").read_text())
    letters = {letter: byte for byte, letter in enumerate(_byte_letters())}
    pieces = sorted(made["model"]["vocab"].items(), key=lambda item: item[1])
    return {bytes(letters[letter] for letter in text): index for text, index in pieces}


def _byte_letters():
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    table = bytes_to_unicode()
    return [table[byte] for byte in range(256)]


def as_file(ranks):
    return b"".join(base64.b64encode(token) + b" %d\n" % index for token, index in ranks.items())


def test_glm4_reads_the_ids_of_tiktoken(ranks, tmp_path):
    made = load({"tokenizer.model": as_file(ranks)}, SECOND, tmp_path)
    oracle = tiktoken.Encoding("glm4", pat_str=glm._GLM4_PATTERN, mergeable_ranks=ranks, special_tokens={})
    for text in [
        *CORPUS.splitlines(),
        *PROMPTS,
        CORPUS,
        "a  b\n\n c\t",
        "It's 12345!",
        "你好 qformats",
        " ",
        "",
    ]:
        assert made(text, add_special_tokens=False)["input_ids"] == oracle.encode(text), text
        assert made.decode(oracle.encode(text)) == text
    size = len(ranks)
    assert made("a")["input_ids"][:2] == [size + 2, size + 4]
    chat = made.apply_chat_template([{"role": "user", "content": "Hi"}], add_generation_prompt=True)
    assert list(chat["input_ids"]) == [size + 2, size + 4, size + 7, *oracle.encode("\nHi"), size + 8]


def test_glm4_becomes_gguf(ranks, tmp_path):
    from qformats_gguf.tokenizer import to_gguf

    files = completed({"tokenizer.model": as_file(ranks)}, SECOND, tmp_path, {})
    metadata = to_gguf(files, {"model_type": "glm", "vocab_size": len(ranks) + 20})
    assert metadata["tokenizer.ggml.pre"].data in ("glm4", "chatglm-bpe")
    assert list(metadata["tokenizer.ggml.tokens"].data)[len(ranks) + 2] == "[gMASK]"


# Folders


@pytest.fixture
def folder(tmp_path):
    def make(kind, **how):
        made = chatglm.model(vocab_size=glm.SIZE)
        path = tmp_path / kind
        chatglm.save(made, path, **how)
        glm.tokenizer(kind, path)
        return path

    return make


def read(made, text):
    return made(text, split_special_tokens=True)["input_ids"]


@pytest.mark.parametrize("kind", ["chatglm2", "chatglm3"])
def test_every_way_reads_the_same_ids(folder, kind, tmp_path):
    import sentencepiece

    source = folder(kind, bits=4)
    library = sentencepiece.SentencePieceProcessor(model_file=str(source / "tokenizer.model"))
    texts = [*PROMPTS, "The philosophy of a soprano", "你好"]
    expected = [[glm.PIECES + 1, glm.PIECES + 3, *library.encode(text)] for text in texts]
    qformats.export(source, tmp_path / "native", format="dense:f16")
    assert [read(tokenizer(qformats.open(source)), text) for text in texts] == expected
    native = AutoTokenizer.from_pretrained(tmp_path / "native")
    assert [read(native, text) for text in texts] == expected
    qformats.export(source, tmp_path / "m.gguf", format="gguf:q8_0")
    back = tokenizer(qformats.open(tmp_path / "m.gguf"))
    # llama.cpp adds no prefix of two tokens.
    assert [read(back, text) for text in texts] == [ids[2:] for ids in expected]


@pytest.mark.parametrize("kind", ["chatglm2", "chatglm3"])
def test_windows_of_text_begin_as_every_text_does(folder, kind):
    from qformats.comparing.text import Tokenizer

    assert Tokenizer(qformats.open(folder(kind, bits=4))).beginning == [glm.PIECES + 1, glm.PIECES + 3]


@pytest.mark.parametrize(("kind", "spoken"), [("chatglm2", "[Round 1]"), ("chatglm3", "<|user|>")])
def test_gguf_has_the_template_in_its_own_names(folder, kind, spoken, tmp_path):
    from qformats_gguf.tokenizer.templates import TEMPLATE

    report = qformats.export(folder(kind, bits=4), tmp_path / "m.gguf", format="gguf:q8_0")
    metadata = qformats.open(report.target).native
    template = metadata[TEMPLATE].data
    text = render(template, [{"role": "user", "content": "Hi"}], variables={}, source="m")
    assert text.startswith("[gMASK]sop")
    assert spoken in text
    assert "sop" in list(metadata["tokenizer.ggml.tokens"].data)
    qformats.export(report.target, tmp_path / "back", format="dense:f16")
    back = AutoTokenizer.from_pretrained(tmp_path / "back")
    chat = back.apply_chat_template([{"role": "user", "content": "Hi"}])["input_ids"]
    assert list(chat)[:2] == [glm.PIECES + 1, glm.PIECES + 3]


def test_a_repository_keeps_its_own_files(folder, tmp_path):
    source = folder("chatglm3", bits=4)
    qformats.export(source, tmp_path / "int8", format="glm:int8", container="chatglm")
    for name in ("tokenizer.model", "tokenizer_config.json"):
        assert (tmp_path / "int8" / name).read_bytes() == (source / name).read_bytes()
    assert not (tmp_path / "int8" / "tokenizer.json").exists()


def test_text_in_and_out_with_no_other_library(folder):
    source = folder("chatglm2", bits=4)
    program = (
        "import sys\n"
        "for name in ('sentencepiece', 'google.protobuf', 'tiktoken'): sys.modules[name] = None\n"
        "from qformats.cli import main\n"
        f"sys.argv = ['qformats', 'generate', {str(source)!r}, 'Hi', '--chat', '-n', '3']\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_vocabulary_of_an_unknown_class_is_refused(folder, tmp_path):
    source = folder("chatglm2")
    qformats.export(source, tmp_path / "native", format="dense:f16")
    (tmp_path / "native" / "tokenizer.json").unlink()
    (tmp_path / "native" / "tokenizer_config.json").write_text('{"tokenizer_class": "WonderTokenizer"}')
    with pytest.raises(UnsupportedModelError, match="WonderTokenizer"):
        tokenizer(qformats.open(tmp_path / "native"))


# Files that are not what they should be


@pytest.mark.parametrize(
    ("files", "config", "error", "told"),
    [
        ({"ice_text.model": SPM}, FIRST, UnsupportedModelError, "bpe"),
        ({"tokenizer.model": ICE}, SECOND, UnsupportedModelError, "unigram"),
        ({"tokenizer.model": SPM}, FIRST, UnsupportedModelError, "ice_text.model"),
        ({"ice_text.model": ICE[:5000]}, FIRST, CheckpointError, "not readable"),
        ({"tokenizer.model": b"YQ== 0\nYg== 1\n"}, SECOND, CheckpointError, "no token for byte 0"),
        ({"tokenizer.model": b"YQ== 0\nYQ== 1\n"}, SECOND, CheckpointError, "each token once"),
        ({"tokenizer.model": b"YQ== 0\n!! 1\n"}, SECOND, CheckpointError, "line 2"),
        ({"tokenizer.model": SPM, "tokenizer_config.json": b"[]"}, SECOND, CheckpointError, "a JSON list"),
        ({"tokenizer.model": SPM, "tokenizer_config.json": b"{"}, SECOND, CheckpointError, "JSON"),
        (
            {"tokenizer.model": SPM, **settings(added_tokens_decoder={"x": {}})},
            SECOND,
            CheckpointError,
            "entry 'x'",
        ),
        (
            {"ice_text.model": ICE, **settings(num_image_tokens=-1)},
            FIRST,
            CheckpointError,
            "num_image_tokens",
        ),
        (
            {"ice_text.model": ICE, **settings(num_image_tokens=1 << 40)},
            FIRST,
            CheckpointError,
            "num_image_tokens",
        ),
    ],
)
def test_damage_is_named(files, config, error, told):
    with pytest.raises(error, match=told):
        completed(files, config, "model", {})


def test_a_tokenizer_json_is_believed(loaded, tmp_path):
    loaded("chatglm2")
    made = (tmp_path / "tokenizer.json").read_bytes()
    files = {"tokenizer.model": b"anything", "tokenizer.json": made}
    assert completed(files, SECOND, "model", {}) == files
    assert isinstance(PreTrainedTokenizerFast.from_pretrained(tmp_path), PreTrainedTokenizerFast)
