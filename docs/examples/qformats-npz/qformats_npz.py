"""A third-party container for qformats: a model of any format in one NumPy archive.

An ``.npz`` is a zip file of arrays. Every entry begins with the checksum of its data, and the file ends with a
directory that repeats it, so neither can be written before the weights are: that is what ``finish`` is for.
"""

import json
import math
import re
import struct
import zipfile
import zlib

import qformats
from qformats import Checkpoint, Loader, StoredTensor, hookimpl
from qformats.errors import CheckpointError, ConfigError
from qformats.interfaces import Draft, Layout, OutputFile, Placement, cut
from qformats.numbers import SIZES, torch_dtype
from qformats.work.files import map_file

ABOUT = "about.json"
CODES = {"bf16": "<u2", "bool": "|b1", "u8": "|u1"}
LINEAR = re.compile(r"\.\d+\..*(?<!norm)\.weight$")
END = 22


class Npz(Loader):
    name = "npz"
    summary = "NumPy archive, with tensors of any format"
    suffix = ".npz"

    def accepts(self, packer):
        return True

    def detect(self, path):
        with open(path if path.is_file() else "/dev/null", "rb") as file:
            return file.read(30 + len(ABOUT))[30:] == ABOUT.encode()

    def open(self, path, options):
        return NpzModel(path)

    def draft(self, source, options):
        """Matrices of the blocks may be quantized; everything else keeps its format."""
        drafts = []
        for name, tensor in source.tensors.items():
            linear = len(tensor.shape) == 2 and LINEAR.search(name)
            keep, why = (None, "") if linear else (tensor.format, "not a matrix of a block")
            drafts.append(Draft(name, tensor, keep=keep, why=why, cast_along=True))
        return drafts

    def lay_out(self, source, assignments, default, target, options):
        tensors = {a.draft.name: [a.packer.name, list(a.draft.source.shape)] for a in assignments}
        about = json.dumps({"config": source.config, "tensors": tensors}).encode()
        files = {ABOUT: about, **{f"files/{name}": data for name, data in source.tokenizer_files().items()}}
        at, parts, placements = 0, [], []
        for name, data in files.items():
            parts.append((at, local(name, len(data)) + data))
            at += len(parts[-1][1])
        for index, a in enumerate(assignments):
            for field, (dims, dtype) in a.packer.stored(a.draft.source.shape).items():
                name, nbytes = f"{a.draft.name}/{field}.npy", SIZES[dtype] * math.prod(dims)
                head = array(dims, dtype, at + len(local(name, 0)))
                parts.append((at, local(name, len(head) + nbytes) + head))
                at += len(parts[-1][1])
                placements.append(Placement(index, field, at, nbytes))
                at += nbytes
        if at > zipfile.ZIP64_LIMIT:
            found = f"{at} bytes"
            raise ConfigError("size of the archive", found, f"at most {zipfile.ZIP64_LIMIT}, without ZIP64")
        file = OutputFile(target.name, at + directory_size(parts), b"", tuple(placements), tuple(parts))
        return Layout((file,), folder=False)

    def finish(self, file, content):
        """Checksums into the entries, and the directory that the file ends with."""
        found, directory = [], b""
        for at, part in file.parts:
            size, length = struct.unpack_from("<IH", part, 22)
            crc = struct.pack("<I", zlib.crc32(content[at + 30 + length : at + 30 + length + size]))
            found.append((at + 14, crc))
            directory += b"PK\1\2\x14\0" + part[4:14] + crc + part[18:30] + bytes(10) + struct.pack("<I", at)
            directory += part[30 : 30 + length]
        count, end = len(file.parts), file.size - directory_size(file.parts)
        last = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, len(directory), end, 0)
        return [*found, (end, directory + last)]


class NpzModel(Checkpoint):
    container = "npz"
    architecture = property(lambda self: str(self.config.get("model_type")))
    config = property(lambda self: self.about["config"])
    files = property(lambda self: [self.path])

    def __init__(self, path):
        self.path, self.data = path, map_file(path)
        try:
            with zipfile.ZipFile(path) as archive:
                self.about = json.loads(archive.read(ABOUT))
                entries = {entry.filename: entry for entry in archive.infolist()}
            self.tensors = {
                name: self.tensor(name, qformats.packer(format), tuple(shape), entries)
                for name, (format, shape) in self.about["tensors"].items()
            }
        except (zipfile.BadZipFile, KeyError, ValueError, TypeError) as error:
            raise CheckpointError(path, f"cannot be read ({error})", "an archive of this plugin") from error

    def tensor(self, name, packer, shape, entries):
        places = {}
        for field, (dims, dtype) in packer.stored(shape).items():
            entry = entries[f"{name}/{field}.npy"]
            stop = entry.header_offset + len(local(entry.filename, 0)) + entry.file_size
            places[field] = (stop - SIZES[dtype] * math.prod(dims), stop)
            if entry.compress_type or entry.compress_size != entry.file_size or stop > len(self.data):
                raise CheckpointError(self.path, f"{field} is compressed or cut off", "it whole", tensor=name)

        def load(start, stop):
            fields = {
                field: self.data[slice(*places[field])].view(torch_dtype(dtype)).view(dims)
                for field, (dims, dtype) in packer.stored(shape).items()
            }
            return cut(packer.from_stored(fields, shape), start, stop)

        step, nbytes = packer.row_step(shape), packer.nbytes(shape)
        return StoredTensor(name, shape, packer, nbytes, self.path, load, step=step)

    def tokenizer_files(self):
        with zipfile.ZipFile(self.path) as archive:
            names = [name for name in archive.namelist() if name.startswith("files/")]
            return {name.removeprefix("files/"): archive.read(name) for name in names}


def local(name, size):
    """What precedes an entry's data; its checksum is 0 until the weights are written."""
    spelled = name.encode()
    head = struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0x800, 0, 0, 33, 0, size, size, len(spelled), 0)
    return head + spelled


def array(dims, dtype, at):
    """Header of a ``.npy`` file at this place, so long that its data begin at a multiple of 64 bytes."""
    code = CODES.get(dtype, f"<{dtype[0]}{SIZES[dtype]}")
    told = f"{{'descr': '{code}', 'fortran_order': False, 'shape': {tuple(dims)}, }}".encode()
    told += b" " * (-(at + 10 + len(told) + 1) % 64) + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(told)) + told


def directory_size(parts):
    return sum(46 + struct.unpack_from("<H", part, 26)[0] for _, part in parts) + END


@hookimpl
def qformats_register_loaders():
    return [Npz]
