"""Write what llama.cpp's converter makes of small models: ``make.py LLAMA_CPP_FOLDER``.

`LLAMA_CPP_FOLDER` holds ``conversion/`` and ``gguf-py/``, as in the sdist of llama-cpp-python
(``vendor/llama.cpp``). Weights count their rows, so that the order of rows shows in the first column.
"""

import datetime
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers

LLAMA = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
}
LLAMA3 = {
    "rope_theta": 500000.0,
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_theta": 10000.0, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LINEAR = {"rope_theta": 10000.0, "rope_type": "linear", "factor": 2.0}
GPT2 = {"vocab_size": 96, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_ctx": 64}
CASES = {
    "llama": ("LlamaConfig", LLAMA),
    "llama-tied-biases": (
        "LlamaConfig",
        {**LLAMA, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    ),
    "llama-head-dim": ("LlamaConfig", {**LLAMA, "head_dim": 32}),
    "llama-linear": ("LlamaConfig", {**LLAMA, "rope_parameters": LINEAR}),
    "llama-yarn": (
        "LlamaConfig",
        {**LLAMA, "rope_parameters": {**YARN, "beta_fast": 32.0, "beta_slow": 1.0}},
    ),
    "llama-3.1": (
        "LlamaConfig",
        {**LLAMA, "head_dim": 128, "max_position_embeddings": 131072, "rope_parameters": LLAMA3},
    ),
    "llama-3.2": (
        "LlamaConfig",
        {
            **LLAMA,
            "head_dim": 64,
            "max_position_embeddings": 131072,
            "rope_parameters": {**LLAMA3, "factor": 32.0},
        },
    ),
    "mistral": ("MistralConfig", {**LLAMA, "head_dim": 32, "sliding_window": None}),
    "qwen2": ("Qwen2Config", {**LLAMA, "rms_norm_eps": 1e-6, "tie_word_embeddings": True}),
    "qwen2-yarn": ("Qwen2Config", {**LLAMA, "rope_parameters": YARN}),
    "qwen3": ("Qwen3Config", {**LLAMA, "head_dim": 32}),
    "gpt2": ("GPT2Config", GPT2),
    "gpt2-inner": ("GPT2Config", {**GPT2, "n_inner": 256, "tie_word_embeddings": False}),
}


def convert(folder: Path) -> dict:
    from conversion import get_model_class
    from conversion.base import ModelBase, gguf

    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    hparams = ModelBase.load_hparams(folder, False)
    converter = get_model_class(architecture)(
        folder, gguf.LlamaFileType.MOSTLY_F16, folder / "out.gguf", hparams=hparams, eager=True
    )
    converter.set_vocab = lambda: None
    converter.prepare_tensors()
    converter.prepare_metadata(vocab_only=False)
    wanted = ("general.architecture", "general.type", "general.size_label", "general.quantization_version")
    arch = converter.gguf_writer.arch
    metadata = {
        key: [value.type.name, value.value]
        for key, value in converter.gguf_writer.kv_data[0].items()
        if key in wanted or key.startswith(arch + ".")
    }
    tensors, rows, factors = {}, {}, None
    for name, info in converter.gguf_writer.tensors[0].items():
        data = np.asarray(info.tensor)
        if name == "rope_freqs.weight":
            factors = data.astype("<f4").tobytes().hex()
            continue
        tensors[name] = [list(info.shape), info.dtype.name]
        if name.startswith(("blk.0.attn_q.", "blk.0.attn_k.", "blk.0.attn_v.")):
            rows[name] = data.reshape(len(data), -1)[:, 0].astype(int).tolist()
    return {"metadata": metadata, "tensors": tensors, "rows": rows, "rope_freqs": factors}


def main() -> None:
    upstream = Path(sys.argv[1])
    sys.path[:0] = [str(upstream), str(upstream / "gguf-py")]
    cases = {}
    for name, (kind, arguments) in CASES.items():
        torch.manual_seed(0)
        config = getattr(transformers, kind)(**arguments)
        model = transformers.AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for tensor in model.parameters():
                tensor.copy_(
                    torch.arange(len(tensor)).reshape(-1, *[1] * (tensor.ndim - 1)).expand_as(tensor)
                )
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            stored = json.loads((Path(folder) / "config.json").read_text())
            names = sorted({key.removeprefix("_") for key in model.state_dict()})
            cases[name] = {"config": stored, "canonical": names, **convert(Path(folder))}
    here = Path(__file__).parent
    (here / "cases.json").write_text(
        "{\n"
        + ",\n".join(f"{json.dumps(name)}: {json.dumps(case)}" for name, case in cases.items())
        + "\n}\n"
    )
    provenance = {
        "upstream": "conversion/ and gguf-py/ of ggml-org/llama.cpp, as in the sdist llama-cpp-python 0.3.36",
        "command": "python tests/golden/gguf_metadata/make.py vendor/llama.cpp",
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "seed": 0,
        "date": datetime.date.today().isoformat(),
    }
    (here / "PROVENANCE.json").write_text(json.dumps(provenance, indent=2) + "\n")


main()
