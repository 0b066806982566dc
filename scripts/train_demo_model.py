#!/usr/bin/env python3
"""Train the small Llama that qformats ships as `demo`.

Public-domain text only.  Every width suits every block size in use: hidden 256 and FFN 1024
divide by 32, 64, 128 and 256, and down_proj is wide enough for group size 1024.

Provenance of qformats/demo: this program with torch and Transformers 5.17 on one GPU, on four public-domain
texts (Pride and Prejudice; Moby-Dick; addresses of US presidents; Shakespeare), default options. It is kept so
that the model can be made again; a GPU of another kind gives other weights of the same quality.

    python scripts/train_demo_model.py --text a.txt b.txt --out demo-llama
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


def train_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE with GPT-2's pre-tokenizer regex, which llama.cpp knows as ``gpt-2``."""
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tok.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tok, bos_token="<|endoftext|>", eos_token="<|endoftext|>", model_max_length=512
    )


def batches(ids: torch.Tensor, batch: int, length: int, generator: torch.Generator) -> torch.Tensor:
    start = torch.randint(0, len(ids) - length - 1, (batch,), generator=generator)
    return torch.stack([ids[s : s + length] for s in start.tolist()])


@torch.no_grad()
def loss_on(model: LlamaForCausalLM, ids: torch.Tensor, length: int, device: str) -> float:
    model.eval()
    rows = ids[: len(ids) // length * length].view(-1, length).to(device)
    total = sum(model(input_ids=r, labels=r).loss.item() * len(r) for r in rows.split(64))
    model.train()
    return total / len(rows)


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--text", nargs="+", type=Path, required=True)
    ap.add_argument("--out", type=Path, required=True)
    ap.add_argument("--steps", type=int, default=2500)
    ap.add_argument("--seconds", type=float, default=420.0)
    ap.add_argument("--vocab", type=int, default=2048)
    ap.add_argument("--lr", type=float, default=1.5e-3)
    ap.add_argument("--weight-decay", type=float, default=0.5)
    ap.add_argument(
        "--dropout", type=float, default=0.25, help="on the output of every attention and MLP block"
    )
    args = ap.parse_args()
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"

    train_texts, held_texts = [], []
    for path in args.text:
        text = path.read_text(encoding="utf-8")
        cut = int(len(text) * 0.95)
        train_texts.append(text[:cut])
        held_texts.append(text[cut:])
    tok = train_tokenizer(train_texts, args.vocab)

    def encode(texts: list[str]) -> torch.Tensor:
        return torch.cat([torch.tensor(tok(t)["input_ids"]) for t in texts])

    train, held = encode(train_texts), encode(held_texts)
    print(f"tokens: train {len(train)}, held-out {len(held)}")

    config = LlamaConfig(
        vocab_size=args.vocab,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
        attention_dropout=0.1,
    )
    model = LlamaForCausalLM(config).to(device)
    for layer in model.model.layers:
        for block in (layer.self_attn.o_proj, layer.mlp.down_proj):
            block.register_forward_hook(
                lambda m, _, out: torch.nn.functional.dropout(out, args.dropout, training=m.training)
            )
    print(f"parameters: {sum(p.numel() for p in model.parameters())}")
    opt = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.95), weight_decay=args.weight_decay)
    rng = torch.Generator().manual_seed(0)
    length, best, began = 512, math.inf, time.time()
    total_steps = args.steps
    for step in range(total_steps):
        warm = min(1.0, step / 300)
        progress = max(step / total_steps, (time.time() - began) / args.seconds)
        if progress >= 1:
            break
        for group in opt.param_groups:
            group["lr"] = args.lr * warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))
        x = batches(train, 48, length, rng).to(device, non_blocking=True)
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = model(input_ids=x, labels=x).loss
        opt.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        if step % 250 == 249:
            h = loss_on(model, held, length, device)
            print(
                f"step {step + 1} train {loss.item():.3f} held-out {h:.3f} ppl {math.exp(h):.2f} "
                f"{time.time() - began:.0f}s",
                flush=True,
            )
            if h < best:
                best = h
                best_state = {k: v.detach().to("cpu", torch.bfloat16) for k, v in model.state_dict().items()}
    h = loss_on(model, held, length, device)
    if h > best:
        model.load_state_dict({k: v.float() for k, v in best_state.items()})
    model = model.to(torch.bfloat16)
    model.save_pretrained(args.out)
    tok.save_pretrained(args.out)
    h = loss_on(model.float(), held, length, device)
    prompt = tok("It was a bright", return_tensors="pt").input_ids.to(device)
    sample = tok.decode(model.generate(prompt, max_new_tokens=60, do_sample=False)[0])
    (args.out / "training.json").write_text(
        json.dumps(
            {
                "held_out_nll": h,
                "held_out_perplexity": math.exp(h),
                "train_tokens": len(train),
                "held_out_tokens": len(held),
                "sample": sample,
                "steps": step + 1,
            },
            indent=2,
        )
        + "\n"
    )
    print(f"held-out nll {h:.4f} perplexity {math.exp(h):.3f}\n{sample}")


if __name__ == "__main__":
    main()
