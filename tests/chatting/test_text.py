"""Ids become text while they arrive; stop texts are found wherever they are cut."""

from __future__ import annotations

import itertools

import pytest
from models.text import CORPUS
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import qformats
from qformats.chatting.text import Stops, Vocabulary
from qformats.runtime import tokenizer


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("stops", [("###",), ("##A", "#"), ("aab",), ("b#", "aa#")])
def test_stops_do_not_depend_on_how_a_text_is_cut(stops, size):
    for letters in itertools.product("ab#", repeat=5):
        text = "".join(letters)
        found = Stops(stops)
        sent = ""
        for at in range(0, len(text), size):
            sent += found.put(text[at : at + size])
            if found.found:
                break
        sent += found.end()
        ends = [text.index(stop) for stop in stops if stop in text]
        # What is sent is never taken back, so that of two stops the one that is complete first may count.
        first = min((text.index(s) + len(s), text.index(s)) for s in stops if s in text) if ends else None
        assert found.found is bool(ends)
        if len(stops) == 1 or not ends:
            assert sent == (text[: min(ends)] if ends else text)
        else:
            assert sent in (text[: min(ends)], text[: first[1]])


def test_tokens_of_bytes():
    """Byte-level: every token's bytes, also of half characters, add up to the text."""
    words = tokenizer(qformats.open("demo"))
    ids = words(CORPUS, add_special_tokens=False)["input_ids"]
    vocabulary = Vocabulary(words)
    assert b"".join(map(vocabulary.bytes, ids)).decode() == CORPUS
    (half, *_) = words("é", add_special_tokens=False)["input_ids"]
    assert vocabulary.text(half) in ("é", "\\xc3")


def test_tokens_of_sentencepiece():
    pieces = {"▁the": 0, "▁": 1, "<0xC3>": 2, "<0xA9>": 3, "é": 4, "<unk>": 5, "▁▁": 6}
    made = Tokenizer(models.BPE(pieces, [], unk_token="<unk>", byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    vocabulary = Vocabulary(PreTrainedTokenizerFast(tokenizer_object=made))
    assert [vocabulary.bytes(id) for id in pieces.values()] == [
        *(b" the", b" ", b"\xc3", b"\xa9", "é".encode(), b"<unk>", b"  ")
    ]
    assert vocabulary.text(2) == "\\xc3"
