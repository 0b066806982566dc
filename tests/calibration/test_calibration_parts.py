"""Pieces of a calibration: options, text, statistics, and hidden states in bounded memory."""

import json

import pytest
import torch

import qformats
from qformats.calibration import Moments, Settings
from qformats.calibration.activations import Activations, Kept, Memory
from qformats.calibration.text import calibration_text, sample_tokens
from qformats.errors import BackendUnavailableError, CheckpointError, ConfigError, OutputError
from qformats.interfaces import number, switch
from qformats.work.progress import Silent


class Heard(Silent):
    """Remembers what the user is told."""

    def __init__(self):
        self.notices = []
        self.tasks = []

    def start(self, task, total):
        self.tasks.append(task)

    def notice(self, text):
        self.notices.append(text)


def _random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_options_have_defaults_and_are_read():
    assert Settings.parse({}) == Settings()
    found = Settings.parse({"samples": "7", "activation-memory": "1.5 GB", "log": "x.jsonl", "damping": "1"})
    assert (found.samples, found.activation_memory, found.log.name) == (7, 1_500_000_000, "x.jsonl")
    assert Settings.parse({"activation-memory": "512MiB"}).activation_memory == 512 << 20
    assert Settings.parse({"activation-memory": "3g"}).activation_memory == 3 * 10**9


@pytest.mark.parametrize(
    "options",
    [
        {"samples": "0"},
        {"samples": "many"},
        {"sequence-length": "1"},
        {"seed": "-1"},
        {"compute-dtype": "int8"},
        {"activation-memory": "lots"},
        {"activation-memory": ""},
    ],
)
def test_impossible_options_are_refused(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        Settings.parse(options)


def test_numbers_and_switches():
    assert number({}, "x", 3, 0, 5) == 3
    assert number({"x": "0.5"}, "x", 3, 0, 5, whole=False) == 0.5
    assert switch({"x": "No"}, "x", True) is False
    for wrong in ("nan", "1e9", ""):
        with pytest.raises(ConfigError, match=r"x: .*a number from 0 to 5"):
            number({"x": wrong}, "x", 3, 0, 5, whole=False)
    with pytest.raises(ConfigError, match="yes or no"):
        switch({"x": "perhaps"}, "x", True)


def test_pieces_are_of_the_text_and_follow_the_seed():
    demo = qformats.open("demo")
    pieces = sample_tokens(demo, Settings(samples=6, sequence_length=40), Silent())
    assert pieces.shape == (6, 40)
    assert torch.equal(pieces, sample_tokens(demo, Settings(samples=6, sequence_length=40), Silent()))
    assert not torch.equal(
        pieces, sample_tokens(demo, Settings(samples=6, sequence_length=40, seed=1), Silent())
    )
    assert sample_tokens(demo, Settings(samples=2), Silent()).shape == (2, 512)


def test_pieces_do_not_overlap_and_short_texts_are_said_aloud(tmp_path):
    demo = qformats.open("demo")
    text = " ".join(map(str, range(400)))
    (tmp_path / "a.txt").write_text(text)
    heard = Heard()
    settings = Settings(calibration=str(tmp_path / "a.txt"), samples=1000, sequence_length=8)
    pieces = sample_tokens(demo, settings, heard)
    assert "pieces of 8 tokens, not 1000" in heard.notices[0]
    # The same text in lines of JSON.
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}) + "\n\n")
    again = Settings(calibration=str(tmp_path / "a.jsonl"), samples=1000, sequence_length=8)
    assert torch.equal(pieces, sample_tokens(demo, again, Silent()))


def test_texts_that_cannot_be_used_are_refused(tmp_path):
    demo = qformats.open("demo")
    (tmp_path / "short.txt").write_text("a b")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "bad.jsonl").write_text('{"words": "x"}\n')
    for name, error, message in (
        ("short.txt", ConfigError, r"tokens in .*short.txt.*512 or more"),
        ("bytes.txt", CheckpointError, "not UTF-8 text"),
        ("bad.jsonl", CheckpointError, "not an object with a text"),
        ("absent.txt", ConfigError, "a text file, or a data set"),
    ):
        with pytest.raises(error, match=message):
            sample_tokens(demo, Settings(calibration=str(tmp_path / name)), Silent())
    with pytest.raises(ConfigError, match="at most 512"):
        sample_tokens(demo, Settings(sequence_length=513), Silent())


def test_a_data_set_needs_its_library(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(BackendUnavailableError, match="pip install datasets"):
        calibration_text("owner/name", 100)


@pytest.mark.parametrize("columns", [1, 5, 256, 300, 700])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_moments_are_means_over_tokens(columns, dtype):
    batches = [_random(2, 7, columns, seed=i).to(dtype) for i in range(3)] + [
        torch.zeros(0, columns, dtype=dtype)
    ]
    plain = [x + 0.1 * _random(*x.shape, seed=9).to(dtype) for x in batches]
    moments = Moments(columns, torch.device("cpu"), drift=True)
    for x, y in zip(batches, plain, strict=True):
        moments.add(x, y)
    x = torch.cat([b.reshape(-1, columns) for b in batches]).double()
    y = torch.cat([b.reshape(-1, columns) for b in plain]).double()
    assert moments.tokens == len(x)
    torch.testing.assert_close(moments.second.double(), x.T @ x / len(x), rtol=1e-5, atol=1e-6)
    assert torch.equal(moments.second, moments.second.T)
    torch.testing.assert_close(moments.diagonal, moments.second.diagonal())
    tolerance = 1e-6 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(moments.drift.double(), (y - x).T @ x / len(x), rtol=tolerance, atol=tolerance)
    assert Moments(columns, torch.device("cpu")).drift is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_hidden_states_beyond_the_bound_are_spilled(tmp_path, dtype):
    memory = Memory(2 * 60 * torch.empty(0, dtype=dtype).element_size() + 1)
    store = Activations(tmp_path / "states", memory)
    batches = [_random(3, 4, 5, seed=i).to(dtype) for i in range(5)]
    for index, batch in enumerate(batches):
        store.put(index, batch)
    assert (len(store), store.spilled) == (5, 3)
    assert memory.used <= memory.limit
    for round in range(2):
        for index, batch in enumerate(batches):
            assert torch.equal(store.get(index), batch + round)
            store.put(index, batch + 1)
    assert store.spilled == 3
    store.clear()
    assert memory.used == 0
    assert list(tmp_path.iterdir()) == []


def test_a_holder_takes_what_is_left(tmp_path):
    memory = Memory(100)
    kept = Kept(memory)
    assert kept.put(0, torch.zeros(20))
    assert not kept.put(1, torch.zeros(20))
    assert kept.put(0, torch.ones(25))
    assert kept.get(1) is None
    assert float(kept.get(0).sum()) == 25
    kept.clear()
    assert memory.used == 0
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(OutputError, match="cannot be written to disk"):
        Activations(blocked / "states", Memory(0)).put(0, torch.zeros(3))
