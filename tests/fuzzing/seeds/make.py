"""Make the seeds of the fuzzers from the demo model: the corner of its tensors, in every container and format.

PYTHONPATH=.:plugins:tests python tests/fuzzing/seeds/make.py

Read-only families take a layer of tests/golden/read_only beside them. What is made is stored, so that a run does not
depend on what today's code writes.
"""

from __future__ import annotations

import base64
import copy
import datetime
import json
import lzma
import shutil
import struct
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuzzing import bundles
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import qformats
from qformats.work.progress import Silent
from qformats_bitsandbytes.quant_state import QuantState
from qformats_gguf.header import TensorInfo, serialize
from qformats_gguf.metadata import Value, ValueType, array, boolean, f32, i32, string, u16, u32
from qformats_gguf.reader import read

HERE = Path(__file__).parent
DEMO = Path(qformats.__file__).parent / "demo"
WIDTH, INNER, ROWS = 32, 32, 8
MODULE = "model.layers.0.self_attn.k_proj"
_LEFT_OUT = ("v_proj", "o_proj", "gate_proj", "up_proj")
EXPORTS = {
    "gptq": ("gptq:4bit-32g", "gptq:2bit--1g"),
    "awq": ("awq:4bit-32g",),
    "compressed-tensors": (
        *("compressed-tensors:w4a16-32g", "compressed-tensors:w8a8-channel", "compressed-tensors:fp8-block"),
        *("compressed-tensors:nvfp4", "compressed-tensors:mxfp4"),
    ),
    "fp8": ("fp8:block", "fp8:block-ue8m0"),
    "bitsandbytes": ("bitsandbytes:nf4-dq", "bitsandbytes:int8"),
    "modelopt": ("modelopt:nvfp4", "modelopt:fp8"),
    "mlx": ("mlx:4bit-32g", "mlx:mxfp4"),
    "glm": ("glm:int4", "glm:int8"),
}
READ_ONLY = {
    "hqq": ("hqq-4bit-axis1-float16",),
    "quanto": ("quanto-qint8-64", "quanto-qint4-96"),
    "torchao": ("torchao-row-float32", "torchao-int4-float32"),
}


def cut(folder: Path, rows: int = ROWS) -> Path:
    """A llama of one layer from the corner of the demo's tensors, with a configuration that says so."""
    folder.mkdir(parents=True)
    config = json.loads((DEMO / "config.json").read_text())
    config |= {
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }
    config |= {"head_dim": 16, "num_hidden_layers": 1, "vocab_size": rows, "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {}
    for name, value in load_file(DEMO / "model.safetensors").items():
        if name == "lm_head.weight" or (".layers." in name and ".layers.0." not in name):
            continue
        sizes = [WIDTH] * value.ndim
        if name.endswith(("gate_proj.weight", "up_proj.weight")):
            sizes[0] = INNER
        if name.endswith("down_proj.weight"):
            sizes[1] = INNER
        if name == "model.embed_tokens.weight":
            sizes[0] = rows
        first = (
            value[tuple(slice(size) for size in [1, *sizes[1:]])] if value.ndim == 2 else value[: sizes[0]]
        )
        # All rows alike: nothing here depends on their values, and they compress.
        tensors[name] = first.expand(sizes).to(torch.float16).contiguous()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def vocabulary(merges: int) -> dict[str, Any]:
    """The demo's tokenizer with its bytes and its first merges only."""
    tokenizer = json.loads((DEMO / "tokenizer.json").read_text())
    kept = tokenizer["model"]["merges"][:merges]
    made = {a + b for a, b in kept}
    texts = [
        text
        for text in tokenizer["model"]["vocab"]
        if len(text) == 1 or text in made or text.startswith("<|")
    ]
    tokenizer["model"] |= {"vocab": {text: number for number, text in enumerate(texts)}, "merges": kept}
    return tokenizer


def files(folder: Path) -> dict[str, bytes]:
    """Files of a folder without the record, which is a reader of its own."""
    found = {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}
    return {name: data for name, data in found.items() if not name.endswith("qformats.json")}


def fewer(folder: Path) -> Path:
    """Three modules of seven: they tell as much, in half the time."""
    weights = folder / "model.safetensors"
    with safe_open(weights, "pt") as file:
        kept = {
            name: file.get_tensor(name) for name in file.keys() if not any(part in name for part in _LEFT_OUT)
        }
        told = file.metadata()
    save_file(kept, weights, told)
    return folder


def keep(target: str, name: str, data: bytes) -> None:
    """Write one seed."""
    folder = HERE / target
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.xz").write_bytes(lzma.compress(data, preset=9))


def export(source: Path, target: Path, format: str, **more: Any) -> Path:
    qformats.export(source, target, format=format, quantizer="rtn", workers=1, progress=Silent(), **more)
    return target


def containers(place: Path) -> None:
    """GGUF: values of all types, a whole model, and one in two parts."""
    every = {
        "general.architecture": string("llama"),
        "u16": u16(7),
        "i32": i32(-7),
        "f32": f32(0.5),
        "bool": boolean(True),
        "u64": Value(ValueType.U64, 2**40),
        "f64": Value(ValueType.F64, 1e9),
        "i8": Value(ValueType.I8, -1),
        "texts": array(ValueType.STRING, ["a", "", "é"]),
        "numbers": array(ValueType.I32, [1, 2, 3]),
        "flags": array(ValueType.BOOL, [True, False]),
        "general.alignment": u32(32),
    }
    source = cut(place / "source", rows=272)
    (source / "tokenizer.json").write_text(json.dumps(vocabulary(15)))
    shutil.copy(DEMO / "tokenizer_config.json", source)
    for number, type in enumerate(("q4_0", "q8_0")):
        made = export(source, place / f"{type}.gguf", f"gguf:{type}")
        with read(made) as file:
            tensors = [file.tensors[name] for name in ("blk.0.attn_q.weight", "blk.0.attn_norm.weight")]
            part = [(each, bytes(file.data(each))) for each in tensors]
            few = dict([*every.items()][:4])
            keep(
                "gguf",
                f"{type}.gguf",
                _file(every if number else few, part if number else part[1:], whole=True),
            )
        if not number:
            keep("gguf-model", f"{type}.gguf", made.read_bytes())
    export(source, place / "split" / "model.gguf", "gguf:q4_0", options={"max-shard-size": "6KB"})
    parts = files(place / "split")
    assert len(parts) == 2, sorted(parts)
    keep("gguf-split", "q4_0", bundles.pack(parts))


def _file(metadata: dict[str, Value], tensors: list[tuple[Any, bytes]], *, whole: bool) -> bytes:
    """A GGUF file of little: metadata without long lists, and two tensors."""
    short = {
        key: value
        for key, value in metadata.items()
        if whole or not hasattr(value.data, "__len__") or len(value.data) < 50
    }
    infos = [TensorInfo(each.name, each.shape, each.type) for each, _ in tensors]
    made = serialize(short, infos)
    out = bytearray(made.total_size)
    out[: len(made.data)] = made.data
    for (_, data), at in zip(tensors, made.offsets, strict=True):
        out[at : at + len(data)] = data
    return bytes(out)


def weights(place: Path) -> None:
    source = cut(place / "plain")
    tensors = load_file(source / "model.safetensors")
    some = {name: tensors[name] for name in [*tensors][:4]}
    small = {name: value[:4].contiguous() for name, value in some.items()} | {
        "i": torch.arange(6).reshape(2, 3)
    }
    save_file(small, place / "small.safetensors", {"format": "pt"})
    keep("safetensors", "small.safetensors", (place / "small.safetensors").read_bytes())
    names = [*tensors]
    halves = {"model-00001-of-00002": names[:6], "model-00002-of-00002": names[6:]}
    for suffix, target in ((".safetensors", "index"), (".bin", "bin-folder")):
        folder = place / target
        folder.mkdir()
        shutil.copy(source / "config.json", folder)
        stems = halves if suffix == ".safetensors" else {f"pytorch_{k}": v for k, v in halves.items()}
        index = {
            "metadata": {"total_size": 1},
            "weight_map": {n: stem + suffix for stem, ns in stems.items() for n in ns},
        }
        name = "model.safetensors.index.json" if suffix == ".safetensors" else "pytorch_model.bin.index.json"
        (folder / name).write_text(json.dumps(index))
        for stem, part in stems.items():
            held = {name: tensors[name] for name in part}
            save_file(held, folder / (stem + suffix)) if suffix == ".safetensors" else torch.save(
                held, folder / (stem + suffix)
            )
        keep(target, "two", bundles.pack(files(folder)))
    for name, zipped in (("zip.bin", True), ("legacy.bin", False)):
        torch.save(
            small | {"p": torch.nn.Parameter(torch.ones(2))},
            place / name,
            _use_new_zipfile_serialization=zipped,
        )
        keep("bin", name, (place / name).read_bytes())


def ranks(place: Path) -> None:
    from glm_ranks import sat_oracle

    sat_oracle.HIDDEN, sat_oracle.INNER, sat_oracle.VOCABULARY, sat_oracle.LAYERS = 16, 16, 16, 1
    for bits in (4, 8):
        parts = sat_oracle.split(sat_oracle.quantize(sat_oracle.model(), bits), 2)
        folder = sat_oracle.save(place / f"ranks{bits}", parts)
        sat_oracle.model_config(folder, num_attention_heads=4, model_parallel_size=2)
        if bits == 4:
            keep("ranks", "int4", bundles.pack(files(folder)))
            keep("rank", "int4.pt", next((folder / "49300").glob("*00_model_states.pt")).read_bytes())


def folders(place: Path) -> None:
    source = cut(place / "cut")
    for family, formats in EXPORTS.items():
        for format in formats:
            made = export(source, place / format.replace(":", "-"), format)
            keep(f"folder-{family}", format.partition(":")[2], bundles.pack(files(fewer(made))))
    golden = load_file(HERE.parents[1] / "golden" / "read_only" / "layers.safetensors")
    for family, cases in READ_ONLY.items():
        for case in cases:
            fields = {
                name.partition(".")[2]: value for name, value in golden.items() if name.startswith(f"{case}.")
            }
            values = fields.pop("values")
            wide = cut(place / f"{case}-source")
            tensors = load_file(wide / "model.safetensors")
            tensors = {name: value for name, value in tensors.items() if name != f"{MODULE}.weight"}
            config = json.loads((wide / "config.json").read_text())
            # The layer is larger than the model's own, so that the model is given its sizes where that is looked at.
            config |= {"hidden_size": values.shape[1], "num_key_value_heads": 1, "head_dim": values.shape[0]}
            folder = place / case
            folder.mkdir()
            save_file(
                tensors | {f"{MODULE}.{name}": value for name, value in fields.items()},
                folder / "model.safetensors",
            )
            if family == "quanto":
                kind = case.split("-")[1]
                (folder / "quanto_qmap.json").write_text(
                    json.dumps({MODULE: {"weights": kind, "activations": "none"}})
                )
            else:
                config["quantization_config"] = {"quant_method": family}
            (folder / "config.json").write_text(json.dumps(config))
            keep(f"folder-{family}", case, bundles.pack(files(folder)))
    mxfp4(place)
    eetq(place)
    states = {
        "plain": QuantState("nf4", 64, "f16", (32, 32)),
        "nested": QuantState("nf4", 64, "bf16", (32, 32), 0.25),
    }
    for name, state in states.items():
        keep("quant-state", f"{name}.json", state.to_bytes().strip())


def eetq(place: Path) -> None:
    """A layer in EETQ's order of bytes, which is 64 x 64 at least; the bytes are drawn."""
    source = cut(place / "eetq-source")
    tensors = {n: v for n, v in load_file(source / "model.safetensors").items() if n != f"{MODULE}.weight"}
    codes = np.random.default_rng(0).integers(-128, 128, (64, 64)).astype(np.int8)
    codes[:] = codes[:1]
    tensors |= {f"{MODULE}.weight": torch.from_numpy(codes), f"{MODULE}.weight_scales": torch.ones(64).half()}
    config = json.loads((source / "config.json").read_text())
    config |= {"hidden_size": 64, "num_key_value_heads": 1, "head_dim": 64}
    config |= {
        "quantization_config": {"quant_method": "eetq", "weights": "int8", "modules_to_not_convert": None}
    }
    folder = place / "eetq"
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    keep("folder-eetq", "int8", bundles.pack(files(folder)))


def mxfp4(place: Path) -> None:
    """Experts as gpt-oss stores them; the values are drawn."""
    source = cut(place / "gpt-oss-source")
    config = json.loads((source / "config.json").read_text())
    config |= {"architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "num_local_experts": 2}
    config |= {"num_experts_per_tok": 1, "sliding_window": 16, "layer_types": ["full_attention"]}
    config |= {
        "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]},
        "intermediate_size": 32,
    }
    rng = np.random.default_rng(0)

    def bytes_of(*shape: int, low: int = 0, high: int = 256) -> torch.Tensor:
        return torch.from_numpy(rng.integers(low, high, shape).astype(np.uint8))

    experts = "model.layers.0.mlp.experts"
    tensors = {n: v for n, v in load_file(source / "model.safetensors").items() if ".mlp." not in n}
    for name, rows in (("gate_up_proj", 64), ("down_proj", 32)):
        tensors |= {
            f"{experts}.{name}_blocks": bytes_of(2, rows, 1, 16),
            f"{experts}.{name}_scales": bytes_of(2, rows, 1, low=120, high=130),
            f"{experts}.{name}_bias": torch.zeros(2, rows, dtype=torch.bfloat16),
        }
    folder = place / "gpt-oss"
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    keep("folder-mxfp4", "gpt-oss", bundles.pack(files(folder)))


def tokenizers(place: Path) -> None:
    from models import tokenizers as kinds

    from qformats.vocabularies import parse
    from qformats.vocabularies import serialize as written

    settings = json.loads((DEMO / "tokenizer_config.json").read_text())
    own = vocabulary(15)
    config = json.dumps(
        {"model_type": "llama", "vocab_size": 280, "eos_token_id": 0, "bos_token_id": 0}
    ).encode()
    byte_level = {
        "tokenizer.json": json.dumps(own).encode(),
        "tokenizer_config.json": json.dumps(settings).encode(),
    }
    keep("tokenizer", "byte-level", bundles.pack({"config.json": config, **byte_level}))
    for kind in ("qwen2", "llama-spm", "wordpiece", "unigram"):
        folder = place / kind
        kinds.build(kind, folder)
        found = {name: data for name, data in files(folder).items() if not name.endswith(".model")}
        if "tokenizer.json" not in found:
            continue
        found["tokenizer.json"] = _shortened(found["tokenizer.json"])
        size = len(json.loads(found["tokenizer.json"])["model"]["vocab"]) + 8
        keep(
            "tokenizer",
            kind,
            bundles.pack({"config.json": json.dumps({"vocab_size": size}).encode(), **found}),
        )
    for kind, name in (("llama-spm", "tokenizer.model"), ("unigram", "sentencepiece.bpe.model")):
        model = parse((place / kind / name).read_bytes(), name)
        bytes_of = [piece for piece in model.pieces if piece.text.startswith("<0x")]
        kept = [*model.pieces[:3], *bytes_of, *[p for p in model.pieces[3:] if p not in bytes_of][:40]]
        model = copy.copy(model)
        model.pieces = kept
        if kind == "unigram":
            model.charsmap = model.charsmap[:0]
        more = {n: d for n, d in files(place / kind).items() if n in ("tokenizer_config.json",)}
        seed = {
            "config.json": json.dumps({"vocab_size": len(kept) + 4}).encode(),
            name: written(model),
            **more,
        }
        keep("sentencepiece", kind, bundles.pack(seed))
        if kind == "llama-spm":
            glm = json.dumps(
                {"model_type": "chatglm", "ffn_hidden_size": 32, "padded_vocab_size": len(kept) + 8}
            ).encode()
            keep("tokenizer-glm", "chatglm2", bundles.pack({"config.json": glm, name: written(model)}))
    ranks = b"\n".join(base64.b64encode(token) + b" %d" % rank for rank, token in enumerate(_tokens(own)))
    qwen = json.dumps({"model_type": "qwen", "vocab_size": 512}).encode()
    keep("tiktoken", "qwen", bundles.pack({"config.json": qwen, "qwen.tiktoken": ranks}))
    glm = json.dumps({"model_type": "chatglm", "ffn_hidden_size": 32, "padded_vocab_size": 320}).encode()
    keep("tokenizer-glm", "glm4", bundles.pack({"config.json": glm, "tokenizer.model": ranks}))


def _tokens(tokenizer: dict[str, Any]) -> list[bytes]:
    from qformats.vocabularies.sections import _letters

    letters = {chr(letter): byte for byte, letter in _letters().items()}
    return [
        bytes(letters[each] for each in text)
        for text in tokenizer["model"]["vocab"]
        if not text.startswith("<|")
    ]


def _shortened(data: bytes) -> bytes:
    """A tokenizer.json with fewer pieces, whose ids still follow one another."""
    tokenizer = json.loads(data)
    model = tokenizer["model"]
    if isinstance(model["vocab"], list):
        added = {each["content"] for each in tokenizer["added_tokens"]}
        last = [each for each in model["vocab"] if each[0] in added][-1:]
        kept = [each for number, each in enumerate(model["vocab"]) if number < 60]
        kept += [each for each in last if each not in kept]
        model["vocab"] = kept
        places = {text: number for number, (text, _) in enumerate(kept)}
        tokenizer["added_tokens"] = [
            e | {"id": places[e["content"]]} for e in tokenizer["added_tokens"] if e["content"] in places
        ]
        normalizer = tokenizer.get("normalizer")
        if normalizer and normalizer.get("type") == "Precompiled":
            tokenizer["normalizer"] = None
        return json.dumps(tokenizer).encode()
    merges = [each if isinstance(each, list) else each.split(" ") for each in model.get("merges", [])][:12]
    made = {a + b for a, b in merges}
    whole = {text for pair in merges for text in pair} | made
    bytes_of = {t for t in model["vocab"] if len(t) == 1 or t.startswith(("<", "[")) or t in whole}
    if not merges:
        bytes_of |= set([*model["vocab"]][:60])
    kept = [text for text in model["vocab"] if text in bytes_of]
    model["vocab"] = {text: number for number, text in enumerate(kept)}
    if "merges" in model:
        model["merges"] = merges
    ids = dict(model["vocab"])
    for each in tokenizer["added_tokens"]:
        each["id"] = ids.setdefault(each["content"], len(ids))
    special = (tokenizer.get("post_processor") or {}).get("special_tokens")
    for each in (special or {}).values():
        each["ids"] = [ids[text] for text in each["tokens"]]
    return json.dumps(tokenizer).encode()


def matrices(place: Path) -> None:
    from qformats.interfaces import ColumnSums, Importance
    from qformats_gguf.imatrix.write import file_content

    rng = np.random.default_rng(1)
    names = ("blk.0.attn_q.weight", "blk.0.ffn_down.weight")
    sums = {name: ColumnSums(rng.random((1, 16)), np.array([512.0])) for name in names}
    keep("imatrix", "gguf.dat", file_content(Importance(sums, ("x",), ("wiki",), 4, 512), None))
    out = [struct.pack("<i", len(names))]
    for name in names:
        out += [
            struct.pack("<i", len(name)),
            name.encode(),
            struct.pack("<ii", 4, 16),
            rng.random(16, np.float32).tobytes(),
        ]
    out += [struct.pack("<ii", 4, 4), b"wiki"]
    keep("imatrix", "legacy.dat", b"".join(out))


def records(place: Path) -> None:
    source = cut(place / "recorded-source")
    made = export(source, place / "recorded", "gptq:4bit-32g")
    found = {file.name: file.read_bytes() for file in sorted(made.iterdir())}
    keep("record", "folder", bundles.pack(found))
    lines: list[dict[str, Any]] = [
        {"identity": "identity-of-the-plan", "token": "ours"},
        {"slice": 0, "spans": [[0, 0, 3, "0" * 32]]},
        {"slice": 1, "spans": [[0, 3, 3, "1" * 32]], "measure": [1.0, 2.0, 3.0, 4], "vanished": 2},
    ]
    placing: dict[str, Any] = {"placing": [["files/out.gguf", "out.gguf"]], "new": None, "token": "ours"}
    for name, told in (("filling", lines), ("placing", [*lines, placing])):
        text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in told).encode()
        seed = {"journal.jsonl": text} | ({"replaced.jsonl": b"{}\n"} if name == "placing" else {})
        keep("journal", name, bundles.pack(seed))


def adapters(place: Path) -> None:
    source = cut(place / "base")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "bias": "none"}
    config |= {
        "base_model_name_or_path": "base",
        "use_rslora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
    }
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {
        f"{module}.lora_A.weight": torch.ones(2, WIDTH),
        f"{module}.lora_B.weight": torch.ones(WIDTH, 2),
    }
    save_file(tensors, place / "adapter_model.safetensors")
    torch.save(tensors, place / "adapter_model.bin")
    for suffix in ("safetensors", "bin"):
        seed = {
            "adapter_config.json": json.dumps(config).encode(),
            "config.json": (source / "config.json").read_bytes(),
            f"adapter_model.{suffix}": (place / f"adapter_model.{suffix}").read_bytes(),
        }
        keep("adapter", suffix, bundles.pack(seed))


def main() -> None:
    """Make all of them anew."""
    for folder in HERE.iterdir():
        if folder.is_dir():
            shutil.rmtree(folder)
    with tempfile.TemporaryDirectory() as name:
        for step in (containers, weights, ranks, folders, tokenizers, matrices, records, adapters):
            place = Path(name) / step.__name__
            place.mkdir()
            step(place)
    total = sum(file.stat().st_size for file in HERE.rglob("*") if file.is_file())
    told = {
        "command": "PYTHONPATH=.:plugins:tests python tests/fuzzing/seeds/make.py",
        "from": "first rows of the tensors of qformats/demo, repeated; tests/golden/read_only; drawn for gpt-oss",
        "qformats": qformats.__version__,
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
    }
    (HERE / "PROVENANCE.json").write_text(json.dumps(told, indent=2) + "\n")
    print(f"{total:,} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
