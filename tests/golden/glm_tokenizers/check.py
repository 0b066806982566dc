"""Reproduce every id of this folder from the models' rules, with the sentencepiece library and nothing of qformats.

Run it as ``python tests/golden/glm_tokenizers/check.py``; it prints how many values it compared and ends with 1 if one
differs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import sentencepiece

HERE = Path(__file__).parent


def processor(name: str) -> Any:
    """Load a vocabulary."""
    return sentencepiece.SentencePieceProcessor(model_proto=(HERE / name).read_bytes())


def spelled(text: str) -> str:
    """Line ends, tabs and runs of spaces as the tokens that ChatGLM-6B and GLM-130B have for them."""
    text = text.replace("\n", "<n>").replace("\t", "<|tab|>")
    for count in range(80, 1, -1):
        text = text.replace(" " * count, f"<|blank_{count}|>")
    return text


def prompt(query: str, history: list[list[str]], second: bool) -> str:
    """Text of a chat: ChatGLM-6B counts rounds from 0 and leaves a single one bare; ChatGLM2 counts from 1."""
    if not history and not second:
        return query
    end, first = ("\n\n", 1) if second else ("\n", 0)
    rounds = [
        f"[Round {at + first}]{end}问\uff1a{q}{end}答\uff1a{a}{end}" for at, (q, a) in enumerate(history)
    ]
    return "".join(rounds) + f"[Round {len(history) + first}]{end}问\uff1a{query}{end}答\uff1a"


def pairs() -> list[tuple[Any, Any]]:
    """Every value by the rules, and the golden one."""
    found: list[tuple[Any, Any]] = []
    ice, second = processor("ice_text.model"), processor("tokenizer.model")
    for name, images in (("chatglm", 0), ("chatglm_20_images", 20), ("glm130b", 20000)):
        golden = json.loads((HERE / f"{name}.json").read_text())
        end = [images + ice.piece_to_id(text) for text in ("[gMASK]", "<sop>")]
        for entry in golden["texts"]:
            ids = [images + index for index in ice.encode(spelled(entry["text"]))]
            found += [(ids, entry["ids"]), (ids + end, entry.get("model_input", ids + end))]
        for entry in golden.get("prompts", []):
            text = prompt(entry["query"], entry["history"], False)
            ids = [images + index for index in ice.encode(spelled(text))] + end
            found += [(text, entry["prompt"]), (ids, entry["model_input"])]
    golden = json.loads((HERE / "chatglm2.json").read_text())
    start = [len(second) + 1, len(second) + 3]
    for entry in golden["texts"]:
        found += [
            (second.encode(entry["text"]), entry["ids"]),
            (start + second.encode(entry["text"]), entry["model_input"]),
        ]
    for entry in golden["prompts"]:
        text = prompt(entry["query"], entry["history"], True)
        found += [(text, entry["prompt"]), (start + second.encode(text), entry["model_input"])]
    chat = golden["v3_chat_own_code"]
    ids = list(start)
    for role, content in chat["messages"]:
        ids += [chat["roles"][f"<|{role}|>"], *second.encode("\n"), *second.encode(content)]
    return [*found, ([*ids, chat["roles"]["<|assistant|>"]], chat["model_input"])]


if __name__ == "__main__":
    compared = pairs()
    wrong = [pair for pair in compared if pair[0] != pair[1]]
    print(f"{len(compared)} values, {len(wrong)} differ", *wrong, sep="\n")
    sys.exit(bool(wrong))
