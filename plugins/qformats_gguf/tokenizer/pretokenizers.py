r"""How byte-level BPE models split text into words before merging: one table, read in both directions.

A GGUF file names the splitting (``tokenizer.ggml.pre``); a ``tokenizer.json`` defines it. Each `Splitter` here
is such a definition, and each `PreTokenizer` a name that llama.cpp's loader accepts, with whatever else
the loader concludes from the name. Several names share one splitter.

Where llama.cpp's regular expressions only approximate a model's own (tekken, gpt-4o, tiny_aya, youtu, whose
letter classes its engine lacks; falcon, which goes on splitting after bytes became characters), the model's own
definition stands here, since the model was trained with it.

Unicode normalization is not part of a name: llama.cpp applies none, though models of some families (Qwen2,
Command-R, OLMo) bring text into form NFC first. It differs only for text in decomposed form.

Sources: ggml-org/llama.cpp:src/llama-vocab.cpp (names, flags, expressions), conversion/base.py;
``pre_tokenizer`` sections of the models' published tokenizer.json files.
"""

# The expressions hold full-width punctuation on purpose.
# ruff: noqa: RUF001
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["ACCEPTED", "BY_NAME", "DEFAULT", "PRE_TOKENIZERS", "SPLITTERS", "PreTokenizer", "Splitter"]

Step = Mapping[str, Any]
DEFAULT = "default"


def _split(pattern: str) -> Step:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _digits(*, individual: bool) -> Step:
    return {"type": "Digits", "individual_digits": individual}


def _byte_level(*, use_regex: bool) -> Step:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


# ByteLevel's own expression is the one of GPT-2.
_GPT2 = _byte_level(use_regex=True)
_BYTES = _byte_level(use_regex=False)

_ENGLISH = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_LEAD = r"[^\r\n\p{L}\p{N}]?"
_CASED_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _words(digits: str, english: str = _ENGLISH + "|") -> str:
    return rf"{english}{_LEAD}\p{{L}}+|{digits}{_TAIL}"


def _cased_words(digits: str, suffix: str = "") -> str:
    return (
        rf"{_LEAD}[{_UPPER}]*[{_LOWER}]+{suffix}|{_LEAD}[{_UPPER}]+[{_LOWER}]*{suffix}|{digits}{_CASED_TAIL}"
    )


_UP_TO_3, _ONE = r"\p{N}{1,3}", r"\p{N}"
_GPT4O = _cased_words(_UP_TO_3, f"{_ENGLISH}?")
_BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"
_CJK = r"[一-龥぀-ゟ゠-ヿ]+"
_CJK_KOREAN = "[一-龥\u0800-一가-\ud7ff]+"
_ASCII_PUNCTUATION = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
_DEEPSEEK_WORDS = rf"{_ASCII_PUNCTUATION}|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+"
# Letters of the scripts with upper and lower case, as DeepSeek-LLM lists them (code points, hexadecimal).
_CASED_RANGES = """
    B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376 377 37B-37D 37F 386 388-38A 38C
    38E-3A1 3A3-3F5 3F7-481 48A-52F 531-556 10A0-10C5 13A0-13F5 13F8-13FD 1C90-1CBA 1CBD-1CBF
    1D00-1D2B 1D6B-1D77 1D79-1D9A 1E00-1F15 1F18-1F1D 1F20-1F45 1F48-1F4D 1F50-1F57 1F59 1F5B 1F5D
    1F5F-1F7D 1F80-1FB4 1FB6-1FBC 1FBE 1FC2-1FC4 1FC6-1FCC 1FD0-1FD3 1FD6-1FDB 1FE0-1FEC 1FF2-1FF4
    1FF6-1FFC 2102 2107 210A-2113 2115 2119-211D 2124 2126 2128 212A-212D 212F-2134 2139 213C-213F
    2145-2149 214E 2183 2184 2C00-2C7B 2C7E-2CE4 2CEB-2CEE 2CF2 2CF3 A640-A66D A680-A69B A722-A76F
    A771-A787 A78B-A78E AB70-ABBF FB00-FB06 FB13-FB17 FF21-FF3A FF41-FF5A 10400-1044F 104B0-104D3
    104D8-104FB 10C80-10CB2 10CC0-10CF2 118A0-118DF 1E900-1E943
"""
_CASED_LETTERS = r"\s?[A-Za-z{}]+".format(
    "".join("-".join(chr(int(point, 16)) for point in item.split("-")) for item in _CASED_RANGES.split())
)
_DEEPSEEK_LLM = (
    _split(r"[\r\n]"),
    _split(_CASED_LETTERS),
    _split(r"\s?[!-/:-~！-／：-～‘-‟　-。]+"),
    _split(r"\s+$"),
    _split(_CJK_KOREAN),
)
_YOUTU_CJK = r"[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+"
_CASCADE = "".join(rf"\s{{{n}}}(?!\S)|" for n in (512, 256, 128, 64, 32, 16, 8, 4))


@dataclass(frozen=True)
class Splitter:
    """One way of splitting text into words.

    Attributes
    ----------
    steps : tuple of mapping
        The ``pre_tokenizer`` steps of tokenizer.json; this is the definition that is written.
    also : tuple of tuple of mapping
        Other definitions with the same effect.
    """

    steps: tuple[Step, ...]
    also: tuple[tuple[Step, ...], ...] = ()


SPLITTERS: Mapping[str, Splitter] = {
    "gpt-2": Splitter((_GPT2,)),
    "digits": Splitter((_digits(individual=True), _GPT2)),
    "cl100k": Splitter((_split(_words(_UP_TO_3)), _BYTES)),
    "qwen2": Splitter((_split(_words(_ONE)), _BYTES)),
    "qwen35": Splitter(
        (
            _split(
                rf"{_ENGLISH}|{_LEAD}[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*"
                r"|\s*[\r\n]+|\s+(?!\S)|\s+"
            ),
            _BYTES,
        )
    ),
    "ufakzeka": Splitter((_split(_words(_ONE, "")), _BYTES)),
    "seed-coder": Splitter(
        (
            _split(
                rf"{_ENGLISH}|{_LEAD}\p{{L}}+|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+"
                r"|\s*[\r\n]+|\s+(?!\S)|\s+"
            ),
            _BYTES,
        )
    ),
    "jais-2": Splitter(
        (
            _split(
                rf"{_ENGLISH}|{_LEAD}\p{{L}}+|{_UP_TO_3}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|"
                rf"{_CASCADE}\s{{1,2}}(?!\S)|\s{{1}}"
            ),
            _BYTES,
        )
    ),
    "exaone-moe": Splitter(
        (
            _split(
                rf"{_ENGLISH}|{_LEAD}(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
                r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
            ),
            _BYTES,
        )
    ),
    "minicpm5": Splitter((_split(_UP_TO_3), _split(_words(r"\p{N}+")), _BYTES)),
    "laguna": Splitter((_split(r"[^\n]+|[\n]+"), _split(_words(_ONE)), _BYTES)),
    "gpt-4o": Splitter((_split(_GPT4O), _BYTES)),
    "tekken": Splitter((_split(_cased_words(_ONE)), _BYTES)),
    "tiny_aya": Splitter((_split(r"\d{1,3}(?=(?:\d{3})*\b)"), _split(_GPT4O), _BYTES)),
    "youtu": Splitter((_split(_YOUTU_CJK), _split(_cased_words(_ONE, f"{_ENGLISH}?")), _BYTES)),
    "falcon": Splitter(
        (
            {"type": "Punctuation", "behavior": "Contiguous"},
            _GPT2,
            _digits(individual=False),
            _split("[0-9][0-9][0-9]"),
        )
    ),
    # Names no model: what the loader does for files older than the key.
    DEFAULT: Splitter(
        (
            _split(r"[\p{P}\$\+<=>\^~\|]+"),
            _split(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"),
            _split(r"\p{N}+"),
            _split("[0-9][0-9][0-9]"),
            _BYTES,
        )
    ),
    "bloom": Splitter((_split(_BLOOM), _BYTES)),
    "viking": Splitter((_split(_BLOOM), _digits(individual=True), _BYTES)),
    # The models' own last step is single digits; llama.cpp's is whole numbers, and no merge joins digits.
    "deepseek-llm": Splitter(
        (*_DEEPSEEK_LLM, _split(r"\p{N}+"), _BYTES), also=((*_DEEPSEEK_LLM, _split(_ONE), _BYTES),)
    ),
    "deepseek-coder": Splitter(
        (
            _split(r"[\r\n]"),
            _split(r"\s?\p{L}+"),
            _split(r"\s?\p{P}+"),
            _split(_CJK_KOREAN),
            _digits(individual=True),
            _BYTES,
        )
    ),
    "deepseek-v3": Splitter(
        (
            _split(_UP_TO_3),
            _split(_CJK),
            _split(rf"{_DEEPSEEK_WORDS}[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"),
            _BYTES,
        )
    ),
    "spark2_5": Splitter(
        (
            _split(_UP_TO_3),
            _split(_CJK),
            _split(rf"{_DEEPSEEK_WORDS}|[\r\n]|\s+(?!\S)|\s+"),
            _split(_ONE),
            _BYTES,
        )
    ),
}
"""Definitions by key; the key is the best-known name that uses it."""


@dataclass(frozen=True)
class PreTokenizer:
    """A name that ``tokenizer.ggml.pre`` may hold.

    Attributes
    ----------
    name : str
        The name.
    splitter : str or None
        Key of `SPLITTERS`; None if the definition cannot be written as tokenizer.json steps.
    ignore_merges : bool
        A word that is a token stays whole, whatever the merges say.
    add_bos : bool
        What the loader assumes if the file has no ``add_bos_token``.
    add_sep : bool
        The same for ``add_sep_token``.
    """

    name: str
    splitter: str | None
    ignore_merges: bool = False
    add_bos: bool = False
    add_sep: bool = False


def _group(splitter: str | None, names: str, **facts: bool) -> list[PreTokenizer]:
    return [PreTokenizer(name, splitter, **facts) for name in names.split()]


PRE_TOKENIZERS: tuple[PreTokenizer, ...] = (
    # The first name of a group is the plain one, chosen if nothing tells the names apart.
    *_group(
        "gpt-2",
        "gpt-2 olmo mpt modern-bert phi-2 jais exaone4 gigachat a.x-4.0 mellum trillion granite-docling",
    ),
    *_group("gpt-2", "jina-es jina-de jina-v2-es jina-v2-de"),
    *_group("gpt-2", "roberta-bpe jina-v1-en jina-v2-code", add_sep=True),
    *_group("digits", "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2"),
    *_group(
        "cl100k",
        "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
        ignore_merges=True,
        add_bos=True,
    ),
    *_group("cl100k", "smaug-bpe dbrx chatglm-bpe"),
    *_group("cl100k", "glm4 glm5", ignore_merges=True),
    *_group("qwen2", "qwen2 deepseek-r1-qwen stablelm2 megrez hunyuan kormo f2llmv2 solar-open grok-2"),
    *_group("qwen2", "bailingmoe bailingmoe2 llada-moe"),
    *_group("qwen35", "qwen35"),
    *_group("ufakzeka", "ufakzeka"),
    *_group("seed-coder", "seed-coder"),
    *_group("jais-2", "jais-2"),
    *_group("exaone-moe", "exaone-moe"),
    *_group("minicpm5", "minicpm5", ignore_merges=True),
    *_group("laguna", "laguna"),
    *_group("gpt-4o", "gpt-4o llama4 kanana2 talkie minimax-m2"),
    *_group("gpt-4o", "granite-embed-multi-97m", ignore_merges=True),
    *_group("tekken", "tekken", ignore_merges=True, add_bos=True),
    *_group("tiny_aya", "tiny_aya cohere2moe"),
    *_group("youtu", "youtu", ignore_merges=True),
    *_group("falcon", "falcon"),
    *_group(DEFAULT, DEFAULT),
    *_group("bloom", "bloom poro-chat gpt3-finnish"),
    *_group("viking", "viking"),
    *_group("deepseek-llm", "deepseek-llm"),
    *_group("deepseek-coder", "deepseek-coder"),
    *_group("deepseek-v3", "deepseek-v3 hunyuan-dense joyai-llm hy_v4"),
    *_group("spark2_5", "spark2_5"),
    # Hand-written in llama.cpp, or not byte-level: accepted by name, never recognised nor rebuilt.
    *_group(None, "chameleon", add_bos=True),
    *_group(None, "afmoe kimi-k2 superbpe whitespace gemma4 granite-embed-multi-311m sarvam-moe"),
)

BY_NAME: Mapping[str, PreTokenizer] = {row.name: row for row in PRE_TOKENIZERS}
ACCEPTED: tuple[str, ...] = tuple(sorted(BY_NAME))
"""Every name that llama.cpp's loader accepts."""
