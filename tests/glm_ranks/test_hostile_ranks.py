"""Damaged, incomplete and malicious rank folders: one clear sentence, and nothing of the file runs."""

import os
import shutil
import zipfile

import numpy as np
import pytest
import torch
from glm_ranks import sat_oracle as oracle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import qformats
from qformats.errors import CheckpointError, QFormatsError, UnsupportedModelError
from qformats_glm.ranks.archive import RankFile
from qformats_glm.ranks.torchfile import Record, lay_out

DENSE = "transformer.layers.0.attention.dense.weight"
UP = "transformer.layers.0.mlp.dense_h_to_4h.weight"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good") / "model"
    return oracle.save(folder, oracle.split(oracle.quantize(oracle.model(), 4), 4))


@pytest.fixture
def folder(good, tmp_path):
    return shutil.copytree(good, tmp_path / "model")


def _file(folder, rank=0):
    return folder / "49300" / f"mp_rank_{rank:02d}_model_states.pt"


def _edit(folder, change, ranks=range(4)):
    """Load ranks, let `change` work on their dict of tensors, and save them again."""
    for rank in ranks:
        state = torch.load(_file(folder, rank), weights_only=True)
        change(state["module"])
        torch.save(state, _file(folder, rank))


def _refused(folder, message, kind=CheckpointError):
    with pytest.raises(kind, match=message):
        qformats.open(folder)


def test_good(good):
    assert len(qformats.open(good).tensors) == len(oracle.model())
    assert qformats.open(good / "49300").iteration is None


class Malicious:
    """Runs a command while it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("place", ["module", "tensor", "np_rng_state", "whole"])
def test_code_in_a_pickle_does_not_run(folder, tmp_path, place):
    trap = Malicious(tmp_path / "ran")
    state = torch.load(_file(folder, 2), weights_only=True)
    if place == "tensor":
        state["module"][DENSE] = trap
    elif place == "whole":
        state = trap
    else:
        state[place] = trap
    torch.save(state, _file(folder, 2))
    _refused(
        folder,
        r"mp_rank_02\w+\.pt: would run posix.system while being read.*Do not trust .*save only its 'module'",
    )
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "name", ["os.system", "builtins.eval", "numpy.fromfile", "numpy.load", "builtins.getattr"]
)
def test_functions_beside_the_permitted_ones_are_refused(tmp_path, name):
    module, _, function = name.rpartition(".")
    archive = lay_out("x", [])
    pickled = f"\x80\x02c{module}\n{function}\n.".encode("latin-1")
    with zipfile.ZipFile(tmp_path / "mp_rank_00_model_states.pt", "w") as file:
        file.writestr("x/data.pkl", pickled)
        file.writestr("x/byteorder", b"little")
        file.writestr("x/version", b"3\n")
    assert archive.size
    with pytest.raises(CheckpointError, match=r"would run [\w.]+ while being read|cannot be read"):
        RankFile(tmp_path / "mp_rank_00_model_states.pt")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_truncated_file(folder, share):
    data = _file(folder, 1).read_bytes()
    _file(folder, 1).write_bytes(data[: int(len(data) * share)])
    _refused(folder, r"mp_rank_01.*(?:cut off|damaged|is empty|begins with)")


def test_pointer_of_git_lfs(folder):
    _file(folder).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 16000000000\n")
    _refused(folder, r"mp_rank_00\w+\.pt: is a Git LFS pointer.*git lfs pull")


def test_old_format_of_torch(folder):
    state = torch.load(_file(folder), weights_only=True)
    torch.save(state, _file(folder), _use_new_zipfile_serialization=False)
    _refused(folder, "expected a zip file of torch.save.*torch before 1.6")


def test_zip_that_is_no_torch_file(folder):
    with zipfile.ZipFile(_file(folder), "w") as file:
        file.writestr("readme.txt", "hello")
    _refused(folder, "cannot be read")


def test_compressed_records(folder):
    again = _file(folder).with_name("again.pt")
    with zipfile.ZipFile(_file(folder)) as before, zipfile.ZipFile(again, "w", zipfile.ZIP_DEFLATED) as after:
        for record in before.infolist():
            after.writestr(record.filename, before.read(record))
    again.rename(_file(folder))
    _refused(folder, "record .* is compressed; expected plain records")


def test_numbers_of_the_other_byte_order(folder):
    data = _file(folder).read_bytes()
    assert data.count(b"little") == 1
    # Same length, so that nothing else moves.
    _file(folder).write_bytes(data.replace(b"little", b"bigbig"))
    _refused(folder, "is big-endian; expected little-endian numbers")


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "holds an empty dict"),
        ({"model": {}, "optimizer": 1}, "holds a dict of 'model', 'optimizer'; expected .*under 'module'"),
        ([1, 2], "holds a list"),
        ({"module": {}}, "holds no tensors"),
        ({"module": [1]}, "holds a dict of 'module'"),
        ({"module": {1: torch.zeros(2)}}, "a tensor called 1"),
        ({"module": {DENSE: 3.5}}, "is of type float; expected a tensor"),
        ({"module": {DENSE: torch.zeros(2, 2).to_sparse()}}, "layout torch.sparse_coo"),
        ({"module": {DENSE: torch.zeros(2, 2, dtype=torch.complex64)}}, "dtype torch.complex64"),
        ({"module": {DENSE: torch.zeros(2, 2, device="meta")}}, "no values"),
        ({"module": {DENSE: torch.tensor(1.0)}}, "a single number"),
        ({"module": {DENSE: torch.zeros(4)}}, r"shape \(4,\); expected a matrix"),
        (
            {"module": {DENSE.replace("dense", "query_key_value"): torch.zeros(6, 2)}},
            r"query_key_value.*of 6 rows; expected .*attention.dense.weight beside it",
        ),
        ({"module": {DENSE: torch.zeros(1).expand(1000, 1000)}}, "needs 4000000 bytes of a record of 4"),
    ],
)
def test_files_without_tensors_of_a_model(folder, state, message):
    torch.save(state, _file(folder))
    for rank in (1, 2, 3):
        _file(folder, rank).unlink()
    _refused(folder, message)


def test_tensor_larger_than_its_record(tmp_path):
    archive = lay_out("x", [Record(DENSE, (4,), "f32")])
    path = tmp_path / "mp_rank_00_model_states.pt"
    with path.open("wb") as file:
        file.truncate(archive.size)
        file.write(archive.header.replace(b"J\4\0\0\0", b"J\0\4\0\0"))
        for offset, part in archive.parts:
            file.seek(offset)
            file.write(part)
    with pytest.raises(CheckpointError, match="needs 4096 bytes of a record of 16"):
        RankFile(path)


def test_missing_ranks(folder):
    _file(folder, 1).unlink()
    _refused(folder, "mp_rank_01_model_states.pt: is missing, although rank 3 is there")


def test_missing_last_rank(folder):
    """No name tells, but the columns of row-parallel weights do."""
    _file(folder, 3).unlink()
    _refused(
        folder,
        r"12 bytes per row in all ranks together; expected 16 \(int4\).*3 ranks were found: some may be missing",
    )


def test_missing_last_ranks_of_a_plain_model(tmp_path):
    source = oracle.save(tmp_path / "model", oracle.split(oracle.model(), 4))
    for rank in (2, 3):
        _file(source, rank).unlink()
    _refused(source, "16 columns in all ranks together; expected 32.*2 ranks were found")
    oracle.model_config(source, model_parallel_size=4)
    _refused(source, "the files of 2 ranks; expected 4, as model_config.json says")


def test_rank_twice(folder):
    shutil.copy(_file(folder, 2), folder / "49300" / "mp_rank_2_model_states.pt")
    _refused(folder, "rank 2 twice")


def test_no_ranks(folder):
    for rank in range(4):
        _file(folder, rank).unlink()
    (folder / "mp_rank_0_model_states.pt").write_bytes(b"")
    _refused(folder, "no ranks; expected mp_rank_00")


@pytest.mark.parametrize("name", ["z3_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt"])
def test_zero_3(folder, name):
    _file(folder).rename(folder / "49300" / name)
    _refused(folder, f"{name}: weights divided by ZeRO-3")


def test_one_file_alone(folder):
    _refused(_file(folder), "is one rank of a model; expected the folder")


@pytest.mark.parametrize(
    "text", [b"", b"..", b"../other", b"/etc", b"a\0b", b"\xff\xfe", b"x" * 5000, b"49301"]
)
def test_iteration_that_names_no_folder(folder, text):
    (folder / "latest").write_bytes(text)
    _refused(folder, r"latest: names .*(?:the name of the folder beside it|but there is no such folder here)")


def test_ranks_with_other_tensors(folder):
    _edit(folder, lambda module: module.pop(UP), ranks=[2])
    _refused(folder, f"mp_rank_02.*{UP}.*is in mp_rank_00.*but not in mp_rank_02")


def test_ranks_with_other_shapes(folder):
    _edit(folder, lambda module: module.update({UP: module[UP][:-2].clone()}), ranks=[1])
    _refused(folder, r"mp_rank_01.*i8 of shape \(30, 16\); expected i8 of shape \(32, 16\), as in mp_rank_00")


def test_ranks_with_other_dtypes(folder):
    _edit(folder, lambda module: module.update({UP: module[UP].half()}), ranks=[3])
    _refused(folder, r"f16 of shape \(32, 16\); expected i8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop(f"{UP}_scale"), f"packed codes without {UP}_scale"),
        (lambda m: m.pop(UP), "scales without their weight"),
        (
            lambda m: m.update({f"{UP}_scale": m[f"{UP}_scale"][:-1].clone()}),
            r"f16 of shape \(31,\); expected one",
        ),
        (
            lambda m: m.update({f"{UP}_scale": m[f"{UP}_scale"].int()}),
            r"i32 of shape \(32,\); expected one float",
        ),
        (lambda m: m.update({UP: m[UP].half()}), r"f16 of shape \(32, 16\) beside"),
        (
            lambda m: m.update({UP: m[UP][:, :15].clone()}),
            r"15 bytes per row.*expected 16 \(int4\) or 32 \(int8\)",
        ),
        (lambda m: m.update({UP: m[UP][:, 0].clone()}), r"i8 of shape \(32,\) beside"),
        (lambda m: m.update({f"{DENSE}_scale": m[f"{DENSE}_scale"] * torch.nan}), "infinity or NaN"),
        (lambda m: m.update({"extra.weight": torch.zeros(2)}), "found 'extra.weight'"),
    ],
)
def test_parts_that_contradict_each_other(folder, change, message):
    _edit(folder, change)
    _refused(folder, message, (CheckpointError, UnsupportedModelError))


def test_scales_that_are_not_finite_stop_an_export(folder, tmp_path):
    """Those of column-parallel weights are looked at when they are read."""
    _edit(folder, lambda module: module[f"{UP}_scale"].fill_(torch.inf), ranks=[3])
    with pytest.raises(QFormatsError, match=f"mp_rank_03.*{UP}.*infinity or NaN"):
        qformats.export(folder, tmp_path / "out", format="glm:int4")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["{", "[1]", '{"a": ' * 100_000])
def test_model_config_that_is_none(folder, text):
    (folder / "model_config.json").write_text(text)
    _refused(folder, "model_config.json: (?:is not JSON|a JSON list)")


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_bytes_never_raise_anything_else(good, tmp_path, data):
    content = bytearray(_file(good).read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        # The pickle and the directory: what lies between is numbers.
        place = data.draw(st.one_of(st.integers(0, 9000), st.integers(len(content) - 6000, len(content) - 1)))
        content[place] = data.draw(st.integers(0, 255))
    path = tmp_path / "mp_rank_00_model_states.pt"
    path.write_bytes(content)
    try:
        file = RankFile(path)
    except QFormatsError:
        return
    for name, entry in file.entries.items():
        values = file.read(name, 0, entry.shape[0] if entry.shape else 1)
        assert values.numel() == np.prod(entry.shape, dtype=np.int64)
        values.clone()
