"""Every statistic on small arrays of logits, against llama.cpp's definitions."""

import numpy as np
import pytest
import torch
from compare import perplexity_oracle as oracle

from qformats.comparing.behaviour import alone, behaviour, predict
from qformats.comparing.logits import LogitsReader, LogitsWriter, Predictions
from qformats.comparing.report import TextUsed
from qformats.comparing.statistics import behaviour_alone, behaviour_change
from qformats.comparing.text import Windows
from qformats.errors import NonFiniteError
from qformats.work.progress import Silent

VOCABULARY, LENGTH, COUNT = 50, 16, 9
SCORED = LENGTH - 1 - LENGTH // 2


class Spoken:
    """A model that says what a table has for each window."""

    device = torch.device("cpu")

    def __init__(self, ids, logits):
        self._said = {tuple(window): table for window, table in zip(ids.tolist(), logits, strict=True)}

    def logits(self, ids, count):
        return torch.from_numpy(self._said[tuple(ids.tolist())][-count:])

    def first_nonfinite(self, ids):
        return "model.layers.0"


class Words:
    """A tokenizer whose tokens are numbers."""

    def text(self, ids):
        return " ".join(map(str, ids))


def _case(seed, spread=0.3):
    """Windows, and logits of a base and of a model that is not far from it."""
    generator = np.random.default_rng(seed)
    ids = generator.integers(0, VOCABULARY, (COUNT, LENGTH))
    base = generator.normal(0, 3, (COUNT, LENGTH, VOCABULARY)).astype(np.float32)
    # Some tokens are out of the question: llama.cpp leaves them out of the divergence.
    base[:, :, ::7] -= 20
    model = base + generator.normal(0, spread, base.shape).astype(np.float32)
    used = TextUsed("a table", 0, ids.size, COUNT, LENGTH, COUNT * SCORED)
    return Windows(ids, "", used), base, model


def _arrays(windows, base, model):
    """What the oracle needs: logits at positions from the middle on, and the tokens after them."""
    rows = slice(LENGTH // 2, LENGTH - 1)
    targets = windows.ids[:, LENGTH // 2 + 1 :].reshape(-1)
    return base[:, rows].reshape(-1, VOCABULARY), model[:, rows].reshape(-1, VOCABULARY), targets


def _compared(windows, base, model, folder):
    path = folder / "predictions"
    with LogitsWriter(path, {}, COUNT, SCORED) as writer:
        losses = predict(Spoken(windows.ids, base), windows, writer, "base", Silent())
    with LogitsReader(path) as reader:
        found = behaviour(Spoken(windows.ids, model), windows, reader, Words(), "model", Silent())
    return losses, found


def _assert_close(found, expected, **tolerance):
    for name, value in found.items():
        if isinstance(value, dict):
            value, wanted = list(value.values()), list(expected[name].values())
        else:
            wanted = expected[name]
        np.testing.assert_allclose(value, wanted, err_msg=name, **tolerance)


def test_statistics_of_given_losses_are_llama_perplexitys():
    windows, base, model = _case(0)
    numbers = oracle.per_token(*_arrays(windows, base, model))
    found = behaviour_change(*numbers, (), SCORED)
    base_loss, loss, kl = numbers[:3]
    for i, window in enumerate(found.against.windows):
        rows = slice(i * SCORED, (i + 1) * SCORED)
        assert window.kl == pytest.approx(kl[rows].mean())
        assert window.log_ratio == pytest.approx((loss - base_loss)[rows].mean())
    assert len(found.against.windows) == COUNT
    _assert_close(oracle.told(found), oracle.statistics(*numbers), rtol=1e-9, atol=1e-12)
    assert found.tokens == COUNT * SCORED


@pytest.mark.parametrize("spread", [0.01, 0.3, 3.0])
def test_from_logits_to_statistics(spread, tmp_path):
    """Through the file of predictions: its 16 bits show in the divergence far behind the point."""
    windows, base, model = _case(1, spread)
    arrays = _arrays(windows, base, model)
    expected = oracle.statistics(*oracle.per_token(*arrays))
    losses, found = _compared(windows, base, model, tmp_path)
    numbers = oracle.told(found)
    for name in ("kl", "kl_percentiles"):
        _assert_close({name: numbers.pop(name)}, expected, rtol=2e-4, atol=2e-6)
    _assert_close(numbers, expected, rtol=1e-6, atol=1e-9)
    before = behaviour_alone(losses).perplexity
    np.testing.assert_allclose((before.value, before.error), expected["ppl_base"], rtol=1e-9)
    own = alone(Spoken(windows.ids, model), windows, "model", Silent())
    assert own.perplexity == found.perplexity
    assert own.against is None


def test_a_model_that_is_the_base_does_not_diverge(tmp_path):
    windows, base, _ = _case(2)
    _, found = _compared(windows, base, base, tmp_path)
    against = found.against
    assert 0 <= against.kl.mean.value < 1e-7
    assert against.same_top.value == 1
    assert against.perplexity_ratio.value == 1
    assert against.perplexity_ratio.error < 1e-7
    assert against.correlation == pytest.approx(1)
    assert against.probability.rms.value == 0


def test_histogram_counts_every_token(tmp_path):
    windows, base, model = _case(3)
    _, found = _compared(windows, base, model, tmp_path)
    _, _, divergence, _ = oracle.per_token(*_arrays(windows, base, model))
    histogram = found.against.kl_histogram
    edges = np.array(histogram.edges)
    np.testing.assert_allclose(np.diff(np.log(edges)), np.log(edges[1] / edges[0]), rtol=1e-9)
    assert sum(histogram.counts) == len(divergence)
    expected, _ = np.histogram(divergence, edges)
    # A value beside an edge may fall on its other side.
    assert np.abs(np.array(histogram.counts) - expected).sum() <= 2


def test_worst_tokens_are_the_largest_divergences(tmp_path):
    windows, base, model = _case(4)
    arrays = _arrays(windows, base, model)
    loss_before, loss_after, divergence, _ = oracle.per_token(*arrays)
    order = np.argsort(-divergence)[:20]
    _, found = _compared(windows, base, model, tmp_path)
    worst = found.against.worst
    np.testing.assert_allclose([change.kl for change in worst], divergence[order], rtol=1e-3)
    for change, token in zip(worst, order, strict=True):
        window, row = divmod(int(token), SCORED)
        ids = windows.ids[window]
        assert (change.window, change.position) == (window, LENGTH // 2 + 1 + row)
        assert change.token == str(ids[change.position])
        assert change.before == " ".join(map(str, ids[: change.position]))[-200:]
        assert change.p_base == pytest.approx(np.exp(-loss_before[token]), rel=1e-6)
        assert change.p_model == pytest.approx(np.exp(-loss_after[token]), rel=1e-6)
        for told, logits in ((change.top_base, arrays[0]), (change.top_model, arrays[1])):
            chances = np.exp(oracle.log_softmax(logits[token][None]))[0]
            likeliest = np.argsort(-chances)[:5]
            np.testing.assert_allclose([t.probability for t in told], chances[likeliest], rtol=1e-3)
            assert told[0].text == str(likeliest[0])


def test_a_model_that_gives_nan_is_named(tmp_path):
    windows, base, model = _case(5)
    model[3, -2, 11] = np.nan
    with pytest.raises(NonFiniteError, match=r"model predicts NaN in window 4 of 9; .* model\.layers\.0"):
        _compared(windows, base, model, tmp_path)
    assert not list(tmp_path.glob(".*")), "nothing is left beside the file"


def test_one_token_has_no_error():
    found = behaviour_change(np.array([1.0]), np.array([1.5]), np.array([0.1]), np.array([True]), (), 1)
    assert found.perplexity.value == pytest.approx(np.exp(1.5))
    assert found.perplexity.error == np.inf
    assert found.against.correlation == 1


def test_predictions_keep_what_counts():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 1000, generator=generator) * 4
    logits[1, 5] = -torch.inf
    logits[2] = 0.0
    logits[3, 7] = 300.0
    exact = torch.log_softmax(logits.double(), -1)
    targets = torch.arange(6) * 100
    kept = Predictions.of(exact, targets)
    kept = Predictions.from_bytes(kept.to_bytes(), 6, 1000)
    found = kept.log_probs(0, 6, torch.device("cpu"))
    np.testing.assert_array_equal(kept.loss, -exact[torch.arange(6), targets].numpy())
    assert kept.top(0, 6, torch.device("cpu")).tolist() == exact.argmax(1).tolist()
    assert torch.allclose(found.logsumexp(1), torch.zeros(6, dtype=torch.float64), atol=1e-12)
    # At most 64 nats below the highest are told apart, in 65535 steps that are finest at the top.
    depth = exact.max(1, keepdim=True).values - exact
    assert float((found - exact).abs()[depth < 60].max()) < 64 / 65535
    assert float((found - exact).abs()[depth < 1].max()) < 8 / 65535
    divergence = torch.where(exact.isfinite(), exact.exp() * (exact - found), 0.0).sum(1)
    assert float(divergence.abs().max()) < 1e-7
