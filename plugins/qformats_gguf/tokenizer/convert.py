"""From the tokenizer files of a Hugging Face folder to GGUF metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qformats.errors import CheckpointError, UnsupportedModelError

from ..metadata import Metadata, ValueType, boolean, string
from . import byte_bpe, chatglm, qwen, spm, unigram, wordpiece
from .files import TokenizerFiles
from .pretokenizers import BY_NAME
from .rebuild_spm import PREPEND_SCHEME
from .recognize import checked_name
from .special import special_metadata
from .surroundings import surroundings_metadata
from .templates import template_metadata
from .vocabulary import UNIGRAM, Vocabulary

__all__ = ["to_gguf"]

_SUPPORTED = (
    "byte-level BPE (tokenizer.json, qwen.tiktoken, or vocab.json with merges.txt)",
    "SentencePiece BPE (tokenizer.model, or the tokenizer.json made from one)",
    "WordPiece (tokenizer.json, or vocab.txt)",
    "SentencePiece unigram (tokenizer.json, or XLM-RoBERTa's sentencepiece.bpe.model)",
)


def to_gguf(
    files: Mapping[str, bytes], config: Mapping[str, Any], *, pre: str | None = None, source: str = ""
) -> Metadata:
    """Convert the tokenizer of a Hugging Face folder.

    Parameters
    ----------
    files : mapping of str to bytes
        Any of tokenizer.json, tokenizer_config.json, special_tokens_map.json, added_tokens.json,
        generation_config.json, tokenizer.model, vocab.json, merges.txt, vocab.txt, sentencepiece.bpe.model,
        qwen.tiktoken, chat_template.jinja and additional_chat_templates/NAME.jinja, by path inside the folder; of
        ChatGLM also tokenization_chatglm.py, which is searched for names and never run.
    config : mapping
        The model's config.json: vocabulary size, special ids.
    pre : str, optional
        llama.cpp's name of the pre-tokenizer; overrides what the files say.
    source : str
        The folder's name, for messages.

    Returns
    -------
    Metadata
        Every ``tokenizer.*`` key. There are as many tokens as ``vocab_size`` says, or more if the tokenizer
        has more; ids without a token become ``[PAD<id>]`` of type unused.

    Raises
    ------
    CheckpointError
        If a file is missing or malformed.
    UnsupportedModelError
        If llama.cpp cannot represent the tokenizer, or has no name for the way it splits text.
    ConfigError
        If llama.cpp does not accept the name `pre`, or config.json has an impossible size.

    Notes
    -----
    Not represented in GGUF, as in llama.cpp's own converter: Unicode normalization (NFC of Qwen2 and others).
    Spaces that Transformers removes around added tokens are kept for the way back only, with a warning.
    """
    folder = TokenizerFiles(qwen.completed(files, source), source)
    if pre is not None:
        checked_name(pre)
    vocabulary, prefix = _vocabulary(folder, config, pre)
    if vocabulary.pre == chatglm.PRE:
        vocabulary.tokens[:] = [chatglm.spelled(text, gguf=True) for text in vocabulary.tokens]
    values = vocabulary.metadata()
    said = folder.settings().get("add_prefix_space")
    if isinstance(said, bool):
        prefix = spm.NEVER if not said else spm.EVERY if prefix in (None, spm.NEVER) else prefix
    if prefix is not None:
        values["tokenizer.ggml.add_space_prefix"] = boolean(prefix != spm.NEVER)
    if prefix in (spm.ALWAYS, spm.FIRST):
        values[PREPEND_SCHEME] = string(prefix)
    if vocabulary.model == "bert":
        values |= wordpiece.normalizer_metadata(folder)
    elif vocabulary.model == UNIGRAM:
        values |= unigram.normalizer_metadata(folder)
    row = BY_NAME.get(vocabulary.pre)
    values |= special_metadata(
        folder,
        config,
        vocabulary,
        add_bos=vocabulary.model not in ("gpt2", UNIGRAM),
        add_sep=vocabulary.model == "bert" or (row is not None and row.add_sep),
        as_roberta=vocabulary.model == UNIGRAM and "tokenizer.json" not in folder,
    )
    templates = template_metadata(folder)
    if vocabulary.pre == chatglm.PRE:
        templates = {
            key: string(chatglm.spelled(value.data, gguf=True)) if value.type == ValueType.STRING else value
            for key, value in templates.items()
        }
    return values | surroundings_metadata(folder, vocabulary) | templates


def _vocabulary(
    files: TokenizerFiles, config: Mapping[str, Any], pre: str | None
) -> tuple[Vocabulary, str | None]:
    """Read the vocabulary, and where a space is put that the text does not have; None if that does not apply."""
    tokenizer = files.json("tokenizer.json")
    if tokenizer is not None:
        if not isinstance(tokenizer.get("model"), dict):
            raise CheckpointError(files.path("tokenizer.json"), "no model section", "an object under 'model'")
        # First: such a folder's tokenizer.model, if any, is the same vocabulary in tiktoken's format.
        if byte_bpe.is_byte_level(tokenizer):
            return byte_bpe.from_tokenizer_json(files, config, pre), None
        if wordpiece.is_wordpiece(tokenizer):
            return wordpiece.from_tokenizer_json(files, config, pre), None
        if unigram.is_unigram(tokenizer):
            return unigram.from_tokenizer_json(files, config, pre)
    if "tokenizer.model" in files:
        return spm.from_model_file(files, config, pre)
    if tokenizer is not None:
        prefix = spm.space_prefix(tokenizer)
        if prefix is not None:
            return spm.from_tokenizer_json(files, config, pre), prefix
        raise UnsupportedModelError(
            f"{files.path('tokenizer.json')}: tokenizer", _describe(tokenizer["model"]), _SUPPORTED
        )
    if "vocab.json" in files:
        return byte_bpe.from_slow_files(files, config, pre), None
    if "vocab.txt" in files:
        return wordpiece.from_vocab_txt(files, config, pre), None
    if unigram.SENTENCEPIECE in files:
        return unigram.from_model_file(files, config, pre)
    raise CheckpointError(
        files.source,
        "no tokenizer",
        "tokenizer.json, tokenizer.model, sentencepiece.bpe.model, vocab.txt, qwen.tiktoken, "
        "or vocab.json with merges.txt",
    )


def _describe(model: Mapping[str, Any]) -> str:
    kind = str(model.get("type", "a model without a type"))
    if kind != "BPE":
        return kind
    return (
        "BPE with byte fallback and other steps"
        if model.get("byte_fallback")
        else "BPE that is not byte-level"
    )
