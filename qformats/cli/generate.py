"""``qformats generate``: let a model in any format write text."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any
from unicodedata import category

import typer

from qformats.cli import completing
from qformats.cli.commands import (
    ComputeDtype,
    Device,
    Json,
    LoadedFormat,
    LoaderOptions,
    Verify,
    meant,
    opened,
    pairs,
)

if TYPE_CHECKING:
    from torch import Tensor

    from qformats.cli.console import Bar
    from qformats.interfaces.checkpoint import Checkpoint

__all__ = ["generate"]


def generate(
    model: Annotated[str, typer.Argument(help="File or folder, a hub id (organisation/name), or demo.")],
    prompt: Annotated[str, typer.Argument(help="Beginning of the text.")],
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", "-n", min=1, help="Most tokens to write.")
    ] = 128,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="Sample tokens; 0 always takes the likeliest.")
    ] = 0.0,
    top_p: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="With --temperature: sample only the likeliest tokens, up to this probability.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="With --temperature: another seed gives another text.")] = 0,
    chat: Annotated[
        bool, typer.Option("--chat", help="Put the prompt into the model's chat template as a message.")
    ] = False,
    device: Device = None,
    dtype: ComputeDtype = None,
    format: LoadedFormat = None,
    quantizer: Annotated[
        str | None,
        typer.Option(
            autocompletion=completing.quantizers,
            help="With --format: method that chooses codes, if not the format's usual one: rtn, gptq or awq.",
        ),
    ] = None,
    verify: Verify = False,
    option: LoaderOptions = None,
    json: Json = None,
) -> None:
    """Let a model continue a text; its weights stay packed in memory.

    qformats generate my-model.gguf "Once upon a time" -n 40

    The text goes to standard output as it is written, and speed and memory to standard error at the end.
    """
    from qformats.cli.console import Bar
    from qformats.work.gpus import require_device

    require_device(device)
    written = _Written()
    try:
        with Bar() as bar:
            written.before = bar.stop
            _run(
                written,
                bar,
                model,
                prompt,
                sampling=_sampling(temperature, top_p),
                max_new_tokens=max_new_tokens,
                seed=seed,
                chat=chat,
                device=device,
                dtype=dtype,
                format=format,
                quantizer=quantizer,
                verify=verify,
                option=option,
                json=json,
            )
    except KeyboardInterrupt:
        if written.open_line:
            print(flush=True)
        raise KeyboardInterrupt(f"{written.tokens} tokens were written") from None


class _Written:
    """What is on standard output so far."""

    def __init__(self) -> None:
        self.tokens = 0
        self.open_line = False
        self.before: Callable[[], None] = lambda: None

    def show(self, text: str) -> None:
        """Print a piece of text at once; of control characters only those of text, since models write anything."""
        if text:
            self.before()
            text = "".join(c if c in "\n\t" or category(c) != "Cc" else repr(c)[1:-1] for c in text)
            print(text, end="", flush=True)
            self.open_line = not text.endswith("\n")


def _run(
    written: _Written,
    bar: Bar,
    model: str,
    prompt: str,
    *,
    sampling: dict[str, Any],
    max_new_tokens: int,
    seed: int,
    chat: bool,
    device: str | None,
    dtype: str | None,
    format: str | None,
    quantizer: str | None,
    verify: bool,
    option: list[str] | None,
    json: str | None,
) -> None:
    from qformats.cli.console import note, size
    from qformats.cli.reporting import STDOUT, as_json
    from qformats.errors import ConfigError
    from qformats.folder.readiness import require_class, require_tokenizer, require_weights
    from qformats.registry import registry
    from qformats.work.processes import launched

    if dtype not in (None, "f32", "f16", "bf16"):
        raise ConfigError("--dtype", dtype, "f32, f16 or bf16")
    if quantizer is not None and format is None:
        raise ConfigError("--quantizer", quantizer, "--format with this option")
    options = pairs("option", option)
    format = registry().writable(meant(format).name).name if format is not None else None
    if quantizer is not None:
        registry().quantizer(quantizer)
    here = launched()
    source = opened(model, options, bar)
    for told in source.notes if here.rank == 0 else ():
        note(f"{source.name}: {told}")
    require_weights(source)
    require_class(source, "run")
    require_tokenizer(source)
    template = _template(source) if chat else None

    # After what can go wrong without them: torch and Transformers take seconds.
    bar.start("loading torch")
    import torch

    bar.start("loading Transformers, and the tokenizer")
    from qformats.runtime import tokenizer
    from qformats.runtime.load import load_model

    words = tokenizer(source)
    ids = _ids(words, prompt, source, template)
    count = _room(source.config, len(ids), max_new_tokens)
    began = time.perf_counter()
    bar.start("building the model")
    running: Any = load_model(
        source,
        device=device,
        dtype=dtype,
        format=format,
        quantizer=quantizer,
        tensor_parallel=here.ranks > 1,
        options=options,
        verify=verify,
        progress=bar,
    )
    loaded = time.perf_counter() - began
    torch.manual_seed(seed)
    bar.start(f"reading {len(ids)} tokens")
    # Every process writes the same text; the first one shows it.
    pieces = _Pieces(words, ids, written, shown=json != STDOUT and here.rank == 0)
    _generate(running, ids, count, sampling, pieces)
    if here.rank:
        return
    weights, peak = running.qformats_report.nbytes, _peak(running.device)
    if json:
        facts = {
            "model": str(source.path),
            "format": format,
            "prompt": prompt,
            "text": pieces.text,
            "prompt_tokens": len(ids),
            "tokens": len(pieces.ids),
            "load_seconds": loaded,
            "prompt_seconds": pieces.prompt_seconds,
            "tokens_per_second": pieces.speed,
            "weights_nbytes": weights,
            "peak_nbytes": peak,
            "device": str(running.device),
        }
        if as_json(facts, json):
            return
    if written.open_line:
        print(flush=True)
    speed = f", {pieces.speed:.1f} tokens/s" if pieces.speed else ""
    note(
        f"loaded in {loaded:.1f} s; {len(ids)} tokens read in {pieces.prompt_seconds:.1f} s; "
        f"{len(pieces.ids)} tokens written{speed}; weights {size(weights)}, peak memory {size(peak)} "
        f"({running.device})"
    )


def _sampling(temperature: float, top_p: float | None) -> dict[str, Any]:
    """How to choose tokens, in Transformers' terms."""
    from qformats.errors import ConfigError

    if temperature:
        kept = 1.0 if top_p is None else top_p
        return {"do_sample": True, "temperature": temperature, "top_p": kept, "top_k": 0}
    if top_p is not None:
        raise ConfigError(
            "--top-p", top_p, "--temperature too: without it the likeliest token is always taken"
        )
    return {"do_sample": False}


def _template(source: Checkpoint) -> str:
    """Chat template of a model that must have one."""
    from qformats.errors import ConfigError, Described
    from qformats.folder.chat import default_template

    template = default_template(source)
    if template is None:
        found = Described("a model without a chat template")
        hint = "Leave out --chat, or put the template into the model's folder as chat_template.jinja"
        raise ConfigError("--chat", found, "a chat model", hint)
    return template


def _ids(tokenizer: Any, prompt: str, source: Checkpoint, template: str | None) -> list[int]:
    """Ids that the model starts from."""
    from qformats.errors import ConfigError
    from qformats.folder.chat_render import render

    if template is not None:
        messages = [{"role": "user", "content": prompt}]
        text = render(template, messages, variables=tokenizer.special_tokens_map, source=source.path)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    else:
        ids = tokenizer(prompt)["input_ids"]
    first = getattr(tokenizer, "bos_token_id", None) or source.config.get("bos_token_id")
    if not ids and isinstance(first, int):
        ids = [first]
    if not ids:
        raise ConfigError("prompt", prompt, "some text, since this model has no token that begins texts")
    return [int(each) for each in ids]


def _room(config: Any, used: int, wanted: int) -> int:
    """How many tokens fit before the model's context is full."""
    from qformats.errors import ConfigError, Described
    from qformats.folder.context import context_limit

    limit = context_limit(config)
    if limit is None:
        return wanted
    if used >= limit:
        raise ConfigError("prompt", Described(f"{used} tokens"), f"fewer than the model's context of {limit}")
    return min(wanted, limit - used)


def _generate(model: Any, ids: Sequence[int], count: int, sampling: dict[str, Any], pieces: _Pieces) -> None:
    import torch
    from transformers import GenerationConfig

    given = model.generation_config
    # The model decides what ends a text, if anything does; only the command line decides how tokens are chosen.
    ends = None if given.eos_token_id == [] else given.eos_token_id
    last = ends[0] if isinstance(ends, list) else ends
    config: Any = GenerationConfig
    model.generation_config = config(
        bos_token_id=given.bos_token_id,
        eos_token_id=ends,
        pad_token_id=given.pad_token_id if given.pad_token_id is not None else last,
        max_new_tokens=count,
        **sampling,
    )
    inputs = torch.tensor([list(ids)], device=model.device)
    pieces.start()
    model.generate(inputs, attention_mask=torch.ones_like(inputs), streamer=pieces)


class _Pieces:
    """Turns ids into text as they arrive, and measures their speed; a streamer in Transformers' terms.

    Parameters
    ----------
    tokenizer : object
        With ``decode``.
    prompt : sequence of int
        Ids that are not shown.
    written : _Written
        Takes the text.
    shown : bool
        Whether it is printed.
    """

    def __init__(self, tokenizer: Any, prompt: Sequence[int], written: _Written, *, shown: bool) -> None:
        from qformats.chatting.text import Detokenizer

        self._detokenizer = Detokenizer(tokenizer, prompt)
        self._written, self._shown = written, shown
        self.ids: list[int] = []
        self.text = ""
        self._first = self._last = self._began = 0.0
        self._seen_prompt = False

    @property
    def prompt_seconds(self) -> float:
        """From the start to the first id."""
        return self._first - self._began

    @property
    def speed(self) -> float | None:
        """Tokens per second after the first one; None if there is no second one."""
        spent = self._last - self._first
        return (len(self.ids) - 1) / spent if len(self.ids) > 1 and spent > 0 else None

    def start(self) -> None:
        """Start the clock."""
        self._began = self._first = time.perf_counter()

    def put(self, value: Tensor) -> None:
        """Take ids; the first call brings the prompt."""
        if not self._seen_prompt:
            self._seen_prompt = True
            return
        self._last = time.perf_counter()
        if not self.ids:
            self._first = self._last
        new = [int(each) for each in value.flatten().tolist()]
        self.ids += new
        self._written.tokens = len(self.ids)
        self._tell(self._detokenizer.put(new))

    def end(self) -> None:
        """Write what is left, complete or not."""
        self._tell(self._detokenizer.end())

    def _tell(self, new: str) -> None:
        self.text += new
        if self._shown:
            self._written.show(new)


def _peak(device: Any) -> int:
    """Most bytes that the GPU held, or the process on a CPU."""
    import resource

    import torch

    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
