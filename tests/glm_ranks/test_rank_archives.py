"""Files of torch: those that torch.save wrote are read, and those laid out here are read by torch.load."""

import random
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qformats.errors import CheckpointError, ConfigError
from qformats.numbers.dtypes import torch_dtype
from qformats_glm.ranks.archive import RankFile
from qformats_glm.ranks.torchfile import Record, lay_out

DTYPES = ("f16", "bf16", "f32", "f64", "i8", "u8", "i16", "i32", "i64", "bool")


def _values(record, seed=0):
    numbers = torch.from_numpy(np.random.default_rng(seed).integers(-100, 100, record.shape))
    return numbers.to(torch_dtype(record.dtype))


def _write(path, records, values):
    """Fill a laid out file as the export engine does."""
    archive = lay_out(path.stem, records)
    with path.open("wb") as file:
        file.truncate(archive.size)
        file.write(archive.header)
        for offset, part in archive.parts:
            file.seek(offset)
            file.write(part)
        for record, value in zip(records, values, strict=True):
            file.seek(archive.offsets[record.name])
            data = (
                value.numpy().tobytes()
                if value.dtype != torch.bfloat16
                else value.view(torch.int16).numpy().tobytes()
            )
            assert len(data) == record.nbytes
            file.write(data)
    assert path.stat().st_size == archive.size
    assert all(offset % 64 == 0 for offset in archive.offsets.values())
    return archive


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 5), max_size=3), st.sampled_from(DTYPES)), min_size=1, max_size=8
    )
)
def test_torch_reads_what_is_laid_out(tmp_path_factory, parts):
    path = tmp_path_factory.mktemp("archive") / "mp_rank_00_model_states.pt"
    records = [Record(f"layer.{i}.wäight", tuple(shape), dtype) for i, (shape, dtype) in enumerate(parts)]
    values = [_values(record, i) for i, record in enumerate(records)]
    _write(path, records, values)
    for mmap in (False, True):
        state = torch.load(path, weights_only=True, mmap=mmap)
        assert list(state) == ["module"]
        assert list(state["module"]) == [record.name for record in records]
        for record, value in zip(records, values, strict=True):
            found = state["module"][record.name]
            assert (found.dtype, found.shape) == (value.dtype, value.shape)
            assert torch.equal(found, value)
            assert found.is_contiguous()
            assert not found.requires_grad
    own = RankFile(path)
    for record, value in zip(records, values, strict=True):
        assert torch.equal(own.read(record.name, 0, record.shape[0] if record.shape else 1), value)


def test_structure_is_that_of_torch(tmp_path):
    """Same records, same pickle but for its memory of what came before, same alignment."""
    path = tmp_path / "mp_rank_00_model_states.pt"
    records = [Record("a.weight", (3, 5), "f16"), Record("a.weight_scale", (3,), "f16")]
    values = [_values(record) for record in records]
    _write(path, records, values)
    (tmp_path / "theirs").mkdir()
    theirs = tmp_path / "theirs" / path.name
    module = {record.name: value for record, value in zip(records, values, strict=True)}
    torch.save({"module": module}, theirs)
    with zipfile.ZipFile(path) as ours, zipfile.ZipFile(theirs) as other:
        names = [record.filename for record in ours.infolist()]
        assert [name for name in names if not name.endswith(("byteorder", "version"))] == [
            f"mp_rank_00_model_states/{name}" for name in ("data.pkl", "data/0", "data/1")
        ]
        assert set(names) <= {record.filename for record in other.infolist()}
        for record in ours.infolist():
            assert record.compress_type == zipfile.ZIP_STORED
            if "/data/" not in record.filename:
                assert ours.read(record)
            if record.filename.endswith(("byteorder", "version")):
                assert ours.read(record) == other.read(record.filename)


def test_checksums_of_weights_are_left_out_as_torch_can(tmp_path):
    """torch.load checks none; what torch writes without them it reads too."""
    records = [Record("a.weight", (100,), "f32")]
    path = tmp_path / "ours.pt"
    _write(path, records, [_values(records[0])])
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"module": {"a.weight": _values(records[0])}}, tmp_path / "theirs.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    for file in (path, tmp_path / "theirs.pt"):
        with zipfile.ZipFile(file) as archive:
            assert archive.getinfo(f"{file.stem}/data/0").CRC == 0
        found = torch.load(file, weights_only=True)["module"]["a.weight"]
        assert torch.equal(found, _values(records[0]))


def test_files_beyond_4_gib(tmp_path):
    """Sizes and offsets of eight bytes; the file is sparse, so it takes no space."""
    records = [
        Record("large.weight", (1 << 16, 1 << 16), "i8"),
        Record("after", (3,), "f32"),
        Record("larger.weight", (3, 1 << 31), "i8"),
        Record("last", (4,), "i8"),
    ]
    path = tmp_path / "mp_rank_00_model_states.pt"
    archive = lay_out(path.stem, records)
    small = {"after": torch.tensor([1.0, 2.0, 3.0]), "last": torch.tensor([4, 5, 6, 7], dtype=torch.int8)}
    with path.open("wb") as file:
        file.truncate(archive.size)
        file.write(archive.header)
        for offset, part in archive.parts:
            file.seek(offset)
            file.write(part)
        for name, value in small.items():
            file.seek(archive.offsets[name])
            file.write(value.view(torch.uint8).numpy().tobytes())
        file.seek(archive.offsets["larger.weight"] + 2 * (1 << 31) + 5)
        file.write(b"\x09")
    own = RankFile(path)
    module = torch.load(path, weights_only=True, map_location="meta")["module"]
    with zipfile.ZipFile(path) as found:
        assert [record.file_size for record in found.infolist() if "/data/" in record.filename] == [
            record.nbytes for record in records
        ]
    for record in records:
        assert module[record.name].shape == record.shape
        assert module[record.name].untyped_storage()._checkpoint_offset == archive.offsets[record.name]
        assert own.entries[record.name].offset == archive.offsets[record.name]
    for name, value in small.items():
        assert torch.equal(own.read(name, 0, len(value)), value)
    assert own.read("larger.weight", 2, 3)[0, :7].tolist() == [0, 0, 0, 0, 0, 9, 0]


def test_whole_numbers_beyond_31_bits_in_the_pickle(tmp_path):
    records = [Record("empty", (0, 1 << 40), "f16"), Record("b", (1,), "f16")]
    _write(tmp_path / "x.pt", records, [torch.empty(0, 1 << 40, dtype=torch.float16), torch.ones(1).half()])
    assert torch.load(tmp_path / "x.pt", weights_only=True)["module"]["empty"].shape == (0, 1 << 40)


def test_dtype_without_a_storage():
    with pytest.raises(ConfigError, match="dtype of x: found 'f8'"):
        lay_out("x", [_Strange("x", (), "f8")])


class _Strange(Record):
    @property
    def nbytes(self):
        return 1


@pytest.fixture
def saved(tmp_path):
    def save(module, **more) -> RankFile:
        path = Path(tmp_path) / "mp_rank_00_model_states.pt"
        torch.save({"module": module, **more}, path)
        return RankFile(path)

    return save


def test_views_shared_storages_and_scalars(saved):
    whole = torch.arange(60.0).view(6, 10)
    module = {
        "whole": whole,
        "rows": whole[2:4],
        "columns": whole[:, 3:5],
        "transposed": whole.t(),
        "steps": whole[::2, ::3],
        "cube": torch.arange(24).view(2, 3, 4).permute(2, 0, 1),
        "scalar": torch.tensor(7, dtype=torch.int16),
        "empty": torch.zeros(0, 3),
        "none": torch.zeros(3, 0),
        "parameter": torch.nn.Parameter(torch.ones(2, 2)),
        "row": torch.zeros(1).expand(1),
    }
    file = saved(module)
    assert list(file.entries) == list(module)
    for name, value in module.items():
        rows = value.shape[0] if value.ndim else 1
        assert torch.equal(file.read(name, 0, rows), value.detach()), name
        if value.ndim and rows > 1:
            assert torch.equal(file.read(name, 1, rows), value.detach()[1:]), name
            assert torch.equal(file.read(name, 1, 1), value.detach()[1:1]), name


def test_state_of_training_beside_the_weights(saved):
    """What SwissArmyTransformer's training writes; NumPy's state is an array, which torch alone would refuse."""
    before = set(torch.serialization.get_safe_globals())
    more = {
        "iteration": 49300,
        "client_lr_scheduler": {"start_lr": 1e-4, "warmup_iter": 10.0, "decay_style": "cosine"},
        "random_rng_state": random.getstate(),
        "np_rng_state": np.random.RandomState(3).get_state(),
        "torch_rng_state": torch.get_rng_state(),
        "cuda_rng_state": torch.zeros(16, dtype=torch.uint8),
        "rng_tracker_states": {"model-parallel-rng": torch.zeros(16, dtype=torch.uint8)},
    }
    file = saved({"a.weight": torch.ones(2, 2)}, **more)
    assert list(file.entries) == ["a.weight"]
    assert set(torch.serialization.get_safe_globals()) == before


def test_permissions_of_others_stay(saved):
    torch.serialization.add_safe_globals([np.ndarray])
    try:
        saved({"a": torch.ones(1)}, state=np.zeros(3, np.uint32))
        assert np.ndarray in torch.serialization.get_safe_globals()
    finally:
        torch.serialization.clear_safe_globals()


def _repack(source, target, stem, without=()):
    """Zip the records anew, as another program would."""
    with zipfile.ZipFile(source) as before, zipfile.ZipFile(target, "w") as after:
        for record in before.infolist():
            if not record.filename.endswith(without):
                name = record.filename.replace(source.stem, stem, 1)
                after.writestr(name, before.read(record))


def test_records_that_are_not_aligned(tmp_path):
    """Before 2.7 torch did not say how it aligns records, and nobody else needs to."""
    source = tmp_path / "source.pt"
    module = {"a": torch.arange(5.0), "b": torch.arange(3)}
    torch.save({"module": module}, source)
    shifts = set()
    for length in range(8):
        path = tmp_path / f"{length}.pt"
        _repack(source, path, "y" * (length + 1), (".format_version", ".storage_alignment"))
        file = RankFile(path)
        shifts.add(file.entries["a"].offset % 4)
        assert torch.equal(file.read("a", 1, 5), module["a"][1:])
        assert torch.equal(file.read("b", 0, 3), module["b"])
    assert len(shifts) > 1


def test_records_that_are_not_where_torch_puts_them(tmp_path):
    source = tmp_path / "source.pt"
    torch.save({"module": {"a": torch.arange(5.0), "b": torch.arange(3)}}, source)
    _repack(source, tmp_path / "again.pt", "again")
    with pytest.raises(CheckpointError, match=r"is not where torch puts it.*save it with torch"):
        RankFile(tmp_path / "again.pt")
