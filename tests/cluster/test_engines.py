"""What can be said of engines without a cluster: their names, how work is cut, and how a plan is made again."""

from __future__ import annotations

import pickle
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from cli.command import call

import qformats
from qformats.errors import BackendUnavailableError, ConfigError, OutputError, PluginError, WeightsError
from qformats.exporting import Recipe, make_plan
from qformats.exporting.engines import parts
from qformats.exporting.engines.named import named
from qformats.exporting.engines.rebuilt import Told
from qformats.exporting.engines.remote import OwnedFiles, write
from qformats.exporting.fill import OutputFiles, slices_of
from qformats.exporting.journal import Journal


def planned(place: Path, format: str = "gguf:q4_0", **options: str):
    return make_plan(qformats.open("demo"), place / "out", Recipe(format), options)


def test_unknown_engine(tmp_path):
    with pytest.raises(ConfigError, match=r"^engine: found 'spark'; expected local or ray\.$"):
        qformats.export("demo", tmp_path / "out", format="nf4", engine="spark")
    with pytest.raises(
        ConfigError, match=r"^address: found 'auto'; expected no address without engine='ray'\.$"
    ):
        qformats.export("demo", tmp_path / "out", format="nf4", address="auto")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_unknown_engine_on_the_command_line(tmp_path, capsys, more):
    result = call(
        capsys, "export", "demo", "-f", "gguf:q4_0", "-o", tmp_path / "o.gguf", "--engine", "spark", *more
    )
    assert result.code != 0
    assert result.err == "qformats: --engine: found 'spark'; expected local or ray.\n"


def test_without_ray(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    result = call(capsys, "export", "demo", "-f", "gguf:q4_0", "-o", tmp_path / "out", "--engine", "ray")
    told = "the package is not installed. Install it on every node: pip install 'qformats[ray]'."
    assert (result.code, result.err) == (3, f"qformats: ray: {told}\n")
    assert list(tmp_path.iterdir()) == []


def test_a_model_card_is_written_here(tmp_path, capsys):
    result = call(capsys, "export", "demo", "-f", "nf4", "-o", tmp_path / "out", "--engine", "ray", "--card")
    assert result.code != 0
    assert "--engine: found ray for a folder with a model card" in result.err


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("bits", 7, "4 or 8", nearest=["toy:int8"]),
        OutputError("out.gguf", "exists already", "choose another name"),
        WeightsError("model.safetensors", "w", "NaN", "fetch it again"),
        BackendUnavailableError("ray", "is not there"),
        PluginError("qformats_toy", "ToyPacker.pack", KeyError("scale")),
        qformats.errors.UnknownFormatError("toy:int7", ["toy:int6"]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_cross_processes(error):
    error.advise("think again") if not isinstance(error, PluginError) else None
    same = pickle.loads(pickle.dumps(error))
    assert type(same) is type(error)
    assert str(same) == str(error)
    assert same.nearest == error.nearest
    assert same.__dict__.keys() == error.__dict__.keys()


class Pending:
    """As much of an output as cutting looks at."""

    def __init__(self, plan) -> None:
        self.plan = plan


def test_parts_hold_every_slice_once_and_share_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "_LEAST_BYTES", 1 << 18)
    output = Pending(planned(tmp_path, "dense:f16", **{"max-shard-size": "1MB"}))
    slices = slices_of(output.plan)
    queues = parts.parts_of([(output, piece) for piece in slices])
    assert len(queues) > 3
    held = [piece.index for queue in queues for part in queue for piece in part.slices]
    assert sorted(held) == [piece.index for piece in slices]
    owned = [frozenset(queue[0].files) for queue in queues]
    assert all(part.files == queue[0].files for queue in queues for part in queue)
    assert sum(map(len, owned)) == len(frozenset().union(*owned))
    assert max(map(len, queues)) > 1


def test_the_same_plan_is_made_again(tmp_path):
    plan = planned(tmp_path)
    told = pickle.loads(pickle.dumps(Told.of(plan)))
    again, slices = told.plan()
    assert slices == slices_of(plan)
    assert again.layout == plan.layout
    assert [t.name for t in again.tensors] == [t.name for t in plan.tensors]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"source": Path("/nowhere")}, "cannot open the model .*every node mounts at the same place"),
        (
            {"software": {"numpy": "1.0"}},
            r"numpy \S+ instead of 1\.0\. Install the same versions on every node",
        ),
        ({"files": (("config.json", 1, 1),)}, "sees another config.json"),
        ({"identity": "0"}, "makes another plan"),
        ({"kind": "changed.Checkpoint"}, "makes another plan"),
        ({"recipe": Recipe("gguf:q4_1")}, "makes another plan"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_another_plan_is_refused(tmp_path, changes, said):
    with pytest.raises(BackendUnavailableError, match=rf"^ray: the node .*{said}"):
        replace(Told.of(planned(tmp_path)), **changes).plan()


def test_a_worker_writes_into_what_is_there_only(tmp_path):
    plan = planned(tmp_path)
    with pytest.raises(OutputError, match="every node mounts at the same place"):
        OwnedFiles(plan, tmp_path / "files", [0], b"")
    assert [*tmp_path.iterdir()] == []
    journal = Journal(plan.target, "identity", plan.partial_name)
    whole = OutputFiles(plan, journal.files)
    whole.close()
    with whole.paths[0].open("r+b") as file:
        file.truncate(10)
    with pytest.raises(OutputError, match="is not the file that was made for it"):
        OwnedFiles(plan, journal.files, [0], journal.opening)
    journal.discard()


def begun(tmp_path: Path, format: str):
    """What an export has made before it asks for slices."""
    plan = make_plan(qformats.open("demo"), tmp_path / "out.gguf", Recipe(format, pure=True), {})
    slices = slices_of(plan)
    identity = plan.identity([(s.tensor, s.start, s.stop) for s in slices])
    journal = Journal(plan.target, identity, plan.partial_name)
    OutputFiles(plan, journal.files).close()
    return plan, journal, journal.files / plan.layout.files[0].name


def test_a_worker_of_a_killed_export_leaves_the_next_one_alone(tmp_path):
    """Its task may still run while another export makes files of the same names and sizes in the same place."""
    plan, journal, file = begun(tmp_path, "gguf:q4_0")
    asked = (Told.of(plan), journal.files, journal.opening, [0], [0], 1)
    assert write(*asked).error is None
    # As a kill does.
    journal.close()
    other, second, same = begun(tmp_path, "gguf:iq4_nl")
    assert (same, other.layout.files[0].size) == (file, plan.layout.files[0].size)
    before = same.read_bytes()
    refused = write(*asked).error
    assert refused is not None
    assert "the export that asked for it has ended" in str(refused)
    assert same.read_bytes() == before
    second.discard()
    assert "No such file" in str(write(*asked).error)


def test_lent_files_come_back(tmp_path):
    plan = planned(tmp_path)
    journal = Journal(plan.target, "identity", plan.partial_name)
    files = OutputFiles(plan, journal.files)
    with files.lent():
        owned = OwnedFiles(plan, journal.files, [0], journal.opening)
        owned.write(0, memoryview(b"there"), plan.layout.files[0].size - 5)
        owned.sync()
        owned.close()
    with files.mapped(0) as content:
        assert bytes(content[-5:]) == b"there"
    files.close()
    journal.discard()


def test_local_is_an_engine():
    with named("local") as engine:
        assert type(engine).__name__ == "Local"
