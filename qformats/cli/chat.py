"""``qformats chat``: a conversation with a model in any format."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qformats.cli.commands import (
    ComputeDtype,
    Device,
    LoadedFormat,
    LoaderOptions,
    Verify,
    meant,
    opened,
    pairs,
)

if TYPE_CHECKING:
    from qformats.chatting.loaded import ChatModel
    from qformats.cli.console import Bar
    from qformats.interfaces.checkpoint import Checkpoint

__all__ = [
    "MaxTokens",
    "MinP",
    "RepetitionPenalty",
    "Seed",
    "Temperature",
    "Template",
    "TopK",
    "TopP",
    "chat",
]

Temperature = Annotated[
    float | None,
    typer.Option(min=0.0, help="Sample tokens; 0 always takes the likeliest. By default as the model says."),
]
TopP = Annotated[
    float | None, typer.Option(min=0.0, max=1.0, help="Only the likeliest tokens, up to this probability.")
]
TopK = Annotated[int | None, typer.Option(min=0, help="Only so many of the likeliest tokens; 0 for all.")]
MinP = Annotated[
    float | None,
    typer.Option(min=0.0, max=1.0, help="Only tokens with this share of the likeliest one's probability."),
]
RepetitionPenalty = Annotated[
    float | None, typer.Option(min=0.01, help="Above 1: tokens that the text has already become less likely.")
]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same answers again.")]
MaxTokens = Annotated[
    int | None,
    typer.Option(
        "--max-new-tokens", "-n", min=1, help="Most tokens of an answer; until the context is full."
    ),
]
Template = Annotated[
    Path | None,
    typer.Option("--template", metavar="FILE", help="Chat template (Jinja) in place of the model's own."),
]


def chat(
    model: Annotated[str, typer.Argument(help="File or folder, a hub id (organisation/name), or demo.")],
    system: Annotated[
        str | None, typer.Option("--system", "-s", metavar="TEXT", help="What the model is told first.")
    ] = None,
    template: Template = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="No chat template: the model continues what you write.")
    ] = False,
    max_new_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    seed: Seed = None,
    stop: Annotated[
        list[str] | None, typer.Option("--stop", metavar="TEXT", help="Text that ends an answer; repeatable.")
    ] = None,
    device: Device = None,
    dtype: ComputeDtype = None,
    format: LoadedFormat = None,
    verify: Verify = False,
    option: LoaderOptions = None,
) -> None:
    """Talk with a model in any format; /help lists what can be typed besides messages.

    qformats chat my-model.gguf

    Answers go to standard output, everything else to standard error, so that messages may come from a pipe, one a line.
    Ctrl-C stops an answer, Ctrl-D ends the conversation.
    """
    from qformats.chatting.sampling import Sampling
    from qformats.cli.console import Bar, note
    from qformats.errors import ConfigError
    from qformats.folder.readiness import require_class, require_tokenizer, require_weights
    from qformats.registry import registry
    from qformats.work.gpus import require_device

    if dtype not in (None, "f32", "f16", "bf16"):
        raise ConfigError("--dtype", dtype, "f32, f16 or bf16")
    require_device(device)
    given: dict[str, Any] = {
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "seed": seed,
    }
    # Refused before anything is loaded.
    Sampling(**{key: value for key, value in given.items() if value is not None})
    options = pairs("option", option)
    format = registry().writable(meant(format).name).name if format is not None else None
    with Bar() as bar:
        source = opened(model, options, bar)
        for told in source.notes:
            note(f"{source.name}: {told}")
        require_weights(source)
        require_class(source, "run")
        require_tokenizer(source)
        text = None if raw else chosen_template(source, template, "--raw")
        if raw and system:
            raise ConfigError("--system", system, "a conversation, without --raw")
        bar.start("loading torch and Transformers")
        from qformats.chatting.loaded import ChatModel
        from qformats.cli.conversation import Conversation

        def load(name: str | None, bar: Bar, *, verify: bool = False) -> ChatModel:
            return ChatModel(
                source,
                source.name,
                text,
                device=device,
                dtype=dtype,
                format=name,
                options=options,
                verify=verify,
                answers=1,
                progress=bar,
            )

        loaded = load(format, bar, verify=verify)
    conversation = Conversation(loaded, load, given, max_new_tokens, tuple(stop or ()), system)
    try:
        conversation.run(sys.stdin)
    finally:
        conversation.close()


def chosen_template(source: Checkpoint, file: Path | None, instead: str) -> str:
    """Chat template of a model, or the one in a file.

    Raises
    ------
    ConfigError
        If there is none; `instead` is the option that does without.
    """
    from qformats.errors import CheckpointError, ConfigError, Described, ModelNotFoundError
    from qformats.folder.chat import default_template

    if file is not None:
        try:
            return file.expanduser().read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(file, f"byte {error.start} is not UTF-8", "a chat template") from error
        except OSError as error:
            raise ModelNotFoundError(file, error.strerror or str(error), "give a chat template") from error
    found = default_template(source)
    if found is None:
        told = Described(f"{source.name}, which has no chat template")
        hint = f"Give one with --template FILE, or let the model continue what you write with {instead}"
        raise ConfigError("MODEL", told, "a chat model", hint)
    return found
