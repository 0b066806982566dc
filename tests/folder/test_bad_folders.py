"""Damaged, incomplete and hostile Hugging Face folders: one sentence that names the file, and nothing left behind."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import zipfile
from pathlib import Path

import pytest
from cli.command import call

import qformats
from qformats.errors import CheckpointError, ModelNotFoundError

WEIGHTS = "model.safetensors"
NAME = "model.layers.1.mlp.down_proj.weight"


def refused(capsys, model: Path, tmp_path: Path, *found: str, code: int = 3, kind: str = "gguf:q4_0") -> None:
    target = tmp_path / "new" / ("out.gguf" if kind.startswith("gguf") else "out")
    result = call(capsys, "export", model, "-f", kind, "-o", target)
    assert result.code == code, result.err
    assert result.out == ""
    assert result.err.startswith("qformats: ")
    assert result.err.endswith(".\n")
    assert result.err.count("\n") == 1
    for text in found:
        assert text in result.err
    assert os.listdir(tmp_path) == ["in"]
    assert os.listdir(tmp_path / "in") == ["model"]


def change_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def change_weights(folder: Path, change) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(folder / WEIGHTS)
    change(state)
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})


def header(entries: object, body: bytes = b"") -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + body


def f32(shape: list[int], begin: int, end: int) -> dict:
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        bytes(8),
        struct.pack("<Q", 2**62) + b"{}",
        struct.pack("<Q", 2**40) + b"{}",
        header(b"{"),
        header(b"[" * 100_000),
        header({"a": f32([2**40, 2**40], 0, 4)}, bytes(4)),
        header({"a": f32([-1], 0, 4)}, bytes(4)),
        header({"a": f32([1], 0, 2**60)}, bytes(4)),
        header({"a": f32([1], 4, 0)}, bytes(4)),
        header({"a": f32([1], 0, 4), "b": f32([1], 0, 4)}, bytes(4)),
        header({"a": f32([1], 0, 4)}, bytes(8)),
    ],
    ids=lambda content: f"{len(content)}-{content[:14].hex()}",
)
def test_corrupt_safetensors(capsys, copy, tmp_path, content):
    (copy / WEIGHTS).write_bytes(content)
    refused(
        capsys, copy, tmp_path, f"{copy / WEIGHTS}: ", "a complete safetensors file", "fetch the file again"
    )


@pytest.mark.parametrize("cut", [100, -1])
def test_truncated_safetensors(capsys, copy, tmp_path, cut):
    content = (copy / WEIGHTS).read_bytes()
    (copy / WEIGHTS).write_bytes(content[:cut])
    refused(capsys, copy, tmp_path, f"{copy / WEIGHTS}: ", "fetch the file again")


def test_no_weights(capsys, copy, tmp_path):
    (copy / WEIGHTS).unlink()
    refused(capsys, copy, tmp_path, f"{copy}: no weights; expected model.safetensors, ")


def test_exponents_are_no_weights(capsys, copy, tmp_path):
    import torch

    change_weights(copy, lambda state: state.update({NAME: state[NAME].to(torch.float8_e8m0fnu)}))
    found = f"{copy / WEIGHTS}: tensor '{NAME}': holds f8_e8m0, which cannot become gguf:q4_0; expected weights of"
    refused(capsys, copy, tmp_path, found)


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "F6_E3M2", "F8_E4M3FNUZ", "C64", "U16", "I4", "NONE"])
def test_dtypes_by_their_names(capsys, copy, tmp_path, dtype):
    """Whether the library knows one or not, the error has its name."""
    bits = {"C64": 64, "U16": 16, "F4": 4, "I4": 4, "F6_E2M3": 6, "F6_E3M2": 6}.get(dtype, 8)
    entry = {"dtype": dtype, "shape": [8, 8], "data_offsets": [0, 8 * bits]}
    (copy / WEIGHTS).write_bytes(header({"a.weight": entry}, bytes(8 * bits)))
    refused(capsys, copy, tmp_path, f"{copy / WEIGHTS}: ", dtype)


@pytest.mark.parametrize("kind", ["gguf:q4_0", "gguf:f16", "dense:f16"])
def test_integers_where_weights_belong(capsys, copy, tmp_path, kind):
    import torch

    change_weights(copy, lambda state: state.update({NAME: state[NAME].to(torch.int32)}))
    refused(capsys, copy, tmp_path, f"tensor '{NAME}': holds i32, which cannot become {kind}", kind=kind)


@pytest.mark.parametrize("kind", ["gguf:q4_0", "gguf:f32", "dense:f32", "dense:bf16"])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize("name", [NAME, "model.norm.weight"])
def test_not_finite(capsys, copy, tmp_path, kind, value, name):
    def spoil(state):
        state[name].view(-1)[7] = value

    change_weights(copy, spoil)
    refused(
        capsys, copy, tmp_path, f"{copy / WEIGHTS}: tensor '{name}': 1 of ", f"{value} at index 7", kind=kind
    )


def split(copy: Path, change=lambda index: None) -> None:
    """Turn the model into two shards with an index."""
    from safetensors.torch import load_file, save_file

    state = load_file(copy / WEIGHTS)
    (copy / WEIGHTS).unlink()
    index = {}
    for number, names in enumerate((list(state)[::2], list(state)[1::2])):
        file = f"model-{number + 1:05d}-of-00002.safetensors"
        save_file({name: state[name] for name in names}, copy / file, metadata={"format": "pt"})
        index |= dict.fromkeys(names, file)
    change(index)
    (copy / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": index}))


def test_missing_shard(capsys, copy, tmp_path):
    split(copy)
    missing = copy / "model-00002-of-00002.safetensors"
    missing.unlink()
    refused(
        capsys,
        copy,
        tmp_path,
        f"{missing}: is missing (1 of the 2 files that {WEIGHTS}.index.json names). Fetch the missing files",
    )


def test_index_that_names_an_absent_tensor(capsys, copy, tmp_path):
    split(copy, lambda index: index.update({"model.extra": "model-00001-of-00002.safetensors"}))
    refused(capsys, copy, tmp_path, "tensor 'model.extra': is not in this file, although the index says so")


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "..", ".", "a/../b", "a\0b", "x" * 300])
def test_index_that_leads_outside(capsys, copy, tmp_path, name):
    split(copy, lambda index: index.update({NAME: name}))
    index = copy / f"{WEIGHTS}.index.json"
    refused(
        capsys, copy, tmp_path, f"{index}: tensor '{NAME}': file name {name!r}; expected a plain file name"
    )


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": []}', '{"weight_map": {"a": 1}}', "[" * 200_000],
)
def test_unreadable_index(capsys, copy, tmp_path, text):
    split(copy)
    (copy / f"{WEIGHTS}.index.json").write_text(text)
    refused(capsys, copy, tmp_path, f"{copy / WEIGHTS}.index.json: ", "weight_map")


def test_several_files_and_no_index(capsys, copy, tmp_path):
    split(copy)
    (copy / f"{WEIGHTS}.index.json").unlink()
    refused(capsys, copy, tmp_path, f"{copy}: 2 safetensors files without an index")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b'{"a":', "is not JSON"),
        (b"[]", "a JSON list; expected an object"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"[" * 200_000, "is not JSON"),
        (b"", "is not JSON"),
    ],
)
def test_unreadable_config(capsys, copy, tmp_path, content, found):
    (copy / "config.json").write_bytes(content)
    refused(capsys, copy, tmp_path, f"{copy / 'config.json'}: {found}")


def test_no_config(capsys, copy, tmp_path):
    (copy / "config.json").unlink()
    refused(capsys, copy, tmp_path, f"{copy}: a folder with weights and no config.json. Fetch config.json")


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        (
            {"model_type": "foo"},
            "model_type: found 'foo'; expected one of ",
        ),
        ({"hidden_size": "x"}, "hidden_size: found 'x'; expected a positive whole number"),
        ({"num_hidden_layers": 10**30}, "num_hidden_layers: found 10"),
        ({"num_attention_heads": 0}, "num_attention_heads: found 0"),
        (
            {"quantization_config": {"quant_method": "exl2"}},
            "quantization method 'exl2': ExLlamaV2's format, which exllamav2",
        ),
        ({"quantization_config": {"quant_method": "vptq"}}, "reads with the package vptq; expected none"),
        ({"quantization_config": {"quant_method": "new"}}, "quantization method 'new'; expected none"),
        ({"quantization_config": {"quant_method": "qformats"}}, "quantization_config: no format"),
        ({"quantization_config": "x"}, "quantization_config 'x'; expected an object"),
    ],
)
def test_config_that_describes_nothing(capsys, copy, tmp_path, changes, found):
    """Exit code 3: the model is at fault, not the command line."""
    change_config(copy, **changes)
    refused(capsys, copy, tmp_path, f"{copy / 'config.json'}", found)


def test_missing_tensor(capsys, copy, tmp_path):
    change_weights(copy, lambda state: state.pop(NAME))
    refused(capsys, copy, tmp_path, f"tensor '{NAME}': missing; expected the 21 tensors of a llama model")


def test_tokenizer_that_is_no_json(capsys, copy, tmp_path):
    (copy / "tokenizer.json").write_text('{"model":')
    refused(capsys, copy, tmp_path, f"{copy / 'tokenizer.json'}: not readable as JSON")


class Hostile:
    """Runs a command where a careless program unpickles it."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self):
        return os.system, (f"touch {self.place / 'in' / 'ran'}",)


@pytest.mark.parametrize("kind", ["zip", "old", *range(6)])
def test_hostile_pickle_does_not_run(capsys, copy, tmp_path, kind):
    import torch

    (copy / WEIGHTS).unlink()
    file = copy / "pytorch_model.bin"
    if isinstance(kind, int):
        file.write_bytes(pickle.dumps({"a": Hostile(tmp_path)}, protocol=kind))
    else:
        torch.save({"a": Hostile(tmp_path)}, file, _use_new_zipfile_serialization=kind == "zip")
    refused(
        capsys,
        copy,
        tmp_path,
        f"{file}: would run posix.system while being read",
        "Do not trust this file",
    )
    # A careless program would have run it.
    if isinstance(kind, int):
        pickle.loads(file.read_bytes())
    else:
        torch.load(file, weights_only=False)
    assert (tmp_path / "in" / "ran").is_file()


@pytest.mark.parametrize("name", [WEIGHTS, "pytorch_model.bin"])
def test_pointer_of_git_lfs(capsys, copy, tmp_path, name):
    (copy / WEIGHTS).unlink()
    (copy / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 39682919\n")
    refused(capsys, copy, tmp_path, f"{copy / name}: is a Git LFS pointer", "Run `git lfs pull`")


def save(content: object):
    import torch

    return lambda path: torch.save(content, path)


@pytest.mark.parametrize(
    ("write", "found"),
    [
        (lambda path: path.write_bytes(b""), "is cut off"),
        (lambda path: path.write_bytes(b"hello" * 100), "cannot be read"),
        (lambda path: path.write_bytes(pickle.dumps({"a": 1}, protocol=2)), "cannot be read"),
        (save([1]), "holds a list; expected a dict of tensors"),
        (save({"a": 1}), "tensor 'a': is of type int; expected a tensor"),
        (save({1: None}), "a tensor called 1; expected names that are text"),
        (save({}), "has no tensors"),
    ],
    ids=["empty", "garbage", "plain-pickle", "list", "number", "key", "nothing"],
)
def test_other_pickles(capsys, copy, tmp_path, write, found):
    (copy / WEIGHTS).unlink()
    write(copy / "pytorch_model.bin")
    refused(capsys, copy, tmp_path, f"{copy / 'pytorch_model.bin'}: {found}")


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda values: values.to_sparse(), "layout torch.sparse_coo; expected a dense tensor"),
        (lambda values: values.to("meta"), "no values; expected a dense tensor"),
        (lambda values: values + 1j, "dtype torch.complex64; expected one of float64"),
    ],
    ids=["sparse", "meta", "complex"],
)
def test_tensors_that_are_no_plain_numbers(capsys, copy, tmp_path, change, found):
    import torch
    from safetensors.torch import load_file

    state = load_file(copy / WEIGHTS)
    (copy / WEIGHTS).unlink()
    torch.save(state | {NAME: change(state[NAME])}, copy / "pytorch_model.bin")
    refused(capsys, copy, tmp_path, f"tensor '{NAME}': {found}")


def rewritten(file: Path, compression: int, change) -> None:
    """Write a file of torch.save again, record by record."""
    again = file.with_name("again")
    with zipfile.ZipFile(file) as before, zipfile.ZipFile(again, "w", compression) as after:
        for record in before.infolist():
            after.writestr(record.filename, before.read(record))
        change(after)
    again.rename(file)


def test_a_compressed_bin_is_not_read(capsys, copy, tmp_path, monkeypatch):
    """A megabyte of it would make gigabytes of zeros."""
    import torch

    (copy / WEIGHTS).unlink()
    file = copy / "pytorch_model.bin"
    torch.save({NAME: torch.zeros(64, 1 << 16)}, file)
    rewritten(file, zipfile.ZIP_DEFLATED, lambda archive: None)
    assert file.stat().st_size < 1 << 16
    monkeypatch.setattr(torch, "load", lambda *args, **options: pytest.fail("the file was read"))
    found = "is compressed; expected plain records, as torch writes them"
    refused(capsys, copy, tmp_path, f"{file}: record ", found)


def test_records_of_a_bin_that_share_their_bytes(capsys, copy, tmp_path):
    import torch

    (copy / WEIGHTS).unlink()
    file = copy / "pytorch_model.bin"
    torch.save({"a.weight": torch.zeros(4, 4), "b.weight": torch.ones(4, 4)}, file)

    def share(archive):
        first, second = (archive.getinfo(f"pytorch_model/data/{index}") for index in (0, 1))
        second.header_offset = first.header_offset

    rewritten(file, zipfile.ZIP_STORED, share)
    refused(capsys, copy, tmp_path, f"{file}: record ", "overlaps another one; expected records apart")


def test_truncated_bin(capsys, copy, tmp_path):
    import torch
    from safetensors.torch import load_file

    file = copy / "pytorch_model.bin"
    torch.save(load_file(copy / WEIGHTS), file)
    (copy / WEIGHTS).unlink()
    file.write_bytes(file.read_bytes()[:-5000])
    refused(capsys, copy, tmp_path, f"{file}: is cut off or damaged", "fetch the file again")


def test_bin_that_was_replaced_is_read_again(copy):
    """A file of the old format stays in memory while it is in use, and no longer."""
    import torch

    (copy / WEIGHTS).unlink()
    for value in (1.0, 2.0):
        state = {"a.weight": torch.full((4, 4), value)}
        torch.save(state, copy / "pytorch_model.bin", _use_new_zipfile_serialization=False)
        assert float(qformats.open(copy).read("a.weight")[0, 0]) == value


def test_parameters_that_want_gradients(copy, tmp_path):
    """Some programs save nn.Parameter instead of tensors."""
    import torch
    from safetensors.torch import load_file

    state = load_file(copy / WEIGHTS)
    qformats.export(copy, tmp_path / "a" / "out.gguf", format="gguf:q4_0")
    (copy / WEIGHTS).unlink()
    torch.save({k: torch.nn.Parameter(v) for k, v in state.items()}, copy / "pytorch_model.bin")
    qformats.export(copy, tmp_path / "b" / "out.gguf", format="gguf:q4_0")
    assert (tmp_path / "a" / "out.gguf").read_bytes() == (tmp_path / "b" / "out.gguf").read_bytes()


def test_usual_mistakes(copy, tmp_path):
    """Naming a file of the folder, a folder of GGUF files, a name that cannot be one."""
    with pytest.raises(ModelNotFoundError, match=f"Give the folder that also holds config.json: {copy}"):
        qformats.open(copy / WEIGHTS)
    (tmp_path / "files").mkdir()
    with pytest.raises(ModelNotFoundError, match="a folder without config"):
        qformats.open(tmp_path / "files")
    shutil.copy(copy / "config.json", tmp_path / "files" / "a.gguf")
    with pytest.raises(ModelNotFoundError, match=f"Give the file, such as {tmp_path / 'files' / 'a.gguf'}"):
        qformats.open(tmp_path / "files")
    for name in ("", "~nobody-of-this-name/x", "x" * 5000):
        with pytest.raises(ModelNotFoundError, match="Give a path, a hub id"):
            qformats.open(name)


def test_tied_model_without_its_head(copy):
    """A head that is neither stored nor tied is missing, not silently the embedding."""
    change_weights(copy, lambda state: state.pop("lm_head.weight"))
    with pytest.raises(CheckpointError, match=r"tensor 'lm_head\.weight': missing"):
        qformats.export(copy, copy.parent / "out.gguf", format="gguf:q4_0")
    change_config(copy, tie_word_embeddings=True)
    report = qformats.export(copy, copy.parent / "out.gguf", format="gguf:q4_0")
    assert "output.weight" not in [t.name for t in report.tensors]
