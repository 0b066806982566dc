"""What a user of a GPU gets: loading, tokens a second of `generate`, and of a long prompt, of a model of 8 B weights.

    python scripts/bench_decode.py FOLDER                  everything; FOLDER is for the models, 35 GB
    python scripts/bench_decode.py FOLDER --layers 4       a smaller one, to try it

Weights are random; the shapes are those of Llama 3 8B. The dense model is measured twice: as Transformers runs it, and
with the same captured steps as the quantized ones. Times are medians of three runs.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import qformats

FORMATS = ("gguf:q4_0", "gptq:4bit-128g", "bitsandbytes:nf4")
WIDTH, INNER, HEADS, KV_HEADS, VOCABULARY = 4096, 14336, 32, 8, 128256
PROMPT, LONG = 64, 2048


def make(folder: Path, layers: int) -> Path:
    """A dense folder of random weights."""
    target = folder / f"dense-{layers}"
    if target.exists():
        return target
    target.mkdir(parents=True)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": WIDTH,
        "intermediate_size": INNER, "num_hidden_layers": layers, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "vocab_size": VOCABULARY, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 8192, "rope_theta": 500000.0, "hidden_act": "silu", "dtype": "float16",
        "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False, "attention_bias": False,
        "mlp_bias": False, "head_dim": WIDTH // HEADS,
    }  # fmt: skip
    (target / "config.json").write_text(json.dumps(config))
    tokenizer(target)
    own = KV_HEADS * WIDTH // HEADS
    block = {
        "self_attn.q_proj": (WIDTH, WIDTH), "self_attn.k_proj": (own, WIDTH), "self_attn.v_proj": (own, WIDTH),
        "self_attn.o_proj": (WIDTH, WIDTH), "mlp.gate_proj": (INNER, WIDTH), "mlp.up_proj": (INNER, WIDTH),
        "mlp.down_proj": (WIDTH, INNER), "input_layernorm": (WIDTH,), "post_attention_layernorm": (WIDTH,),
    }  # fmt: skip
    shapes = {
        "model.embed_tokens": (VOCABULARY, WIDTH),
        "lm_head": (VOCABULARY, WIDTH),
        "model.norm": (WIDTH,),
    }
    for number in range(layers):
        shapes |= {f"model.layers.{number}.{name}": shape for name, shape in block.items()}
    index: dict[str, str] = {}
    held: dict[str, torch.Tensor] = {}
    parts = 0
    torch.manual_seed(0)
    for place, (name, shape) in enumerate(shapes.items()):
        value = torch.ones(shape) if len(shape) == 1 else torch.randn(shape, device="cuda") * 0.02
        held[f"{name}.weight"] = value.half().cpu()
        if sum(each.nbytes for each in held.values()) > 2e9 or place == len(shapes) - 1:
            file = f"model-{parts:05d}.safetensors"
            save_file(held, target / file, {"format": "pt"})
            index |= dict.fromkeys(held, file)
            held, parts = {}, parts + 1
    (target / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return target


def tokenizer(target: Path, vocabulary: int = VOCABULARY) -> None:
    """Tokens for bytes, and names for all others: nothing is written as text here."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<unk>", "<s>", "</s>", *letters]
    tokens += [
        f"{letters[i % 256]}{letters[i // 256 % 256]}{i // 65536}" for i in range(vocabulary - len(tokens))
    ]
    made = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.save(str(target / "tokenizer.json"))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (target / "tokenizer_config.json").write_text(json.dumps(names))


def timed(run: Any, repeats: int) -> float:
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


def measure(name: str, model: Any, load: float, count: int, batches: list[int]) -> None:
    """One line."""
    vocabulary = model.config.vocab_size
    torch.manual_seed(0)
    ids = torch.randint(3, vocabulary, (max(batches), PROMPT), device="cuda")
    cells = []
    for batch in batches:
        prompt = ids[:batch]
        mask = torch.ones_like(prompt)

        def write(new: int, prompt: Any = prompt, mask: Any = mask, **more: Any) -> Any:
            settings = {"do_sample": False, "max_new_tokens": new, "eos_token_id": None, "pad_token_id": 0}
            return model.generate(prompt, attention_mask=mask, **{**settings, **more})

        start = time.perf_counter()
        write(8)
        first = time.perf_counter() - start
        whole = timed(lambda: write(count + 1), 3)
        few = timed(lambda: write(1), 3)
        cells.append(f"{batch * count / (whole - few):.1f} ({first:.1f} s first)")
        if batch == 1:
            sampled = timed(lambda: write(count + 1, do_sample=True, temperature=0.8, top_k=50, top_p=0.9), 3)
            cells.append(f"{count / (sampled - few):.1f}")
    long = torch.randint(3, vocabulary, (1, LONG), device="cuda")
    with torch.inference_mode():
        model(input_ids=long, use_cache=False, logits_to_keep=1)
        reading = timed(lambda: model(input_ids=long, use_cache=False, logits_to_keep=1), 3)
    memory = torch.cuda.max_memory_allocated() / 1e9
    print(
        "| " + " | ".join([name, f"{load:.1f}", *cells, f"{LONG / reading:.0f}", f"{memory:.1f}"]) + " |",
        flush=True,
    )


def loaded(run: Any) -> tuple[Any, float]:
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.synchronize()
    start = time.perf_counter()
    model = run()
    torch.cuda.synchronize()
    return model, time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--formats", nargs="*", default=list(FORMATS))
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--batch", type=int, nargs="*", default=[1])
    parser.add_argument("--eager", action="store_true", help="also without captured steps")
    parser.add_argument("--no-dense", action="store_true")
    parser.add_argument("--profile", action="store_true", help="the kernels of a step, for each format")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("bench_decode: there is no CUDA device", file=sys.stderr)
        return 1
    warnings.simplefilter("default")
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, Transformers {transformers.__version__}, "
          f"Python {platform.python_version()}; {arguments.layers} layers, prompt of {PROMPT}, "
          f"{arguments.tokens} new tokens")  # fmt: skip
    dense = make(arguments.folder, arguments.layers)
    paths = {}
    for name in arguments.formats:
        target = arguments.folder / f"{name.replace(':', '-')}-{arguments.layers}"
        target = target.with_suffix(".gguf") if name.startswith("gguf:") else target
        if not target.exists():
            start = time.perf_counter()
            qformats.export(dense, target, format=name, quantizer="rtn")
            print(f"{name}: exported in {time.perf_counter() - start:.1f} s", flush=True)
        paths[name] = target
    head = [f"tokens/s, batch {batch}" for batch in arguments.batch]
    head.insert(1, "sampling")
    print("| | load, s | " + " | ".join(head) + f" | prompt of {LONG}, tokens/s | peak, GB |")
    print("| --- " * (len(head) + 4) + "|")

    def one(name: str, run: Any, *, plain: bool = False) -> None:
        model, load = loaded(run)
        if plain and "generate" in model.__dict__:
            del model.generate
        measure(name, model, load, arguments.tokens, arguments.batch)
        if arguments.profile:
            profile(model)

    for name, path in paths.items():
        one(name, lambda path=path: qformats.load_model(path, device="cuda"))
        if arguments.eager:
            one(f"{name}, eager", lambda path=path: qformats.load_model(path, device="cuda"), plain=True)
    if not arguments.no_dense:
        one("dense", lambda: qformats.load_model(dense, device="cuda"))

        def theirs() -> Any:
            return transformers.AutoModelForCausalLM.from_pretrained(
                dense, dtype=torch.float16, device_map="cuda"
            )

        one("dense, Transformers", theirs)
    return 0


def profile(model: Any) -> None:
    """Kernels of a few steps, by their time."""
    ids = torch.ones((1, PROMPT), dtype=torch.int64, device="cuda")
    steps = 16
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as found:
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=steps, do_sample=False,
                       eos_token_id=None, pad_token_id=0)  # fmt: skip
        torch.cuda.synchronize()
    rows = sorted(found.key_averages(), key=lambda each: -each.device_time_total)[:14]
    for row in rows:
        each = row.device_time_total / steps
        print(f"    {each:8.1f} us a step, {row.count / steps:6.1f} calls: {row.key[:90]}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
