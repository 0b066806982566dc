"""The Python interface: round trips on tensors, and models on disk."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qformats.errors import ConfigError, OutputError
from qformats.interfaces.checkpoint import Checkpoint
from qformats.interfaces.spec import FormatSpec
from qformats.registry import registry
from qformats.roundtrip import dequantize, pack, packer, quantize, unpack
from qformats.work.arguments import mapping, names, path, several

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from qformats.comparing import CompareReport
    from qformats.exporting import ExportReport
    from qformats.interfaces import Importance
    from qformats.publishing import PublishReport
    from qformats.runtime.merge import MergeReport
    from qformats.verifying import VerifyReport
    from qformats.work.progress import Progress

__all__ = [
    "compare",
    "contributions",
    "dequantize",
    "export",
    "formats",
    "from_pretrained",
    "imatrix",
    "load_model",
    "load_tokenizer",
    "merge_adapter",
    "open",
    "pack",
    "packer",
    "prepare_for_training",
    "publish",
    "quantize",
    "register_with_transformers",
    "unpack",
    "verify",
]


def formats() -> list[FormatSpec]:
    """Descriptors of every installed format, read-only ones included.

    Examples
    --------
    >>> import qformats
    >>> [spec.name for spec in qformats.formats() if spec.family == "glm"][:3]
    ['glm:int8', 'glm:int8-bf16', 'glm:int8-f32']
    """
    return [packer.spec for packer in registry().formats()]


def contributions(hook: str) -> list[tuple[str, Any]]:
    """What plugins return from a hook that a plugin has of its own (``qformats_register_hooks``), for that plugin.

    Parameters
    ----------
    hook : str
        Name of the hook.

    Returns
    -------
    list of (str, object)
        How messages refer to each plugin, and what it returned when it was loaded, built-in plugins first.

    Examples
    --------
    >>> import qformats
    >>> [owner.split()[1] for owner, files in qformats.contributions("qformats_gguf_register_architectures")][0]
    "'gguf'"
    """
    return registry().contributions(hook)


def open(
    model: str | PathLike[str], *, options: Mapping[str, str] | None = None, adapter: bool = False
) -> Checkpoint:
    """Open a model: headers only, weights stay on disk.

    Parameters
    ----------
    model : str or path
        A file or folder, ``"demo"`` for the model that comes with qformats, or a hub id such as
        ``"organisation/model"``, which is downloaded.
    options : mapping of str to str, optional
        What overrides or completes what the files say, such as ``{"pre": "llama-bpe"}``.
    adapter : bool
        Open the folder of an adapter too, as PEFT saves it, for :func:`export`; otherwise it is refused.

    Raises
    ------
    ModelNotFoundError
        If nothing is found, or no loader recognises it.
    CheckpointError
        If a file is missing, truncated or corrupt.

    Examples
    --------
    >>> import qformats
    >>> model = qformats.open("demo")
    >>> model.name, model.architecture, round(model.bits_per_weight, 2)
    ('demo-llama', 'llama', 16.0)
    """
    from qformats.sources import open_model

    return open_model(model, mapping("options", options), adapter=adapter)


def export(
    model: str | PathLike[str] | Checkpoint | None,
    target: str | PathLike[str],
    *,
    format: str | None = None,
    recipe: str | PathLike[str] | None = None,
    quantizer: str | None = None,
    quantizer_options: Mapping[str, str] | None = None,
    imatrix: str | PathLike[str] | Sequence[str | PathLike[str]] = (),
    tensor_types: Mapping[str, str] | None = None,
    output_type: str | None = None,
    token_embedding_type: str | None = None,
    pure: bool = False,
    mix: str = "named",
    container: str | None = None,
    program: str | None = None,
    require_exact: bool = False,
    force: bool = False,
    verify: bool = False,
    workers: int | None = None,
    engine: str = "local",
    address: str | None = None,
    options: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> ExportReport:
    """Write a model in another format.

    Nothing appears under the target's name before all of it is written, checked and synced.

    Parameters
    ----------
    model : str, path or Checkpoint
        See :func:`open`. Or the folder of an adapter, for formats that hold adapters. ``None`` for the source that a
        `recipe` names, where it lies beside the recipe or in the working directory.
    target : str or path
        File or folder to write; or its URL, such as ``"s3://bucket/model"``. What goes to a URL is written and checked
        on this machine, in the folder that ``QFORMATS_SCRATCH`` names or in the user's cache, and then uploaded; the
        file that readers open first comes last, so that there is no half a model.
    format : str
        ``family:variant``, or a family for its default variant.
    recipe : str or path, optional
        Instead of `format` and what belongs to it: the ``qformats.json`` of an earlier export, or the model that has
        one, to be exported again to the same bytes. A source that differs from the recorded one is refused; `imatrix`
        and `quantizer_options` may only say where recorded files lie now.
    quantizer : str, optional
        Method that chooses codes. By default the format's own: ``"gptq"``, which calibrates on text, for the family
        gptq; ``"rtn"``, each format's reference rule, for the others.
    quantizer_options : mapping of str to str, optional
        Options of the quantizer.
    imatrix : path or sequence of path, optional
        Importance matrices to weigh errors by; several are added up. See :func:`imatrix`.
    tensor_types : mapping of str to str, optional
        Regular expression to variant; the first one found in a tensor's name wins.
    output_type, token_embedding_type : str, optional
        Variants of the output layer and of the token embedding.
    pure : bool
        Use one variant for every tensor that is quantized, without the container's own mix.
    mix : str
        ``"named"``: the choice of formats that the container makes for this format. ``"measured"``: no more bytes than
        that, spent where a calibration on text finds that they lower the model's divergence most; its text, samples
        and so on are `quantizer_options`.
    container : str, optional
        Loader that writes the output, if not the format's usual one.
    program : str, optional
        ``"vllm"``, ``"llama.cpp"``, ``"transformers"`` or ``"mlx"``: refuse what that program does not load, such as
        neighbours (queries, keys and values) in different formats, which vLLM joins into one matrix.
    require_exact : bool
        Refuse, before anything is written, if a value of the source would change.
    force : bool
        Replace an existing target.
    verify : bool
        Compare every byte of a source that qformats has written with its record; by default the sizes and a sample.
    workers : int, optional
        Threads; all cores by default. Of a cluster, those of each task.
    engine : str
        ``"local"``: this process converts. ``"ray"``: the nodes of a Ray cluster do, which read the model and write the
        target in file systems that all of them share. The bytes are the same. Needs the extra ``qformats[ray]``.
    address : str, optional
        Of the cluster: ``"auto"`` for the one that this machine belongs to, ``"HOST:PORT"`` of its head, or
        ``"local"`` for one on this machine alone. By default the first if there is one, and otherwise the last.
    options : mapping of str to str, optional
        Options of the loaders involved.
    progress : Progress, optional
        Receives progress reports.

    Returns
    -------
    ExportReport
        What was written, tensor by tensor.

    Raises
    ------
    QFormatsError
        Whatever is wrong with the input or the target; then nothing is left behind.

    Examples
    --------
    >>> import qformats, tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     report = qformats.export("demo", Path(folder, "demo.gguf"), format="gguf:q4_0")
    >>> report.types, round(report.bits_per_weight, 2)
    ({'gguf:q4_0': 29, 'gguf:f32': 9, 'gguf:q6_k': 1}, 4.73)
    """
    from qformats.exporting import Recipe, run
    from qformats.exporting.engines.named import named
    from qformats.sources import check_options
    from qformats.work.urls import url_of

    options = mapping("options", options)
    check_options(options)
    written = path("target", target)
    matrices = tuple(str(path("imatrix", file)) for file in several("imatrix", imatrix))
    if recipe is not None:
        from qformats.exporting.again import again_from
        from qformats.exporting.rerun import rerun

        has_already = (format, quantizer, tensor_types, output_type, token_embedding_type, container, program)
        if any(has_already) or pure or mix != "named" or options or require_exact:
            expected = "no other options of the conversion beside it, which has them all"
            raise ConfigError("recipe", str(recipe), expected)
        if url_of(written):
            raise OutputError(
                str(url_of(written)), "is a URL", "With a recipe, give a folder and copy it there"
            )
        again = again_from(Path(path("recipe", recipe))).with_files(
            matrices, mapping("quantizer_options", quantizer_options)
        )
        known = again.source(str(model) if isinstance(model, PathLike) else model)
        with named(engine, address) as chosen:
            return rerun(
                again, known, Path(written), force=force, workers=workers, engine=chosen, progress=progress
            )
    if model is None:
        raise ConfigError(
            "model", None, "a path, a hub id (organisation/name) or demo, unless a recipe names it"
        )
    if format is None:
        raise ConfigError("format", None, "the name of a format, unless a recipe has it")
    source = model if isinstance(model, Checkpoint) else open(model, options=options, adapter=True)
    asked = Recipe(
        format,
        quantizer=quantizer or "",
        imatrix=matrices,
        tensor_types=tuple(mapping("tensor_types", tensor_types).items()),
        output_type=output_type,
        token_embedding_type=token_embedding_type,
        pure=pure,
        container=container,
        quantizer_options=tuple(mapping("quantizer_options", quantizer_options).items()),
        program=program or "",
    )
    with named(engine, address) as chosen:
        if mix != "named":
            from qformats.calibration.measured import with_mix

            asked = with_mix(mix, source, Path(written), asked, options, progress, verify=verify)
            # Which has compared every byte already.
            verify = False
        report = run(
            source,
            written,
            asked,
            force=force,
            workers=workers,
            require_exact=require_exact,
            verify=verify,
            options=options,
            engine=chosen,
            progress=progress,
        )
    if "transformers" in sys.modules:
        # The output may be loaded with Transformers next, in this process.
        register_with_transformers()
    return report


def publish(
    model: str | PathLike[str] | Checkpoint,
    folder: str | PathLike[str],
    *,
    formats: str | Sequence[str],
    text: str | PathLike[str] | None = None,
    window: int = 512,
    windows: int | None = None,
    device: str | None = None,
    base_model: str | None = None,
    quantizer: str | None = None,
    quantizer_options: Mapping[str, str] | None = None,
    imatrix: str | PathLike[str] | Sequence[str | PathLike[str]] = (),
    tensor_types: Mapping[str, str] | None = None,
    output_type: str | None = None,
    token_embedding_type: str | None = None,
    pure: bool = False,
    container: str | None = None,
    require_exact: bool = False,
    force: bool = False,
    verify: bool = False,
    workers: int | None = None,
    options: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> PublishReport:
    """Write a model in many formats in one read, with a model card and checksums, as they are put on the hub.

    `folder` then holds a file or folder for each format, named as the hub names them, ``README.md`` and ``SHA256SUMS``.
    Each has the bytes that :func:`export` writes. Other files there are left alone.

    Parameters
    ----------
    model : str, path or Checkpoint
        See :func:`open`.
    folder : str or path
        Where to write.
    formats : str or sequence of str
        Formats, or one.
    text : str or path, optional
        UTF-8 file that divergences from the model are measured on for the card, as :func:`compare` does; ``"demo"`` for
        the one that comes with the package.
    window, windows, device
        As in :func:`compare`; for `text` only.
    base_model : str, optional
        Id of the model on the hub, for the card; known for a model that comes from there.
    quantizer, quantizer_options, tensor_types, output_type, token_embedding_type, pure, container
        As in :func:`export`, for all formats. Each quantizer gets those options that it has.
    imatrix : path or sequence of path, optional
        As in :func:`export`, for all quantized formats.
    require_exact, force, verify, workers, options, progress
        As in :func:`export`.

    Returns
    -------
    PublishReport
        What was written, output by output.

    Raises
    ------
    QFormatsError
        Whatever is wrong with the input or the folder, and a format that the model cannot have; then nothing is left
        behind.

    Examples
    --------
    >>> import qformats, tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     report = qformats.publish("demo", Path(folder, "out"), formats=["gguf:q4_0", "glm:int4"])
    ...     sorted(path.name for path in Path(folder, "out").iterdir())
    ['README.md', 'SHA256SUMS', 'demo-llama-Q4_0.gguf', 'demo-llama-Q4_0.gguf.qformats.json', 'demo-llama-int4']
    >>> [(output.name, round(output.report.bits_per_weight, 2)) for output in report.outputs]
    [('demo-llama-Q4_0.gguf', 4.73), ('demo-llama-int4', 6.57)]
    """
    from qformats.exporting import Recipe
    from qformats.exporting.recipe import with_options
    from qformats.publishing import Settings, plan_all
    from qformats.publishing import publish as run
    from qformats.sources import check_options

    options = mapping("options", options)
    check_options(options)
    written = path("folder", folder)
    # Once: it may be an iterator, which gives its files a single time.
    matrices = tuple(str(path("imatrix", file)) for file in several("imatrix", imatrix))
    recipes = [
        Recipe(
            packer(format).name,
            quantizer=quantizer or "",
            imatrix=matrices,
            tensor_types=tuple(mapping("tensor_types", tensor_types).items()),
            output_type=output_type,
            token_embedding_type=token_embedding_type,
            pure=pure,
            container=container,
        )
        for format in names("formats", formats)
    ]
    recipes = with_options(recipes, mapping("quantizer_options", quantizer_options))
    source = model if isinstance(model, Checkpoint) else open(model, options=options)
    settings = Settings(
        base_model=base_model or "",
        text=None if text is None else str(path("text", text)),
        window=window,
        windows=windows,
        device=device,
        options=options,
        workers=workers,
        force=force,
        verify=verify,
        require_exact=require_exact,
    )
    report = run(source, plan_all(source, written, recipes, options), settings, progress)
    if "transformers" in sys.modules:
        # The outputs may be loaded with Transformers next, in this process.
        register_with_transformers()
    return report


def imatrix(
    model: str | PathLike[str] | Checkpoint | None,
    target: str | PathLike[str],
    *,
    text: str | PathLike[str] | None = None,
    chunks: int | None = None,
    chunk_size: int = 512,
    in_files: Sequence[str | PathLike[str]] = (),
    device: str | None = None,
    compute_dtype: str = "f32",
    force: bool = False,
    verify: bool = False,
    options: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Importance:
    """Measure a model's importance matrix on a text, and write it to a file.

    Parameters
    ----------
    model : str, path, Checkpoint or None
        See :func:`open`. Without a model, `in_files` are added up.
    target : str or path
        File to write; its name ends in ``.gguf``.
    text : str or path, optional
        A UTF-8 file, a ``.jsonl`` file whose objects have a ``text``, or a data set on the hub. By default a text that
        comes with the package.
    chunks : int, optional
        Chunks at most, from the beginning of the text; by default all of a file.
    chunk_size : int
        Tokens of a chunk.
    in_files : sequence of path
        Importance matrices that are added to what is measured.
    device : str, optional
        Where to compute; a GPU if there is one.
    compute_dtype : str
        What the model runs in: ``"f32"``, ``"f16"`` or ``"bf16"``.
    force : bool
        Replace an existing file.
    verify : bool
        Compare every byte of a model that qformats has written with its record; by default the sizes and a sample.
    options : mapping of str to str, optional
        Options of the loaders involved.
    progress : Progress, optional
        Receives progress reports.

    Returns
    -------
    Importance
        What was written, by canonical name; by the files' names if there is no model.

    Raises
    ------
    QFormatsError
        Whatever is wrong with the input or the target; then nothing is left behind.

    Examples
    --------
    >>> import qformats, tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     found = qformats.imatrix("demo", Path(folder, "imatrix.gguf"), chunks=2, chunk_size=32, device="cpu")
    >>> found.entries, found.chunks
    (28, 2)
    """
    from qformats.exporting.importance import importance_writer, read_importance, write_importance

    written = path("target", target)
    importance_writer(written, force)
    source = model if model is None or isinstance(model, Checkpoint) else open(model, options=options)
    found = read_importance([path("in_files", file) for file in in_files], source) if in_files else None
    if source is not None:
        from qformats.calibration.importance import measure_importance

        measured = measure_importance(
            source,
            "" if text is None else str(text),
            chunks=chunks,
            chunk_size=chunk_size,
            device=device,
            compute_dtype=compute_dtype,
            verify=verify,
            progress=progress,
        )
        found = measured if found is None else _canonical(found, source).plus(measured)
    if found is None:
        raise ConfigError("model", None, "a model to measure, or in_files to add up")
    write_importance(found, written, source, force=force)
    return found


def _canonical(importance: Importance, source: Checkpoint) -> Importance:
    """Without the names that only the source's container uses."""
    sums = {name: sums for name, sums in importance.sums.items() if name in source.tensors}
    return replace(importance, sums=sums, entries=len(sums))


def load_model(
    model: str | PathLike[str] | Checkpoint,
    *,
    device: str | torch.device | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    dtype: str | torch.dtype | None = None,
    format: str | None = None,
    quantizer: str | None = None,
    quantizer_options: Mapping[str, str] | None = None,
    tensor_types: Mapping[str, str] | None = None,
    imatrix: str | PathLike[str] | Sequence[str | PathLike[str]] = (),
    tensor_parallel: bool = False,
    options: Mapping[str, str] | None = None,
    verify: bool = False,
    progress: Progress | None = None,
) -> PreTrainedModel:
    """Load a model of any format to run it, as a Transformers model whose weights stay packed.

    Tensors are loaded one after the other; quantized ones are never held as plain numbers. The model's attribute
    ``qformats_report`` tells how each was loaded. What is there and was not read is told as warnings.

    Parameters
    ----------
    model : str, path or Checkpoint
        See :func:`open`.
    device : str or torch.device, optional
        By default the first CUDA device, or the CPU where there is none.
    device_map : str or mapping of str to device, optional
        Instead of `device`, for a model over several: ``"auto"`` gives GPUs equal shares of the blocks and leaves
        what does not fit to the CPU, ``"sequential"`` fills one GPU after the other; or a device for each module, as
        accelerate has it. Blocks compute where they lie.
    dtype : str or torch.dtype, optional
        Dtype to compute in, to which plain numbers are cast: ``"f32"``, ``"f16"``, ``"bf16"``. By default float32
        on a CPU, elsewhere bfloat16 if the model has it and float16 if not.
    format : str, optional
        Quantize while loading, one tensor at a time, to what an export to this format would hold.
    quantizer, quantizer_options, tensor_types, imatrix
        As in :func:`export`; for `format` only.
    tensor_parallel : bool
        Load this process's share of a model that several run together, as ``torchrun`` has started them; GLM-130B and
        ChatGLM-6B can be divided so. All of them call the model with the same input and get the same result.
    options : mapping of str to str, optional
        Options of the loaders involved.
    verify : bool
        Compare every byte of a model that qformats has written with its record; by default the sizes and a sample.
    progress : Progress, optional
        Receives progress reports.

    Returns
    -------
    transformers.PreTrainedModel
        In evaluation mode; no parameter requires a gradient. Its attribute ``qformats_source`` is the path that it was
        loaded from.

    Raises
    ------
    UnsupportedModelError
        If Transformers has no class for the model.
    CheckpointError
        If a tensor is missing, unknown, or not of the shape that the model's class needs.
    QFormatsError
        Whatever else is wrong with the input.

    Examples
    --------
    >>> import qformats
    >>> model = qformats.load_model("demo", device="cpu", format="gguf:q8_0")
    >>> type(model).__name__, model.qformats_report.nbytes < 6_000_000
    ('LlamaForCausalLM', True)
    """
    from qformats.runtime import load

    options = mapping("options", options)
    source = model if isinstance(model, Checkpoint) else open(model, options=options)
    for told in source.notes:
        warnings.warn(f"{source.name}: {told}", UserWarning, stacklevel=2)
    loaded: PreTrainedModel = load.load_model(
        source,
        device=device,
        device_map=device_map,
        dtype=dtype,
        format=format,
        quantizer=quantizer,
        quantizer_options=quantizer_options,
        tensor_types=tensor_types,
        imatrix=imatrix,
        tensor_parallel=tensor_parallel,
        options=options,
        verify=verify,
        progress=progress,
    )
    return loaded


def load_tokenizer(
    model: str | PathLike[str] | Checkpoint, *, options: Mapping[str, str] | None = None
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model of any format, or of a GGUF file that holds only a vocabulary.

    Parameters
    ----------
    model : str, path or Checkpoint
        See :func:`open`.
    options : mapping of str to str, optional
        Options of the loaders involved.

    Returns
    -------
    transformers.PreTrainedTokenizerBase
        With special tokens and chat template.

    Raises
    ------
    CheckpointError
        If there is no tokenizer.
    UnsupportedModelError
        If it needs code that only its repository has, or cannot be rebuilt.

    Examples
    --------
    >>> import qformats
    >>> tokenizer = qformats.load_tokenizer("demo")
    >>> tokenizer.decode(tokenizer("Once upon a time")["input_ids"])
    'Once upon a time'
    """
    from qformats.runtime import tokenizer

    source = model if isinstance(model, Checkpoint) else open(model, options=options)
    loaded: PreTrainedTokenizerBase = tokenizer(source)
    return loaded


def from_pretrained(model: str | PathLike[str] | Checkpoint, **options: Any) -> PreTrainedModel:
    """Same as :func:`load_model`, under the name that Transformers uses.

    Parameters
    ----------
    model : str, path or Checkpoint
        See :func:`open`.
    **options
        Those of :func:`load_model`.

    Returns
    -------
    transformers.PreTrainedModel
        See :func:`load_model`.

    Examples
    --------
    >>> import qformats
    >>> type(qformats.from_pretrained("demo", device="cpu")).__name__
    'LlamaForCausalLM'
    """
    return load_model(model, **options)


def register_with_transformers() -> None:
    """Let Transformers load and save folders in the formats of installed plugins that it does not know itself.

    Without it Transformers logs that the quantization method is unknown, and fills the layers with random
    numbers. It lasts for the process; :func:`load_model` does not need it.

    Examples
    --------
    >>> import qformats
    >>> qformats.register_with_transformers()
    """
    from qformats.runtime.transformers_hooks import register

    register()


def prepare_for_training(model: Any, *, gradient_checkpointing: bool = True) -> Any:
    """Freeze a model and let gradients through it, before PEFT puts adapters on it.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        With packed weights or plain ones. Modified: no parameter needs a gradient afterwards, and embeddings give
        outputs that do.
    gradient_checkpointing : bool
        Compute activations again in the backward pass instead of keeping them.

    Returns
    -------
    transformers.PreTrainedModel
        The same model.

    Examples
    --------
    >>> import qformats
    >>> model = qformats.prepare_for_training(qformats.load_model("demo", device="cpu", format="gguf:q8_0"))
    >>> any(parameter.requires_grad for parameter in model.parameters())
    False
    """
    from qformats.runtime import adapters

    return adapters.prepare_for_training(model, gradient_checkpointing=gradient_checkpointing)


def merge_adapter(
    model: Any,
    target: str | PathLike[str],
    *,
    format: str | None = None,
    source: str | PathLike[str] | Checkpoint | None = None,
    force: bool = False,
    verify: bool = False,
    workers: int | None = None,
    options: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> MergeReport:
    """Write a base model with the active LoRA adapters added to its weights.

    Weights are read from the base model's files again, a slice at a time; the sum is taken in float32. Tensors without
    an adapter keep their bytes where the output has the same format.

    Parameters
    ----------
    model : peft.PeftModel, str or path
        On a model from :func:`load_model`. Not modified. Or the folder of an adapter, as PEFT saves it; then nothing is
        loaded to be run.
    target : str or path
        File or folder to write.
    format : str, optional
        ``family:variant``. By default every tensor goes back into the format that it has in the source, which
        quantizes changed ones again if it is a quantized one; ``"dense:bf16"`` or another plain format keeps the sum.
    source : str, path or Checkpoint, optional
        The base model, by default what `model` was loaded from. Needed for the folder of an adapter.
    force, verify, workers, options, progress
        As in :func:`export`.

    Returns
    -------
    MergeReport
        What was written, and what rounding added; a warning also says which tensors were quantized again.

    Raises
    ------
    ConfigError
        If there is no adapter, or one that is not a plain sum: DoRA, trained biases, modules that were trained whole.
    CheckpointError
        If the folder of an adapter holds none, or one that does not fit the base.
    ShapeError
        If an adapter does not fit the stored weight.

    Examples
    --------
    An adapter that was not trained adds nothing:

    >>> import peft, qformats, tempfile, warnings
    >>> from pathlib import Path
    >>> model = qformats.prepare_for_training(qformats.load_model("demo", device="cpu"))
    >>> lora = peft.LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    >>> adapted = peft.get_peft_model(model, lora)
    >>> with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
    ...     warnings.simplefilter("ignore")
    ...     report = qformats.merge_adapter(adapted, Path(folder, "merged"), format="dense:bf16")
    >>> report.adds_nothing, len(report.tensors)
    (True, 4)
    """
    if isinstance(model, str | PathLike):
        from qformats.folder.adapter import refuse_swapped, require_adapter

        # Before torch and Transformers are loaded, which takes seconds.
        refuse_swapped(Path(model).expanduser(), source)
        require_adapter(Path(model).expanduser())
    path("target", target)
    from qformats.runtime import merge

    return merge.merge_adapter(
        model,
        target,
        format=format,
        source=source,
        force=force,
        verify=verify,
        workers=workers,
        options=options,
        progress=progress,
    )


def compare(
    base: str | PathLike[str] | Checkpoint,
    *models: str | PathLike[str] | Checkpoint,
    try_: str | Sequence[str] = (),
    text: str | PathLike[str] | None = None,
    quantizer: str | None = None,
    quantizer_options: Mapping[str, str] | None = None,
    pure: bool = False,
    imatrix: str | PathLike[str] | Sequence[str | PathLike[str]] = (),
    window: int = 512,
    windows: int | None = None,
    logits: str | PathLike[str] | None = None,
    speed: bool = False,
    tasks: str | Sequence[str] = (),
    text_files: Mapping[str, str] | None = None,
    task_window: int | None = None,
    task_step: int | None = None,
    task_limit: int | None = None,
    device: str | None = None,
    dtype: str = "f32",
    workers: int | None = None,
    options: Mapping[str, str] | None = None,
    verify: bool = False,
    progress: Progress | None = None,
) -> CompareReport:
    """Compare the same model in several formats: size, weights, and with a text its predictions.

    Parameters
    ----------
    base : str, path or Checkpoint
        The model that all others are measured against; see :func:`open`.
    *models : str, path or Checkpoint
        The others.
    try_ : str or sequence of str
        Formats, or one, into which the base is quantized on the fly; nothing is written.
    text : str or path, optional
        UTF-8 file that the models read, or ``"demo"`` for the one that comes with the package. Without it only weights
        are compared.
    quantizer, quantizer_options, pure, imatrix
        As in :func:`export`; for `try_` only, and importance matrices for quantized formats only.
    window : int
        Tokens per window of the text; the second half of each is scored.
    windows : int, optional
        Most windows to use, from the beginning of the text; all by default.
    logits : str or path, optional
        File that keeps the base's predictions. If it exists, the base is not run again.
    speed : bool
        Also measure speed and memory.
    tasks : str or sequence of str
        Published tests that every model does: ``"lambada"`` (accuracy), ``"wikitext2"``, ``"wikitext103"``, ``"ptb"``
        (perplexity per word), or the perplexity of any other text of `text_files`.
    text_files : mapping of str to str, optional
        Texts of tasks, by name; others are looked for in the caches of data sets. Nothing is downloaded.
    task_window, task_step : int, optional
        Tokens of a window of a task's text, 2048 or as many as the base takes, and by how many the next one begins
        later, an eighth of it.
    task_limit : int, optional
        Most windows of a text, and most passages; all by default.
    device : str, optional
        Where models run; a GPU if there is one.
    dtype : str
        Dtype that models compute in: ``"f32"``, ``"f16"`` or ``"bf16"``.
    workers : int, optional
        Threads that compare weights; all cores by default.
    options : mapping of str to str, optional
        Options of the loaders involved.
    verify : bool
        Compare every byte of each model that qformats has written with its record; by default the sizes and a sample.
    progress : Progress, optional
        Receives progress reports.

    Returns
    -------
    CompareReport
        All numbers as plain data.

    Raises
    ------
    QFormatsError
        Whatever is wrong with the input, such as a NaN among the weights. Models that differ so much that something
        cannot be compared are not errors: the report's notes say what is missing.

    Examples
    --------
    >>> import qformats
    >>> report = qformats.compare("demo", try_=["gguf:q8_0", "gguf:q4_0"])
    >>> [(model.name, round(model.weights.linears.sqnr_db)) for model in report.models]
    [('gguf:q8_0', 46), ('gguf:q4_0', 21)]
    """
    from qformats.comparing import Settings
    from qformats.comparing import compare as run
    from qformats.exporting import Recipe
    from qformats.exporting.recipe import with_options
    from qformats.sources import check_options

    options = mapping("options", options)
    check_options(options)
    weighed = tuple(str(path("imatrix", file)) for file in several("imatrix", imatrix))
    tried = [
        Recipe(each.name, quantizer=quantizer or "", pure=pure, imatrix=weighed if each.quantizes else ())
        for each in map(packer, names("try_", try_))
    ]
    tried = with_options(tried, mapping("quantizer_options", quantizer_options))
    opened = [m if isinstance(m, Checkpoint) else open(m, options=options) for m in (base, *models)]
    settings = Settings(
        text=None if text is None else str(path("text", text)),
        window=window,
        windows=windows,
        logits=None if logits is None else path("logits", logits),
        speed=speed,
        device=device,
        dtype=dtype,
        workers=workers,
        options=options,
        tasks=names("tasks", tasks),
        text_files=mapping("text_files", text_files),
        task_window=task_window,
        task_step=task_step,
        task_limit=task_limit,
        verify=verify,
    )
    return run(opened[0], opened[1:], tried, settings, progress)


def verify(
    model: str | PathLike[str],
    *,
    against: str | PathLike[str] | Checkpoint | None = None,
    options: Mapping[str, str] | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> VerifyReport:
    """Look at all of a model on disk, and say what is wrong with it.

    Files are compared with the record that an export has left beside them (``qformats.json`` in a folder,
    ``NAME.qformats.json`` beside a file), byte by byte. Every tensor is read: it must be there, be of finite numbers
    and scales, and have codes of its format's grid. Names and shapes must be those of the model's class, and the
    tokenizer's ids must have rows in the token embedding.

    Parameters
    ----------
    model : str or path
        See :func:`open`.
    against : str, path or Checkpoint, optional
        The source that it was exported from. Then the record's recipe is followed again: exact and rounded tensors must
        have the same bytes, and calibrated ones be as close to the source as was recorded.
    options : mapping of str to str, optional
        Options of the loaders involved.
    workers : int, optional
        Threads; all cores by default.
    progress : Progress, optional
        Receives progress reports.

    Returns
    -------
    VerifyReport
        ``sound``, ``findings``, and what was looked at.

    Raises
    ------
    ModelNotFoundError
        If there is no model.
    UnsupportedModelError
        If nobody here can judge it.
    ConfigError
        If `against` is given for a model without a record.
    CheckpointError
        If the record is damaged, or the source.

    Examples
    --------
    >>> import qformats, tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     target = Path(folder, "demo.gguf")
    ...     report = qformats.export("demo", target, format="gguf:q8_0")
    ...     found = qformats.verify(target, against="demo")
    >>> found.sound, found.derivation.same_bytes
    (True, 39)
    """
    from qformats.verifying import verify as run

    options = mapping("options", options)
    return run(model, against=against, options=options, workers=workers, progress=progress)
