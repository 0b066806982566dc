"""Write what llama.cpp's converter makes of a small model of each architecture: ``make.py LLAMA_CPP_FOLDER``.

`LLAMA_CPP_FOLDER` holds ``conversion/`` and ``gguf-py/``, as in the sdist of llama-cpp-python
(``vendor/llama.cpp``). ``models.json`` then has, for each model, its configuration and the shapes of its tensors, whose
numbers ``tests/models/portable.py`` makes; and the metadata and the hashes of the tensors of the float16 file.
"""

import datetime
import hashlib
import json
import re
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from models import further, portable, tiny
from models.architectures import (
    CASES,
    MULTIMODAL,
    WITH_CODE,
    build,
    build_multimodal,
    build_with_code,
)
from models.encoders import ENCODERS, build_encoder
from safetensors import safe_open

GIVEN = {
    # Keys of hub configurations that Transformers' classes drop when they save, and upstream's converter needs.
    "gpt2": {"n_ctx": 256},
    "gpt_neox": {"rotary_pct": 0.25},
    "gpt_neox-serial": {"rotary_pct": 0.5},
    "cohere2": {"rotary_pct": 1.0},
    "cohere2-pattern": {"rotary_pct": 1.0},
    **{name: {"scoring_func": "softmax"} for name in CASES if name.startswith("deepseek_v2")},
    **{name: {"scoring_func": "sigmoid"} for name in CASES if name.startswith("deepseek_v3")},
    "glm4_moe_lite": {"scoring_func": "sigmoid", "first_k_dense_replace": 2},
    # Of the hub's own code, which the converter knows.
    "nomic_bert": {
        **{"n_positions": 8192, "activation_function": "swiglu", "causal": False, "prenorm": False},
        **dict.fromkeys(("qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias"), False),
        **{"rotary_emb_fraction": 1.0, "rotary_emb_interleaved": False, "rotary_emb_scale_base": None},
    },
    # Transformers reads and saves the number of all heads here.
    "falcon": {"num_kv_heads": 1},
}
TINY = ("llama", "mistral", "qwen2", "qwen3", "gpt2")
NO_MTP = ("qwen3_next", "qwen3_next-kinds")
"""Made with --no-mtp: the converter stops where layers that predict further tokens are missing."""
CHANGED = {
    # The converter takes no other model with this scaling.
    "hunyuan": {
        "head_dim": 128,
        "max_position_embeddings": 32768,
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "alpha": 1000.0, "factor": 1.0},
    },
}
FAILS = {"stablelm-12b": "the converter collects norms of heads and never writes them"}
FEW = 8
"""Of models with more layers, only the first and the last one are kept."""


def convert(folder: Path, target: Path, given: dict, *, no_mtp: bool, vocabulary: bool) -> None:
    from conversion import get_model_class
    from conversion.base import ModelBase, gguf

    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    cls = get_model_class(architecture)
    cls.no_mtp = no_mtp
    hparams = ModelBase.load_hparams(folder, False) | given
    converter = cls(folder, gguf.LlamaFileType.MOSTLY_F16, target, hparams=hparams, eager=True)
    # Tokenizers have their own tests; the converter knows those of the hub by a hash.
    if not vocabulary:
        converter.set_vocab = lambda: None
    converter.write()


def content(path: Path, *, vocabulary: bool = False) -> dict:
    from gguf import GGUFReader

    reader = GGUFReader(path)
    left = ("GGUF.",) if vocabulary else ("GGUF.", "tokenizer.")
    metadata = {
        field.name: [[kind.name for kind in field.types], portable.short(field.contents())]
        for field in reader.fields.values()
        if not field.name.startswith(left)
    }
    tensors = {}
    for tensor in reader.tensors:
        shape, data = [int(each) for each in reversed(tensor.shape)], np.array(tensor.data)
        # What is computed with powers, logarithms or exponentials differs in the last bit between processors.
        exact = not re.search(r"^rope_|\.ssm_a$", tensor.name)
        numbers = (
            hashlib.sha256(data.tobytes()).hexdigest()
            if exact
            else data.reshape(-1)[:16].astype(float).tolist()
        )
        tensors[tensor.name] = [tensor.tensor_type.name, shape, numbers]
    last = metadata[metadata["general.architecture"][1] + ".block_count"][1] - 1
    if last >= FEW:
        tensors = {
            name: value
            for name, value in tensors.items()
            if not name.startswith("blk.") or name.split(".")[1] in ("0", str(last))
        }
    return {"metadata": metadata, "tensors": tensors}


def golden(name: str, kind: str, folder: Path, *, vocabulary: bool = False) -> dict:
    with safe_open(folder / "model.safetensors", "np") as file:
        shapes = {key: file.get_slice(key).get_shape() for key in sorted(file.keys())}
    portable.write(folder / "model.safetensors", shapes)
    config = json.loads((folder / "config.json").read_text())
    target = folder.with_suffix(".gguf")
    with torch.inference_mode():
        given = GIVEN.get(name.removesuffix("-further"), {})
        convert(folder, target, given, no_mtp=name in NO_MTP, vocabulary=vocabulary)
    return {"tokenizer": kind, "config": config, "shapes": shapes, **content(target, vocabulary=vocabulary)}


def main() -> None:
    upstream = Path(sys.argv[1])
    sys.path[:0] = [str(upstream), str(upstream / "gguf-py")]
    from conversion.base import TextModel

    # Some classes ask for it before they write the vocabulary.
    TextModel.get_vocab_base_pre = lambda self, tokenizer: "default"
    found = {}
    with tempfile.TemporaryDirectory() as path:
        for name in TINY:
            kind, _ = tiny.TINY[name]
            found[name] = golden(name, kind, tiny.build(name, Path(path) / name))
        for name in ENCODERS:
            folder = build_encoder(name, Path(path) / name)
            found[name] = golden(name, ENCODERS[name][2], folder, vocabulary=True)
            beside = ("modules.json", "1_Pooling/config.json")
            found[name]["files"] = {each: json.loads((folder / each).read_text()) for each in beside}
        for name in CASES.keys() - FAILS.keys():
            folder = build(name, Path(path) / name, **CHANGED.get(name, {}))
            found[name] = golden(name, CASES[name].tokenizer, folder)
        for name, (case, _) in WITH_CODE.items():
            folder = build_with_code(name, Path(path) / name, Path(path) / f"{name}-twin")
            found[name] = golden(name, case.tokenizer, folder)
        for name in further.FURTHER:
            folder = further.build(name, Path(path) / f"{name}-further")
            found[folder.name] = golden(folder.name, CASES[name].tokenizer, folder)
        for name in MULTIMODAL:
            folder = build_multimodal(name, Path(path) / f"{name}-multimodal", tied=False)
            found[folder.name] = golden(name, "llama-spm", folder)
    here = Path(__file__).parent
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(case)}" for name, case in sorted(found.items()))
    (here / "models.json").write_text("{\n" + lines + "\n}\n")
    provenance = {
        "upstream": "conversion/ and gguf-py/ of ggml-org/llama.cpp, as in the sdist llama-cpp-python 0.3.36",
        "command": "PYTHONPATH=tests python tests/golden/gguf_models/make.py vendor/llama.cpp",
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "not converted": FAILS,
        "date": datetime.date.today().isoformat(),
    }
    (here / "PROVENANCE.json").write_text(json.dumps(provenance, indent=2) + "\n")


main()
