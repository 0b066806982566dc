"""Let llama.cpp quantize small models, and record the type of every tensor and the bytes of some files.

``python tests/golden/gguf_mixes/make.py FOLDER`` wants a folder with ``libllama*.so`` and what it needs: here
``bins/linux-x64`` of the npm package @node-llama-cpp/linux-x64. The models are those of ``tests/models/mixes.py``.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from models.mixes import MODELS, importance, write  # noqa: E402

# Numbers of llama.h.
FILE_TYPES = {
    "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "q2_k": 10, "q3_k_s": 11, "q3_k_m": 12, "q3_k_l": 13,
    "q4_k_s": 14, "q4_k_m": 15, "q5_k_s": 16, "q5_k_m": 17, "q6_k": 18, "q2_k_s": 21, "iq4_nl": 25, "iq4_xs": 30,
    "tq1_0": 36, "tq2_0": 37, "mxfp4_moe": 38,
}  # fmt: skip
LETTERS = {
    "f32": "F", "f16": "H", "q4_0": "0", "q4_1": "1", "q5_0": "a", "q5_1": "b", "q8_0": "8", "q2_k": "2", "q3_k": "3",
    "q4_k": "4", "q5_k": "5", "q6_k": "6", "iq4_nl": "n", "iq4_xs": "x", "tq1_0": "s", "tq2_0": "t", "mxfp4": "m",
}  # fmt: skip
"""One letter for each type, since there are thousands of tensors."""
HASHED = {
    "gqa2": ("q4_k_m", "q5_k_m", "q3_k_l", "q2_k", "iq4_xs"),
    "experts8": ("q4_k_m",),
    "wide": ("q4_k_m", "q2_k"),
}


class Importance(ctypes.Structure):
    """``llama_model_imatrix_data``."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("data", ctypes.POINTER(ctypes.c_float)),
        ("size", ctypes.c_size_t),
    ]


class Parameters(ctypes.Structure):
    """``llama_model_quantize_params``."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("nthread", "ftype", "output_type", "embedding_type")),
        *(
            (name, ctypes.c_bool)
            for name in ("requantize", "quantize_output", "only_copy", "pure", "keep_split", "dry_run")
        ),
        ("imatrix", ctypes.POINTER(Importance)),
        *((name, ctypes.c_void_p) for name in ("overrides", "tensor_types", "prune")),
    ]


def library(folder: Path) -> Any:
    """Load llama.cpp."""
    for pattern in ("libggml-base*.so*", "libggml.*so*"):
        for file in sorted(folder.glob(pattern)):
            ctypes.CDLL(str(file), ctypes.RTLD_GLOBAL)
    found = ctypes.CDLL(str(next(folder.glob("libllama.*so*"))))
    found.llama_model_quantize_default_params.restype = Parameters
    found.llama_model_quantize.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(Parameters)]
    # Messages go nowhere.
    keep = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
    found.llama_log_set(keep, None)
    found.kept = keep
    return found


def quantize(
    lib: Any, source: Path, target: Path, file_type: int, pure: bool, weights: dict[str, Any]
) -> int:
    """Run ``llama_model_quantize``."""
    parameters = lib.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread, parameters.pure = file_type, 1, pure
    held = []
    if weights:
        entries = (Importance * (len(weights) + 1))()
        for at, (name, values) in enumerate(weights.items()):
            values = np.ascontiguousarray(values, np.float32)
            held.append(values)
            entries[at] = Importance(
                name.encode(), values.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), values.size
            )
        parameters.imatrix = entries
    result: int = lib.llama_model_quantize(
        str(source).encode(), str(target).encode(), ctypes.byref(parameters)
    )
    return result


def main(folder: Path) -> None:
    """Write types.json."""
    lib = library(folder)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for model in MODELS:
            source, target = Path(scratch, f"{model}.gguf"), Path(scratch, "out.gguf")
            write(model, source)
            entry: dict[str, Any] = {"tensors": [], "types": {}, "sha256": {}}
            for mix, number in FILE_TYPES.items():
                for variant in ("", " pure", " imatrix"):
                    weights = importance(model) if variant == " imatrix" else {}
                    if quantize(lib, source, target, number, variant == " pure", weights):
                        entry["types"][mix + variant] = None
                        continue
                    reader = gguf.GGUFReader(target)
                    tensors = {t.name: t for t in reader.tensors}
                    entry["tensors"] = " ".join(tensors)
                    letters = [LETTERS[t.tensor_type.name.lower()] for t in tensors.values()]
                    entry["types"][mix + variant] = "".join(letters)
                    if mix in HASHED.get(model, ()) and variant != " pure":
                        digest = hashlib.sha256()
                        for name in sorted(tensors):
                            digest.update(name.encode() + np.ascontiguousarray(tensors[name].data).tobytes())
                        entry["sha256"][mix + variant] = digest.hexdigest()
                    del reader, tensors
            found[model] = entry
            print(model, {name: value and len(set(value)) for name, value in entry["types"].items()})
    letters = {letter: name for name, letter in LETTERS.items()}
    (HERE / "types.json").write_text(json.dumps({"letters": letters, "models": found}, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
