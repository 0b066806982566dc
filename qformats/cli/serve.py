"""``qformats serve``: models in any format behind an OpenAI-compatible server, with a page to talk to them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

import typer

from qformats.cli import completing
from qformats.cli.chat import Template, chosen_template
from qformats.cli.commands import ComputeDtype, Device, LoaderOptions, Verify, meant, opened, pairs

if TYPE_CHECKING:
    from qformats.interfaces.checkpoint import Checkpoint

__all__ = ["serve"]

_KEY = "QFORMATS_API_KEY"
_PORT = 8000


def serve(
    models: Annotated[
        list[str],
        typer.Argument(help="Models in any format: file, folder, hub id, or demo.", metavar="MODEL"),
    ],
    try_: Annotated[
        list[str] | None,
        typer.Option(
            "--try",
            metavar="FORMAT",
            autocompletion=completing.formats,
            help="Also serve the first model quantized into this format; repeatable.",
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at; any other than this machine's own needs an API key.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", "-p", min=0, max=65535, help="0 for any that is free.")
    ] = _PORT,
    api_key: Annotated[
        str | None,
        typer.Option(metavar="KEY", help=f"Key that clients must send; better in the environment as {_KEY}."),
    ] = None,
    template: Template = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Most tokens of an answer; until the context is full by default."),
    ] = None,
    max_body: Annotated[int, typer.Option(min=1024, metavar="BYTES", help="Largest request.")] = 4 << 20,
    answers: Annotated[int, typer.Option(min=1, help="Answers of a model at a time; others wait.")] = 64,
    queue: Annotated[
        int, typer.Option(min=1, help="Requests that may wait for a model; others are refused.")
    ] = 256,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="Origin of a web page that may call this server; repeatable."),
    ] = None,
    grace: Annotated[
        float, typer.Option(min=0.0, help="Seconds that answers in work may take after Ctrl-C.")
    ] = 10.0,
    device: Device = None,
    dtype: ComputeDtype = None,
    verify: Verify = False,
    option: LoaderOptions = None,
) -> None:
    """Serve models over OpenAI's API (chat and text completions), with a web page to talk to them and to compare them.

    qformats serve my-model my-model-Q4_K_M.gguf

    The page is at the address that is printed. Two models answer the same question side by side.
    """
    from qformats.cli.console import Bar, note
    from qformats.errors import BackendUnavailableError, ConfigError
    from qformats.folder.chat import default_template
    from qformats.folder.readiness import require_class, require_tokenizer, require_weights
    from qformats.registry import registry
    from qformats.work.gpus import require_device

    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        reason = f"{error.name} is not installed"
        raise BackendUnavailableError(
            "the server", reason, "Install it: pip install 'qformats[serve]'"
        ) from error
    if dtype not in (None, "f32", "f16", "bf16"):
        raise ConfigError("--dtype", dtype, "f32, f16 or bf16")
    require_device(device)
    key = api_key or os.environ.get(_KEY) or None
    if key is None and not _local(host):
        hint = f"Set {_KEY}, so that nobody else uses the models"
        raise ConfigError("--host", host, "an address of this machine alone, or an API key", hint)
    formats = [registry().writable(meant(name).name).name for name in try_ or ()]
    options = pairs("option", option)
    with ExitStack() as stack:
        with Bar() as bar:
            sources: list[tuple[Checkpoint, str | None, str | None]] = []
            for path in models:
                source = opened(path, options, bar)
                require_weights(source)
                require_class(source, "run")
                require_tokenizer(source)
                text = chosen_template(source, template, "") if template else default_template(source)
                sources.append((source, None, text))
            sources[1:1] = [(sources[0][0], name, sources[0][2]) for name in formats]
            bar.start("loading torch and Transformers")
            from qformats.chatting.loaded import ChatModel
            from qformats.serving.app import Limits
            from qformats.serving.server import serve as run

            loaded = {}
            for name, (source, format, text) in zip(_names(sources), sources, strict=True):
                loaded[name] = stack.enter_context(
                    ChatModel(
                        source,
                        name,
                        text,
                        device=device,
                        dtype=dtype,
                        format=format,
                        options=options,
                        # Each model once, whatever else it is quantized into.
                        verify=verify and format is None,
                        answers=answers,
                        waiting=queue,
                        progress=bar,
                    )
                )
        for name, model in loaded.items():
            if not model.prompts.can_chat:
                note(f"{name} has no chat template: it continues text (/v1/completions)")
        run(
            loaded,
            host=host,
            port=port,
            api_key=key,
            origins=tuple(allow_origin or ()),
            limits=Limits(max_body, max_tokens),
            grace=grace,
            started=lambda url: note(
                f"serving {', '.join(loaded)} at {url}, a page to talk with them; "
                f"OpenAI's API is {url}/v1. Ctrl-C stops"
            ),
        )
    note("stopped")


def _local(host: str) -> bool:
    from qformats.serving.server import is_loopback

    return is_loopback(host)


def _names(sources: Iterable[tuple[Checkpoint, str | None, str | None]]) -> list[str]:
    """Names that clients know models by, each once: the model's own, with the format that it is quantized into."""
    found: list[str] = []
    for source, format, _ in sources:
        name = wanted = source.name if format is None else f"{source.name}@{format}"
        count = 1
        while name in found:
            count += 1
            name = f"{wanted}-{count}"
        found.append(name)
    return found
