"""``--verify``: every command that reads weights compares all of them with the record, and by default a sample."""

from __future__ import annotations

import inspect
import io
import json
import re
import shutil
import socket
import warnings
from pathlib import Path

import pytest
import typer
from cli.command import call
from models import tiny

import qformats
from qformats.calibration import measure_outliers
from qformats.chatting.loaded import ChatModel
from qformats.cli.app import app
from qformats.comparing.bench import bench
from qformats.errors import CheckpointError
from qformats.exporting.recorded import Record, record_beside

DAMAGED = "blk.2.ffn_up.weight"


@pytest.fixture(scope="module")
def damaged(tmp_path_factory) -> Path:
    """An exported model with one bit changed in the middle: a code of a block, so that every number stays finite."""
    target = tmp_path_factory.mktemp("damaged") / "damaged.gguf"
    qformats.export("demo", target, format="gguf:q8_0")
    place = record_beside(target)
    assert place is not None
    record = Record.read(place)
    (pieces,) = record.pieces.values()
    (piece,) = (p for p in pieces if record.tensor_name(p.tensor) == DAMAGED)
    assert 0 < piece.offset < target.stat().st_size - piece.nbytes
    with target.open("r+b") as file:
        # A scale of two bytes, then the codes.
        file.seek(piece.offset + 10)
        old = file.read(1)
        file.seek(piece.offset + 10)
        file.write(bytes([old[0] ^ 1]))
    return target


@pytest.fixture
def header_only(monkeypatch):
    """A sample of nothing but the first piece of each file, so that chance does not find the damage."""
    monkeypatch.setattr("qformats.exporting.recorded._SAMPLE", 0)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> Path:
    """An adapter on the demo model, as PEFT saves it."""
    import peft

    folder = tmp_path_factory.mktemp("adapter")
    model = qformats.load_model("demo", device="cpu")
    lora = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    with warnings.catch_warnings():
        # Of Transformers, about names that PEFT still uses.
        warnings.simplefilter("ignore")
        peft.get_peft_model(model, lora).save_pretrained(folder)
    return folder


SHORT = ("--device", "cpu")
COMMANDS = {
    "export": ("export", "MODEL", "-f", "dense:f32", "-o", "out"),
    "export-many": ("export", "MODEL", "-f", "gguf:q4_0", "-f", "glm:int4", "-o", "out"),
    "export-plan": ("export", "MODEL", "-f", "gguf:q4_0", "--check-exact"),
    "generate": ("generate", "MODEL", "The United", "-n", "2", *SHORT),
    "chat": ("chat", "MODEL", "--raw", "-n", "2", *SHORT),
    "compare": ("compare", "demo", "MODEL"),
    "compare-base": ("compare", "MODEL", "--try", "gguf:q4_0"),
    "bench": ("bench", "MODEL", "-p", "4", "-n", "2", "--repeats", "1", *SHORT),
    "merge": ("merge", "ADAPTER", "MODEL", "-o", "out", "-f", "dense:f32"),
    "imatrix": ("imatrix", "MODEL", "-o", "out.gguf", "--chunks", "1", "--chunk-size", "16", *SHORT),
    "outliers": ("outliers", "MODEL", "--chunks", "1", "--chunk-size", "16", *SHORT),
}


@pytest.mark.usefixtures("header_only")
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_what_a_sample_misses_is_found(command, damaged, adapter, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO("The United\n"))
    told = [{"MODEL": str(damaged), "ADAPTER": str(adapter)}.get(word, word) for word in command]
    done = call(capsys, *told, "--verify")
    assert done.code == 3, done.err
    assert refused(done.err), done.err
    assert [*tmp_path.iterdir()] == []
    done = call(capsys, *told)
    assert done.code == 0, done.err


@pytest.mark.usefixtures("header_only")
def test_serve(damaged, capsys):
    """A port that is taken ends the server after the models are loaded."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        serve = ("serve", "demo", damaged, "--device", "cpu", "--port", str(taken.getsockname()[1]))
        done = call(capsys, *serve, "--verify")
        assert (done.code, refused(done.err)) == (3, True), done.err
        assert "demo-llama has no record" in done.err
        done = call(capsys, *serve)
        assert "cannot be listened at" in done.err


def refused(told: str) -> bool:
    return bool(
        re.search(r"damaged\.gguf: tensor 'blk\.2\.ffn_up\.weight'.*have changed since they were", told)
    )


@pytest.mark.usefixtures("header_only")
@pytest.mark.parametrize(
    "read",
    [
        lambda model, out, verify: qformats.load_model(model, device="cpu", verify=verify),
        lambda model, out, verify: qformats.from_pretrained(model, device="cpu", verify=verify),
        lambda model, out, verify: qformats.compare(model, try_="gguf:q4_0", verify=verify),
        lambda model, out, verify: qformats.publish(model, out, formats="glm:int4", verify=verify),
        lambda model, out, verify: qformats.imatrix(
            model, out / "m.gguf", chunks=1, chunk_size=16, device="cpu", verify=verify
        ),
        lambda model, out, verify: measure_outliers(
            qformats.open(model), chunks=1, chunk_size=16, device="cpu", verify=verify
        ),
        lambda model, out, verify: ChatModel(
            qformats.open(model), "mine", None, device="cpu", verify=verify
        ).close(),
        lambda model, out, verify: qformats.export(
            model,
            out / "x.gguf",
            format="gguf:q4_k_m",
            mix="measured",
            quantizer_options={"samples": "1", "sequence-length": "16"},
            verify=verify,
        ),
    ],
    ids=["load_model", "from_pretrained", "compare", "publish", "imatrix", "outliers", "ChatModel", "mix"],
)
def test_in_python(read, damaged, tmp_path):
    with pytest.raises(
        CheckpointError, match=r"damaged\.gguf: tensor .*have changed since they were written"
    ):
        read(damaged, tmp_path, True)
    assert [*tmp_path.iterdir()] == []
    read(damaged, tmp_path, False)


@pytest.mark.usefixtures("header_only")
def test_bench_in_python(damaged):
    import torch

    models = [qformats.open("demo"), qformats.open(damaged)]
    with pytest.raises(CheckpointError, match=r"damaged\.gguf"):
        bench(models, device=torch.device("cpu"), verify=True)


@pytest.mark.usefixtures("header_only")
def test_lm_eval(damaged):
    pytest.importorskip("lm_eval")
    from qformats.evaluation import QFormatsLM

    with pytest.raises(CheckpointError, match=r"damaged\.gguf"):
        QFormatsLM(str(damaged), device="cpu", verify=True)


def test_a_small_model_is_compared_by_default(damaged):
    """All of it is in the sample; also where weights are only compared, and nothing is run."""
    with pytest.raises(CheckpointError, match=r"damaged\.gguf: tensor 'blk\.2\.ffn_up\.weight'"):
        qformats.compare("demo", damaged)


def test_files_that_the_record_does_not_know(tmp_path, capsys, monkeypatch):
    """A shard that came later has no checksum: asked for all bytes, that is said."""
    monkeypatch.chdir(tmp_path)
    model = tiny.build("llama", tmp_path / "llama")
    qformats.export(model, "out", format="dense:f32", options={"max-shard-size": "50KB"})
    index = json.loads(Path("out/model.safetensors.index.json").read_text())
    names = sorted(set(index["weight_map"].values()))
    shutil.copy(Path("out", names[1]), "out/other.safetensors")
    index["weight_map"] = {
        name: "other.safetensors" if file == names[1] else file for name, file in index["weight_map"].items()
    }
    Path("out/model.safetensors.index.json").write_text(json.dumps(index))
    qformats.export("out", "again", format="dense:f32")
    done = call(capsys, "export", "out", "-f", "dense:f32", "-o", "third", "--verify")
    assert (done.code, "other.safetensors: is not in the record" in done.err) == (3, True), done.err
    assert not Path("third").exists()


def test_where_there_is_nothing_to_compare_with(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call(capsys, "export", "demo", "-f", "gguf:q8_0", "-o", "a.gguf").code == 0
    done = call(capsys, "compare", "demo", "a.gguf", "--verify")
    assert done.code == 0
    assert [line for line in done.err.splitlines() if "record" in line] == [
        "qformats: demo-llama has no record, so that its bytes have nothing to be compared with"
    ]
    record = json.loads(Path("a.gguf.qformats.json").read_text())
    del record["checksums"]
    Path("a.gguf.qformats.json").write_text(json.dumps(record))
    done = call(capsys, "generate", "a.gguf", "The", "-n", "1", "--device", "cpu", "--verify")
    assert done.code == 0
    assert (
        "a.gguf.qformats.json is of an earlier version: it has sizes of files, but no checksums" in done.err
    )


WITHOUT = {
    "inspect": "headers",
    "formats": "no model",
    "plugins": "no model",
    "verify": "always all bytes",
    "check": "no model",
    "new-plugin": "no model",
    "completion": "no model",
}


def test_every_command_that_reads_weights_has_it():
    """Also plugins' commands."""
    group = typer.main.get_command(app)
    having = {name for name, each in group.commands.items() if any("--verify" in p.opts for p in each.params)}
    assert having == set(group.commands) - set(WITHOUT)
    readers = (qformats.export, qformats.publish, qformats.load_model, qformats.compare)
    for function in (*readers, qformats.imatrix, qformats.merge_adapter):
        assert inspect.signature(function).parameters["verify"].default is False, function
