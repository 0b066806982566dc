"""Windows of a perplexity per word: upstream's samples, sums done by hand, and no more memory for longer texts."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from models import glm_goldens
from models.glm_goldens import FILES, IDS_130B

import qformats
from qformats.comparing.loaded import LoadedModel
from qformats.comparing.tasks import scoring
from qformats.comparing.tasks.perplexity import Cut, overlapping, token_losses, words
from qformats.comparing.tasks.reading import Causal
from qformats.comparing.tasks.scoring import score
from qformats.comparing.tasks.statistics import perplexity
from qformats.errors import ConfigError
from qformats_glm.models import GLM130BModel
from qformats_glm.models.configuration import GLM130BConfig
from qformats_glm.models.places import positions, visible

GOLDEN = json.loads((FILES / "glm-130b" / "evaluation.json").read_text())
CONFIG = json.loads((FILES / "glm-130b" / "config.json").read_text()) | IDS_130B
BLANKS = GLM130BModel().evaluation(CONFIG)
LM = [sample for sample in GOLDEN["lm"] if not sample["unidirectional"]]
ASKED = [
    sample for sample in GOLDEN["generation"] if sample["use_task_mask"] and not sample["unidirectional"]
]


def runner(path, device="cpu"):
    return LoadedModel(qformats.open(path), torch.device(device), torch.float32)


@pytest.fixture(scope="module")
def glm(tmp_path_factory):
    return runner(glm_goldens.glm_130b(tmp_path_factory.mktemp("glm") / "ranks"))


@pytest.mark.parametrize("sample", LM, ids=lambda sample: f"{sample['max_seq_length']} tokens")
def test_windows_are_those_of_glm_130b(sample):
    config = GLM130BConfig.from_dict(CONFIG)
    cut = list(overlapping(sample["text_ids"], sample["max_seq_length"], sample["generation_length"]))
    assert len(cut) == len(sample["windows"]) > 2
    for (before, scored), golden in zip(cut, sample["windows"], strict=True):
        found = BLANKS.window(before, scored)
        assert list(found.ids) == golden["tokens"]
        assert list(found.targets) == [
            t for t, on in zip(golden["targets"], golden["loss_masks"], strict=True) if on
        ]
        assert golden["loss_masks"][-len(found.targets) :] == [1] * len(found.targets)
        ids = torch.tensor([found.ids])
        assert positions(ids, None, config)[0].tolist() == golden["position_ids"]
        assert (~visible(ids, None, config))[0, 0].int().tolist() == golden["attention_mask"]


@pytest.mark.parametrize("sample", ASKED, ids=lambda sample: f"{len(sample['text'])} tokens")
def test_questions_are_those_of_glm_130b(sample):
    config = GLM130BConfig.from_dict(CONFIG)
    ids = torch.tensor([BLANKS.question(sample["text"])])
    assert ids[0].tolist() == sample["token"]
    assert positions(ids, None, config)[0].tolist() == sample["position_id"]
    assert visible(ids, None, config)[0, 0].int().tolist() == sample["attention_mask"]


def test_a_text_with_a_blank_of_its_own_is_refused():
    """What a token sees would follow from the wrong one."""
    for token in (700, 701, 702, 704):
        with pytest.raises(ConfigError, match=f"special token {token}"):
            BLANKS.window([30, token, 31], [32])
        with pytest.raises(ConfigError, match=f"special token {token}"):
            BLANKS.window([30], [token, 32])


@torch.no_grad()
@pytest.mark.parametrize("most", [None, 3])
def test_the_loss_is_that_of_upstreams_samples(glm, monkeypatch, most):
    """Masks and positions of the goldens, given to the model one by one, against batches that it works them out for."""
    sample = LM[0]
    losses = []
    for golden in sample["windows"]:
        seen = ~torch.tensor([[golden["attention_mask"]]]).bool()
        place = torch.tensor([golden["position_ids"]])
        logits = glm.model(torch.tensor([golden["tokens"]]), attention_mask=seen, position_ids=place).logits[
            0
        ]
        loss = torch.nn.functional.cross_entropy(
            logits.double(), torch.tensor(golden["targets"]), reduction="none"
        )
        losses += loss[torch.tensor(golden["loss_masks"]).bool()].tolist()
    assert len(losses) == len(sample["text_ids"]) == 25
    if most is not None:
        # Windows are scored in pieces, where there is room for no more logits.
        monkeypatch.setattr(scoring, "_LOGITS", most * glm.vocabulary)
    items = [BLANKS.window(*pair) for pair in overlapping(sample["text_ids"], 12, 4)]
    told = []
    found = token_losses(glm, Cut(tuple(items), 25, 10), "tiny", told.append)
    assert np.abs(found - losses).max() < 1e-5
    assert sum(told) == 25
    value, per_word = perplexity(found, 10, 4)
    assert per_word == pytest.approx(sum(losses) / 10)
    assert value.value == pytest.approx(math.exp(min(20, sum(losses) / 10)))


def test_words_stand_between_single_spaces():
    """As GLM-130B counts them: a line end between spaces is a word, and so is what two spaces hold."""
    assert words(" = A = \n \n one two \n") == 7
    assert words("one  two") == 3
    assert words("one\ntwo") == 1


def test_windows_by_hand():
    assert list(overlapping([1, 2, 3], 6, 2)) == [([], [1, 2, 3])]
    assert list(overlapping([1, 2, 3, 4, 5, 6], 6, 2)) == [([], [1, 2, 3, 4, 5]), ([3, 4, 5], [6])]
    assert list(overlapping(list(range(9)), 6, 2))[1:] == [([2, 3, 4], [5, 6]), ([4, 5, 6], [7, 8])]
    # Without a token that stands before every text, its first token cannot be predicted.
    assert [len(Causal([]).window(*pair).targets) for pair in overlapping(list(range(9)), 6, 2)] == [4, 2, 2]
    assert [len(Causal([0]).window(*pair).targets) for pair in overlapping(list(range(9)), 6, 2)] == [5, 2, 2]


@torch.no_grad()
def test_padding_and_company_change_nothing():
    """Sequences of many lengths, together and each by itself, in a model of Transformers'."""
    demo = runner("demo")
    generator = np.random.default_rng(0)
    pairs = [
        (generator.integers(3, 2000, known).tolist(), generator.integers(3, 2000, count).tolist())
        for known, count in ((0, 30), (100, 7), (3, 1), (60, 40), (0, 200))
    ]
    items = [Causal([0]).window(*pair) for pair in pairs]
    together = score(demo, items, "demo", lambda count: None)
    for item, found in zip(items, together, strict=True):
        logits = demo.model(torch.tensor([item.ids])).logits[0, -len(item.targets) :].double()
        targets = torch.tensor(item.targets)
        loss = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
        assert np.abs(found.loss - loss.numpy()).max() < 1e-4
        assert found.likeliest.tolist() == (logits.argmax(-1) == targets).tolist()


def test_batches_stay_within_their_bounds(monkeypatch):
    asked = []
    demo = runner("demo")
    original = demo.logits_of

    def watched(ids, count, keep=None):
        asked.append((*ids.shape, count))
        return original(ids, count, keep)

    monkeypatch.setattr(demo, "logits_of", watched)
    monkeypatch.setattr(scoring, "_LOGITS", 100 * demo.vocabulary)
    monkeypatch.setattr(scoring, "_TOKENS", 256)
    monkeypatch.setattr(scoring, "_PAIRS", 128**2)
    ids = np.random.default_rng(1).integers(3, 2000, 900).tolist()
    items = [Causal([0]).window(*pair) for pair in overlapping(ids, 128, 16)]
    found = score(demo, items, "demo", lambda count: None)
    assert sum(len(each.loss) for each in found) == 900
    assert max(rows * count for rows, _, count in asked) <= 100
    assert all(rows == 1 or rows * length <= 256 for rows, length, _ in asked)
    assert all(rows == 1 or rows * length**2 <= 128**2 for rows, length, _ in asked)
    short = [Causal([0]).window(ids[:20], ids[20:22])] * 40
    asked.clear()
    score(demo, short, "demo", lambda count: None)
    assert max(rows for rows, _, _ in asked) > 5, "short sequences run together"
