"""Tiny tokenizers, trained on the spot, with the pre-tokenizers and files of real model families.

Each builder writes ``tokenizer.json`` and ``tokenizer_config.json`` as the family's published repositories
have them (older ones with ``special_tokens_map.json``, ``tokenizer.model``, ``added_tokens.json``).
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from models.text import CHATML, CORPUS

__all__ = ["ENCODING", "KINDS", "Special", "as_qwen", "build"]

Special = dict[str, int]
"""Ids of ``bos``, ``eos`` and, where there is one, ``pad``, as ``config.json`` names them; and ``size``."""

_CHAT = ("<|im_start|>", "<|im_end|>")
_END = "<|endoftext|>"
_MERGES = 260

# The patterns are what these families publish in tokenizer.json; a splitter is recognised by them.
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3_PATTERN = _WORDS + r"\p{N}{1,3}" + _REST
QWEN2_PATTERN = _WORDS + r"\p{N}" + _REST


def build(kind: str, folder: Path) -> Special:
    """Write the tokenizer `kind` (a key of `KINDS` or `ENCODING`) into `folder`; return its special ids and size."""
    folder.mkdir(parents=True, exist_ok=True)
    return (KINDS | ENCODING)[kind](folder)


def _gpt2(folder: Path) -> Special:
    from tokenizers import decoders, pre_tokenizers, processors

    tokenizer = _byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), first=())
    _add(tokenizer, [_END])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    end = tokenizer.token_to_id(_END)
    names = {"bos_token": _END, "eos_token": _END, "unk_token": _END}
    _write(folder, tokenizer, "GPT2Tokenizer", {**names, "add_prefix_space": False})
    _json(folder / "special_tokens_map.json", names)
    return {"bos": end, "eos": end, "size": tokenizer.get_vocab_size()}


def _smollm(folder: Path) -> Special:
    from tokenizers import decoders, pre_tokenizers

    splitter = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer = _byte_level(splitter, first=(_END, *_CHAT))
    _add(tokenizer, ["<note>"], special=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = {"bos_token": _CHAT[0], "eos_token": _CHAT[1], "pad_token": _CHAT[1], "unk_token": _END}
    _write(folder, tokenizer, "GPT2Tokenizer", {**names, "add_prefix_space": False, "chat_template": CHATML})
    _json(folder / "special_tokens_map.json", names | {"additional_special_tokens": list(_CHAT)})
    return {"bos": 1, "eos": 2, "pad": 2, "size": tokenizer.get_vocab_size()}


def _llama3(folder: Path) -> Special:
    from tokenizers import Tokenizer, decoders, processors

    trained = _byte_level(_split(LLAMA3_PATTERN), first=())
    state = json.loads(trained.to_str())
    # A word that no merge leads to: only ignore_merges finds it.
    state["model"]["vocab"]["Ġqformats"] = len(state["model"]["vocab"])
    state["model"]["ignore_merges"] = True
    tokenizer: Any = Tokenizer.from_str(json.dumps(state))
    begin, end, turn = "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"
    _add(tokenizer, [begin, end, "<|start_header_id|>", "<|end_header_id|>", turn])
    ids = {name: tokenizer.token_to_id(name) for name in (begin, end)}
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{begin} $A", pair=f"{begin} $A {begin}:1 $B:1", special_tokens=[(begin, ids[begin])]
            ),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    template = CHATML.replace("<|im_start|>", "<|start_header_id|>").replace("<|im_end|>", turn)
    config = {"bos_token": begin, "eos_token": end, "chat_template": template}
    _write(folder, tokenizer, "PreTrainedTokenizerFast", config)
    _json(folder / "special_tokens_map.json", {"bos_token": begin, "eos_token": end})
    return {"bos": ids[begin], "eos": ids[end], "size": tokenizer.get_vocab_size()}


def _qwen2(folder: Path) -> Special:
    from tokenizers import decoders, normalizers, processors

    tokenizer = _byte_level(_split(QWEN2_PATTERN), first=())
    tokenizer.normalizer = normalizers.NFC()
    _add(tokenizer, [_END, *_CHAT])
    _add(tokenizer, ["<tool_call>", "</tool_call>"], special=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    end, turn = tokenizer.token_to_id(_END), tokenizer.token_to_id(_CHAT[1])
    config = {
        "bos_token": None,
        "eos_token": _CHAT[1],
        "pad_token": _END,
        "unk_token": None,
        "add_bos_token": False,
    }
    _write(folder, tokenizer, "Qwen2Tokenizer", config)
    # Newer repositories keep the template beside the configuration.
    (folder / "chat_template.jinja").write_text(CHATML)
    return {"bos": end, "eos": turn, "pad": end, "size": tokenizer.get_vocab_size()}


def as_qwen(folder: Path) -> dict[bytes, int]:
    """Keep the byte-level tokenizer in `folder` as Qwen 1 did, as ranks of tiktoken, which are returned."""
    from tokenizers import Tokenizer

    trained = Tokenizer.from_file(str(folder / "tokenizer.json"))
    letters = {spelled: byte for byte, spelled in enumerate(_spelled_bytes())}
    added = {token.content for token in trained.get_added_tokens_decoder().values()}
    words = sorted((index, text) for text, index in trained.get_vocab().items() if text not in added)
    ranks = {bytes(letters[letter] for letter in text): rank for rank, (_, text) in enumerate(words)}
    lines = (base64.b64encode(token) + f" {rank}".encode() for token, rank in ranks.items())
    (folder / "qwen.tiktoken").write_bytes(b"\n".join(lines) + b"\n")
    for file in ("tokenizer.json", "chat_template.jinja"):
        (folder / file).unlink(missing_ok=True)
    code = {"AutoTokenizer": ["tokenization_qwen.QWenTokenizer", None]}
    config = {"model_max_length": 8192, "tokenizer_class": "QWenTokenizer", "auto_map": code}
    _json(folder / "tokenizer_config.json", config)
    return ranks


def _spelled_bytes() -> list[str]:
    """What byte-level tokenizers write for each byte."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(plain)]
    found = {byte: chr(byte) for byte in plain} | {byte: chr(0x100 + at) for at, byte in enumerate(others)}
    return [found[byte] for byte in range(256)]


def _llama2(folder: Path) -> Special:
    """A SentencePiece model with byte fallback, and the tokenizer.json that Transformers makes of it."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    model = _sentencepiece()
    (folder / "tokenizer.model").write_bytes(model)
    pieces = _pieces(model)
    vocab = {piece: i for i, (piece, _score) in enumerate(pieces)}
    bpe = models.BPE(
        vocab=vocab,
        merges=_merges(pieces),
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
        dropout=None,
    )
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in ("<unk>", "<s>", "</s>")])
    _add(tokenizer, list(_CHAT))
    _add(tokenizer, ["<note>"], special=False)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    flags = {"add_bos_token": True, "add_eos_token": False, "legacy": False, "sp_model_kwargs": {}}
    _write(
        folder, tokenizer, "LlamaTokenizer", {**names, **flags, "pad_token": None, "chat_template": CHATML}
    )
    _json(folder / "special_tokens_map.json", names)
    added = {t: tokenizer.token_to_id(t) for t in (*_CHAT, "<note>")}
    _json(folder / "added_tokens.json", added)
    return {"bos": 1, "eos": 2, "size": tokenizer.get_vocab_size()}


def _wordpiece(folder: Path, *, lowercase: bool = True) -> Special:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    roles = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    tokenizer: Any = Tokenizer(models.WordPiece(unk_token=roles["unk"]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    # The library's trainer draws its pieces in another order each time.
    counts: Counter[str] = Counter()
    for line in CORPUS.splitlines():
        text = tokenizer.normalizer.normalize_str(line)
        counts.update(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text))
    letters = sorted({letter for word in counts for letter in word})
    endings = Counter(word[at:] for word in counts for at in range(1, len(word) - 1))
    pieces = [
        *roles.values(),
        *("[unused0]", "[unused1]", *letters, *(f"##{letter}" for letter in letters)),
        *(f"##{ending}" for ending in sorted(endings) if endings[ending] > 2),
        *(word for word in sorted(counts) if counts[word] > 1 and len(word) > 1),
    ]
    tokenizer.model = models.WordPiece(
        vocab={piece: number for number, piece in enumerate(pieces)}, unk_token=roles["unk"]
    )
    _add(tokenizer, list(roles.values()))
    ids = {text: tokenizer.token_to_id(text) for text in roles.values()}
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(text, ids[text]) for text in ("[CLS]", "[SEP]")],
    )
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    # As files of embedding models have it.
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=16, pad_token="[PAD]")
    names = {f"{role}_token": text for role, text in roles.items()}
    more = {"do_lower_case": lowercase, "strip_accents": None, "tokenize_chinese_chars": True}
    _write(folder, tokenizer, "BertTokenizer", {**names, **more, "clean_up_tokenization_spaces": True})
    _json(folder / "special_tokens_map.json", names)
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces), encoding="utf-8")
    return {"pad": ids["[PAD]"], "size": tokenizer.get_vocab_size()}


def _roberta(folder: Path) -> Special:
    from tokenizers import decoders, pre_tokenizers, processors

    roles = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "mask": "<mask>"}
    tokenizer = _byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), first=tuple(roles.values()))
    ids = {text: tokenizer.token_to_id(text) for text in roles.values()}
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", ids["</s>"]), ("<s>", ids["<s>"]), add_prefix_space=False
    )
    tokenizer.decoder = decoders.ByteLevel()
    names = {f"{role}_token": text for role, text in roles.items()} | {
        "cls_token": "<s>",
        "sep_token": "</s>",
    }
    _write(folder, tokenizer, "RobertaTokenizer", {**names, "add_prefix_space": False})
    _json(folder / "special_tokens_map.json", names)
    return {"pad": ids["<pad>"], "size": tokenizer.get_vocab_size()}


def _unigram(folder: Path) -> Special:
    """XLM-RoBERTa's: pieces of SentencePiece behind four tokens of its own, and the table that normalizes Unicode."""
    from tokenizers import (
        AddedToken,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
    )

    from qformats.vocabularies import SPACE, Piece, PieceType, parse, serialize

    # Of its trainer only the table is the same on every machine.
    table = _sentencepiece(
        model_type="unigram",
        vocab_size=150,
        byte_fallback=False,
        normalization_rule_name="nmt_nfkc",
        remove_extra_whitespaces=True,
    )
    model = parse(table, "sentencepiece.bpe.model")
    words = Counter(
        SPACE + word for word in normalizers.Precompiled(model.charsmap).normalize_str(CORPUS).split()
    )
    counts = Counter(
        word[start:end]
        for word, times in words.items()
        for start in range(len(word))
        for end in range(start + 1, min(start + 7, len(word) + 1))
        for _ in range(times)
    )
    common = [text for text in sorted(counts) if counts[text] > 3 or len(text) == 1]
    scored = [(text, float(np.float32(math.log(counts[text] / 9000)))) for text in common]
    model.pieces[3:] = [Piece(text, score, PieceType.NORMAL) for text, score in scored if text != "\u6570"]
    (folder / "sentencepiece.bpe.model").write_bytes(serialize(model))
    own = [(text, 0.0) for text in ("<s>", "<pad>", "</s>", "<unk>")]
    pieces = [*own, *((piece.text, piece.score) for piece in model.pieces[3:]), ("<mask>", 0.0)]
    tokenizer: Any = Tokenizer(models.Unigram(pieces, unk_id=3, byte_fallback=False))
    tokenizer.normalizer = normalizers.Precompiled(model.charsmap)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="\u2581")]
    )
    tokenizer.decoder = decoders.Metaspace(replacement="\u2581")
    _add(tokenizer, [text for text, _ in own])
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, normalized=False, special=True)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    roles = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "mask": "<mask>"}
    names = {f"{role}_token": text for role, text in (roles | {"cls": "<s>", "sep": "</s>"}).items()}
    _write(folder, tokenizer, "XLMRobertaTokenizer", names)
    _json(folder / "special_tokens_map.json", names)
    return {"pad": 1, "size": tokenizer.get_vocab_size()}


def _wordpiece_cased(folder: Path) -> Special:
    return _wordpiece(folder, lowercase=False)


KINDS: dict[str, Callable[[Path], Special]] = {
    "gpt-2": _gpt2,
    "smollm": _smollm,
    "llama-bpe": _llama3,
    "qwen2": _qwen2,
    "llama-spm": _llama2,
}
ENCODING: dict[str, Callable[[Path], Special]] = {
    "wordpiece": _wordpiece,
    "wordpiece-cased": _wordpiece_cased,
    "roberta": _roberta,
    "unigram": _unigram,
}
"""Those of models that make embeddings, which have no ends."""


def _split(pattern: str) -> Any:
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=False),
        ]
    )


def _byte_level(splitter: Any, first: tuple[str, ...]) -> Any:
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = splitter
    trainer = trainers.BpeTrainer(
        vocab_size=len(first) + 256 + _MERGES,
        special_tokens=[AddedToken(token, normalized=False, special=True) for token in first],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([CORPUS], trainer)
    return tokenizer


def _add(tokenizer: Any, tokens: list[str], special: bool = True) -> None:
    from tokenizers import AddedToken

    added = [AddedToken(token, normalized=False, special=special) for token in tokens]
    (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(added)


def _sentencepiece(**changes: Any) -> bytes:
    import sentencepiece

    written = io.BytesIO()
    usual = dict(
        model_type="bpe",
        vocab_size=640,
        byte_fallback=True,
        character_coverage=0.99,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for line in CORPUS.splitlines() if line),
        model_writer=written,
        **usual | changes,
    )
    return written.getvalue()


def _pieces(model: bytes) -> list[tuple[str, float]]:
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    return [(processor.id_to_piece(i), processor.get_score(i)) for i in range(processor.get_piece_size())]


def _merges(pieces: list[tuple[str, float]]) -> list[tuple[str, str]]:
    # A SentencePiece BPE model stores no merges: two pieces merge if together they are one, best score first.
    known = {piece: i for i, (piece, _score) in enumerate(pieces)}
    found = [
        (-score, known[piece[:cut]], known[piece[cut:]], piece[:cut], piece[cut:])
        for piece, score in pieces[3 + 256 :]
        for cut in range(1, len(piece))
        if piece[:cut] in known and piece[cut:] in known
    ]
    return [(left, right) for *_rank, left, right in sorted(found)]


def _write(folder: Path, tokenizer: Any, name: str, config: dict[str, Any]) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    added = json.loads(tokenizer.to_str())["added_tokens"]
    decoder = {str(token.pop("id")): token for token in added}
    common = {
        "added_tokens_decoder": decoder,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 256,
        "tokenizer_class": name,
    }
    _json(folder / "tokenizer_config.json", config | common)


def _json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
