"""Quantizing a model block by block, each layer by its inputs."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qformats.calibration.activations import Activations, Memory, device_room
from qformats.calibration.experts import expert_of, few_tokens, stages
from qformats.calibration.finished import FinishedBlocks
from qformats.calibration.layer import Layer, Round, Rounded, Scale
from qformats.calibration.moments import Moments
from qformats.calibration.outside import Outside
from qformats.calibration.precision import full_precision
from qformats.calibration.scaling import PROBED, ScaledBlock, Scaling, unscaled_note
from qformats.calibration.settings import Settings
from qformats.calibration.skeleton import Skeleton
from qformats.calibration.stream import Stream, observe
from qformats.calibration.team import ALONE, Finished, Team
from qformats.calibration.teamwork import Job, lead
from qformats.calibration.text import check_text, sample_tokens
from qformats.errors import ConfigError, Described, NonFiniteError, OutputError, WeightsError, spelled
from qformats.interfaces.checkpoint import Checkpoint, ReplacedTensors
from qformats.interfaces.packer import PackedTensor, Packer
from qformats.interfaces.stored import StoredTensor
from qformats.numbers.dtypes import torch_dtype
from qformats.numbers.error import relative_error
from qformats.numbers.quantized import QuantizedTensor
from qformats.registry import registry
from qformats.version import __version__
from qformats.work.files import fingerprint
from qformats.work.gpus import require_device
from qformats.work.memory import return_freed
from qformats.work.pool import torch_threads
from qformats.work.progress import Progress, Silent

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["calibrate"]

_BATCH_TOKENS = 2048
"""Tokens that run through a block at a time: enough to keep a device busy, few enough beside a block's weights."""


_SHOWN = 4
"""Names that a notice lists."""
_EMBEDDING, _HEAD = "embedding", "head"
"""Files of what is outside the blocks."""


def calibrate(
    source: Checkpoint,
    formats: Mapping[str, Packer],
    work: Path,
    settings: Settings,
    round_layers: Round,
    *,
    identity: Mapping[str, str],
    drift: bool,
    progress: Progress,
    scale: Scale | None = None,
) -> Checkpoint:
    """Quantize the linear layers of a model's blocks, its embedding in front of them and its head behind them.

    Parameters
    ----------
    source : Checkpoint
        The model.
    formats : mapping of str to Packer
        Format of each tensor that is to be quantized, by canonical name. The token embedding comes first, as a layer
        whose inputs each count by themselves; the output head last, unless it is the embedding. Both come in pieces,
        layers of the same name and input, one after the other. Other tensors outside the blocks are left as they are.
    work : Path
        Folder for finished blocks. A run that was killed goes on from there and ends with the same bytes.
    settings : Settings
        Text, samples, device and so on.
    round_layers : callable
        The quantizer.
    identity : mapping of str to str
        What else decides the result: the quantizer's own options.
    drift : bool
        Whether to run the unquantized model beside the quantized one, and gather how their inputs differ.
    progress : Progress
        Receives progress reports.
    scale : callable, optional
        Chooses factors for the columns of layers, which are then rounded with these in their weights. What is in front
        of them (a norm, another layer) is divided by them, so that the model computes what it did. Which layers allow
        that is found by trying, block by block; the others are named in the result's notes.

    Returns
    -------
    Checkpoint
        `source` with these layers in their new formats, and with norms, biases and routers changed where columns are
        scaled.

    Raises
    ------
    ConfigError
        If a tensor cannot be calibrated, or an option is not possible.
    UnsupportedModelError
        If Transformers cannot run the model block by block.

    Examples
    --------
    Rounding each layer as it is, whatever reaches it:

    >>> import qformats, tempfile
    >>> from pathlib import Path
    >>> from qformats.calibration import Rounded, Settings, calibrate
    >>> from qformats.work.progress import Silent
    >>> def plainly(layers, moments, tell):
    ...     for layer in layers:
    ...         yield Rounded(layer.packer.grid.quantize(layer.weight), 0.0, 1.0, 0.0)
    >>> model = qformats.open("demo")
    >>> formats = {"model.layers.0.mlp.up_proj.weight": qformats.packer("gguf:q4_0")}
    >>> settings = Settings(samples=2, sequence_length=16, device="cpu")
    >>> with tempfile.TemporaryDirectory() as work:
    ...     done = calibrate(
    ...         model, formats, Path(work), settings, plainly, identity={}, drift=False, progress=Silent()
    ...     )
    ...     done.tensors["model.layers.0.mlp.up_proj.weight"].format
    'gguf:q4_0'
    """
    from qformats.folder.readiness import require_class, require_tokenizer

    for device in settings.devices:
        require_device(device or None, "device")
    require_class(source, "calibrate")
    require_tokenizer(source)
    check_text(source, settings)
    # In a pipe there is no bar, and the first result is minutes away.
    progress.notice(
        f"calibrating {len(formats)} weights on {settings.calibration or 'the text that comes with qformats'}, which "
        "runs the model; --quantizer rtn rounds without it"
    )
    progress.start("loading torch", 0)
    if len(settings.devices) == 1:
        return _led(Run(source, formats, work, settings, round_layers, drift, progress, scale), identity)
    if settings.samples < len(settings.devices):
        expected = f"{len(settings.devices)} or more, one for each device"
        raise ConfigError("samples", settings.samples, expected)
    job = Job(
        str(source.path),
        type(source).__name__,
        fingerprint(source.files),
        {name: _told(packer) for name, packer in formats.items()},
        {name: tensor.format for name, tensor in source.tensors.items()},
        str(work),
        settings,
        round_layers,
        dict(identity),
        drift,
    )
    if scale is not None:
        found = Described(f"{len(settings.devices)} devices for a quantizer that scales columns")
        raise ConfigError("device", found, "one device")
    lead(job, progress)
    progress.start("reading what the processes have made", 0)
    settings = replace(settings, device=settings.devices[0], log=None)
    done = Finished(0, len(job.settings.devices))
    return _led(Run(source, formats, work, settings, round_layers, drift, Silent(), None, done), identity)


def _told(packer: Packer) -> str | Packer:
    """A format, as another process is told of it."""
    return packer.name if registry().packer(packer.name) is packer else packer


def take_part(job: Job, source: Checkpoint, team: Team, progress: Progress) -> None:
    """Do one process's share of a calibration over several devices."""
    packers = {
        name: registry().packer(told) if isinstance(told, str) else told for name, told in job.formats.items()
    }
    log = job.settings.log if team.leads else None
    settings = replace(job.settings, device=job.settings.devices[team.rank], log=log)
    run = Run(source, packers, Path(job.work), settings, job.round_layers, job.drift, progress, None, team)
    _led(run, job.identity)


def _led(run: Run, identity: Mapping[str, str]) -> Checkpoint:
    import torch

    with torch.inference_mode(), full_precision(), run.logging():
        return run.go(identity)


class Run:
    """One calibration; arguments as of :func:`calibrate`."""

    def __init__(
        self,
        source: Checkpoint,
        formats: Mapping[str, Packer],
        work: Path,
        settings: Settings,
        round_layers: Round,
        drift: bool,
        progress: Progress,
        scale: Scale | None = None,
        team: Team = ALONE,
    ) -> None:
        from qformats.work.device import chosen_device

        self.source, self.work, self.settings = source, work, settings
        self.round_layers, self.drift, self.progress = round_layers, drift, progress
        self.scale = scale
        self.formats: Mapping[str, Packer] = {
            name: packer for name, packer in formats.items() if packer.grid is not None
        }
        self.device = chosen_device(settings.device or None)
        self.dtype = _dtype(settings.compute_dtype, source, self.device)
        self.team = team
        self.memory = Memory(settings.activation_memory // team.size)
        self.loss = self.signal = 0.0
        self._told: set[str] = set()
        self._write_log: Callable[[Mapping[str, object]], None] = lambda entry: None

    def go(self, identity: Mapping[str, str]) -> Checkpoint:
        """Quantize all blocks that are not finished yet."""
        self.progress.start("loading Transformers for the calibration", 0)
        skeleton = Skeleton(self.source, self.dtype, self.device)
        self._leave_out(skeleton.unread(self.formats.keys()), type(skeleton.model).__name__)
        skeleton.open_experts(self.formats.keys())
        self._check(skeleton)
        self.memory.device_limit = device_room(
            self.device,
            columns=max((skeleton.columns(name) for name in self.formats), default=0),
            block_nbytes=skeleton.block_nbytes,
        )
        self.progress.start("reading the calibration text", 0)
        tokens = sample_tokens(self.source, self.settings, self.progress)
        if len(tokens) < self.team.size:
            raise ConfigError("samples", len(tokens), f"one for each of {self.team.size} devices at least")
        identified = self.team.first(self._identity(identity, tokens))
        blocks = self._blocks(identified)
        start, stop = self.team.share(len(tokens))
        with torch_threads(blocks.threads):
            self._quantize(skeleton, tokens[start:stop], blocks)
        if not self.team.leads:
            return self.source
        replaced: dict[str, StoredTensor] = {}
        seen: dict[str, int] = {}
        unscaled: dict[str, str] = {}
        for number in range(len(skeleton.blocks)):
            replaced |= blocks.read(number, self.source)
            seen |= blocks.tokens(number)
            unscaled |= blocks.unscaled(number)
        within = [name for name in self.formats if name in replaced]
        notes = (
            few_tokens(seen, {name: skeleton.columns(name) for name in seen}),
            unscaled_note(unscaled, len(within), lambda name: _within(skeleton.prefix, name)),
        )
        for part in (_EMBEDDING, _HEAD):
            if blocks.path(part).is_file():
                replaced |= blocks.read(part, self.source)
        done = ReplacedTensors(self.source, replaced, self._calibrated_on(tokens))
        done.calibration_sha256 = _hash(tokens)
        done.notes = (*done.notes, *filter(None, notes))
        done.decided_by = {
            "tokens": done.calibration_sha256,
            "threads": str(blocks.threads),
            "device": self.device.type,
            "dtype": str(self.dtype).removeprefix("torch."),
        }
        return done

    def _blocks(self, identity: str) -> FinishedBlocks:
        """What is finished; the first process looks first, since it removes what belongs to another calibration."""
        import torch

        share = torch.get_num_threads() // (self.team.size if self.device.type == "cpu" else 1)
        if self.team.leads:
            blocks = FinishedBlocks(self.work / "blocks", identity, max(1, share))
        self.team.first(None)
        return blocks if self.team.leads else FinishedBlocks(self.work / "blocks", identity, max(1, share))

    def _leave_out(self, names: Sequence[str], model_class: str) -> None:
        """Let weights be rounded each by itself that the model's class does not have, so that nothing reaches them."""
        if not names:
            return
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        shown = ", ".join(names[:_SHOWN]) + more
        self.progress.notice(f"rounded without calibration, since {model_class} does not run them: {shown}")
        self.formats = {name: packer for name, packer in self.formats.items() if name not in set(names)}

    def _quantize(self, skeleton: Skeleton, tokens: Tensor, blocks: FinishedBlocks) -> None:
        """Add to `blocks` what is missing."""
        own = f"-{self.team.rank}" if self.team.rank else ""
        states = Activations(self.work / f"states{own}", self.memory)
        plain = Activations(self.work / f"plain{own}", self.memory) if self.drift else None
        finished = self.team.first(blocks.count)
        outside = Outside(self, skeleton)
        head = bool(outside.head) and not blocks.path(_HEAD).is_file()
        left = finished < len(skeleton.blocks) or self.team.first(head)
        if finished:
            self.progress.notice(f"going on with an interrupted calibration: {finished} blocks are finished")
        arguments: list[list[dict[str, Any]]] = []
        try:
            if left:
                self.progress.start("embedding the calibration text", 0)
                size = max(1, _BATCH_TOKENS // tokens.shape[1])
                with skeleton.loading_on_use():
                    for index, (hidden, given) in enumerate(skeleton.batches(tokens, size)):
                        states.put(index, hidden)
                        if plain is not None:
                            plain.put(index, hidden)
                        arguments.append(given)
                if outside.embedding:
                    if self.team.leads and not blocks.path(_EMBEDDING).is_file():
                        blocks.write(_EMBEDDING, {outside.embedding: outside.embedded()})
                    self.team.first(None)
                    # The blocks make up for its errors, too.
                    skeleton.replace(blocks.read(_EMBEDDING, self.source))
                    with skeleton.loading_on_use():
                        for index, (hidden, _) in enumerate(skeleton.batches(tokens, size)):
                            states.put(index, hidden)
                scaling = None if self.scale is None else self._scaling(skeleton, tokens, self.scale)
                for number in range(len(skeleton.blocks)):
                    done = blocks.read(number, self.source) if number < finished else None
                    given = [each[number] for each in arguments]
                    block = _Block(self, skeleton, number, states, plain, given, scaling)
                    written = block.go(done)
                    if written is not None and self.team.leads:
                        blocks.write(number, written, block.tokens, block.unscaled)
                if outside.head:
                    ended = outside.ended(states, plain)
                    if ended is not None:
                        blocks.write(_HEAD, {outside.head: ended})
        finally:
            states.clear()
            if plain is not None:
                plain.clear()

    def _scaling(self, skeleton: Skeleton, tokens: Tensor, scale: Scale) -> Scaling:
        """What scales the columns of the blocks."""
        with skeleton.loading_on_use():
            _, arguments = next(skeleton.batches(tokens[:1, :PROBED], 1))
        return Scaling(self, skeleton, scale, arguments)

    def _calibrated_on(self, tokens: Tensor) -> str:
        samples, length = tokens.shape
        text = self.settings.calibration or "the text that comes with qformats"
        return f"{samples} x {length:,} tokens of {text}"

    def check_moments(self, name: str, moments: Moments, *, few: bool = True) -> None:
        """Refuse inputs of a layer that are not finite; tell about few of them, if wanted."""
        if not bool(moments.diagonal.isfinite().all()):
            found = f"the inputs of {name} are not finite in {self.dtype}"
            raise NonFiniteError(found, "run the model in f32 (compute-dtype=f32)")
        if few and moments.tokens < len(moments.diagonal):
            self.tell(
                f"few samples: {moments.tokens} tokens for layers of {len(moments.diagonal)} inputs; "
                "take at least as many tokens as inputs, and preferably ten times as many"
            )

    def pack(self, layer: Layer, quantized: QuantizedTensor) -> PackedTensor:
        """Bytes of a layer, with the fields that follow from its shape."""
        assert layer.packer.grid is not None
        quantized = quantized.to("cpu")
        layer.packer.grid.validate(quantized)
        packed = layer.packer.pack(quantized)
        stored = self.source.tensors[layer.name].stored_packer
        fixed = layer.packer.fixed(quantized.shape, stored.dense_dtype or "f32")
        return replace(packed, fields={**packed.fields, **fixed})

    def _check(self, skeleton: Skeleton) -> None:
        """Refuse tensors that would be skipped silently."""
        linears = {
            skeleton.weight(number, local)
            for number in range(len(skeleton.blocks))
            for local in skeleton.linears(number)
        }
        within = [name for name in self.formats if name.startswith(f"{skeleton.prefix}.")]
        strange = [name for name in within if name not in linears]
        if strange:
            raise refused(strange, "weights of linear layers (experts that are stacked on disk are none)")
        ends = (skeleton.embedding, skeleton.head)
        outside = [name for name in self.formats if name not in linears and name not in ends]
        if outside:
            names = ", ".join(outside[:_SHOWN]) + (
                f" and {len(outside) - _SHOWN} more" if outside[_SHOWN:] else ""
            )
            self.progress.notice(
                f"rounded without calibration, being no linear layers of the blocks: {names}"
            )

    def _identity(self, more: Mapping[str, str], tokens: Tensor) -> str:
        state = {
            "version": __version__,
            "source": self.source.fingerprint or fingerprint(self.source.files),
            "formats": {name: packer.name for name, packer in self.formats.items()},
            "settings": self.settings.identity,
            "quantizer": dict(more),
            "device": str(self.device),
            "processes": self.team.size,
            "dtype": str(self.dtype),
            "tokens": _hash(tokens),
        }
        return json.dumps(state, sort_keys=True)

    def tell(self, text: str) -> None:
        """Show the user a notice, once."""
        if text not in self._told:
            self._told.add(text)
            self.progress.notice(text)

    @contextlib.contextmanager
    def logging(self) -> Iterator[None]:
        """Keep the log open."""
        path = self.settings.log
        if path is None:
            yield
            return
        try:
            file = path.open("w", encoding="utf-8")
        except OSError as error:
            raise OutputError(path, f"cannot be written ({error.strerror or error})") from error
        with file:

            def write(entry: Mapping[str, object]) -> None:
                file.write(json.dumps(entry) + "\n")
                file.flush()

            self._write_log = write
            yield

    def count(self, name: str, rounded: Rounded, tokens: int, seconds: float) -> None:
        """Add a layer to the running error, and to the log."""
        self.loss += rounded.loss
        self.signal += rounded.signal
        entry = {
            "layer": name,
            "format": self.formats[name].name,
            "loss": rounded.loss,
            "relative_error": relative_error(rounded.loss, rounded.signal),
            "damping": rounded.damping,
            "tokens": tokens,
            "seconds": round(seconds, 3),
        }
        self._write_log(entry)

    @property
    def error(self) -> float:
        """Root of the mean squared error of outputs so far, relative to the outputs."""
        return relative_error(self.loss, self.signal)


class _Block:
    """One decoder block: loaded, quantized, run, forgotten."""

    def __init__(
        self,
        run: Run,
        skeleton: Skeleton,
        number: int,
        states: Activations,
        plain: Activations | None,
        arguments: Sequence[Mapping[str, Any]],
        scaling: Scaling | None = None,
    ) -> None:
        self.run, self.skeleton, self.number = run, skeleton, number
        self.tokens: dict[str, int] = {}
        self.unscaled: dict[str, str] = {}
        self._assigned: set[str] = set()
        self._scaling = scaling
        self._scaled: ScaledBlock | None = None
        skeleton.load_block(number)
        self.module = skeleton.blocks[number]
        self.stream = Stream(self.module, states, arguments, run.memory, run.device)
        self.twin: Stream | None = None
        if plain is not None:
            # The block as it is before anything in it is quantized.
            self.twin = Stream(copy.deepcopy(self.module), plain, arguments, run.memory, run.device)

    def go(self, finished: Mapping[str, StoredTensor] | None) -> dict[str, PackedTensor] | None:
        """Take the hidden states from before the block to after it; quantize it unless that is finished."""
        packed: dict[str, PackedTensor] | None = None
        advanced = False
        if finished is not None:
            for name, tensor in finished.items():
                self._assign(name, tensor.read().dequantize())
        else:
            packed = self._scale()
            stages = self._stages()
            for index, stage in enumerate(stages):
                # The unquantized block is not needed after the last group.
                advanced = index == len(stages) - 1
                for group, moments in zip(stage, self._gather(stage, advance=advanced), strict=True):
                    packed |= self._quantize(group, moments)
        # Nothing but the head comes after the last block.
        last = self.number == len(self.skeleton.blocks) - 1 and self.skeleton.head not in self.run.formats
        for index in range(0 if last else len(self.stream.states)):
            self.stream.states.put(index, self.stream.run(index))
            if self.twin is not None and not advanced:
                self.twin.states.put(index, self.twin.run(index))
        for stream in (self.stream, self.twin):
            if stream is not None:
                stream.clear()
        self.skeleton.free_block(self.number)
        return_freed()
        return packed

    def _scale(self) -> dict[str, PackedTensor]:
        """Scale the columns of layers, if wanted; what has changed and stays plain numbers."""
        if self._scaling is None:
            return {}
        self._scaled = self._scaling.block(self.number, self.module, self.stream)
        self.unscaled = self._scaled.unscaled
        if self.twin is not None:
            # It computes what it did, and its layers get inputs of the same scale as those of the quantized one.
            self.twin.module = copy.deepcopy(self.module)
        return dict(self._scaled.kept)

    def _stages(self) -> list[list[tuple[str, ...]]]:
        """Layers to quantize, in the order in which data reaches them; those of the same input together, in a group.

        Groups of different experts, whose outputs do not reach each other, are gathered together as far as memory
        allows.

        Raises
        ------
        ConfigError
            If data does not reach all of them.
        """
        linears = self.skeleton.linears(self.number)
        wanted = [local for local in linears if self._name(local) in self.run.formats]
        if not wanted:
            return []
        states = self.stream.states.get(0).to(self.run.device)
        course = self.run.team.first(observe(self.module, linears, states, self.stream.arguments[0]))
        groups = [tuple(local for local in group if local in wanted) for group in course.groups]
        reached = {local for group in groups for local in group}
        missed = [local for local in wanted if local not in reached]
        strange = [self._name(local) for local in missed if not expert_of(local)]
        if strange:
            raise refused(strange, "layers that the calibration text reaches")
        for stream in (self.stream, self.twin):
            if stream is not None:
                stream.follow(course)
        return stages(groups, missed, lambda local: _columns(self.module.get_submodule(local)))

    def _name(self, local: str) -> str:
        return self.skeleton.weight(self.number, local)

    def _gather(self, stage: Sequence[Sequence[str]], *, advance: bool) -> list[Moments]:
        """Statistics of the inputs that the layers of each group share.

        Parameters
        ----------
        stage : sequence of sequence of str
            The groups.
        advance : bool
            Whether the unquantized block is run to its end.
        """
        firsts = [group[0] for group in stage]
        experts = bool(expert_of(firsts[0]))
        # Other tokens reach an expert in the unquantized model, so that there is nothing to compare them with.
        drift = self.twin is not None and not experts
        gathered = {
            local: Moments(_columns(self.module.get_submodule(local)), self.run.device, drift=drift)
            for local in firsts
        }
        for index in range(len(self.stream.states)):
            inputs = self.stream.inputs(firsts, index)
            plain: Mapping[str, Tensor] = {}
            if self.twin is not None and (drift or advance):
                plain = self.twin.inputs(firsts, index, advance=advance)
            for local, found in inputs.items():
                gathered[local].add(found, plain[local] if drift else None)
        for group in stage:
            gathered[group[0]].pool(self.run.team)
            self._check(group, gathered, experts=experts)
        return_freed()
        return [gathered[local] for local in firsts]

    def _check(self, group: Sequence[str], gathered: dict[str, Moments], *, experts: bool) -> None:
        first = group[0]
        if not experts or gathered[first].tokens:
            self.run.check_moments(self._name(first), gathered[first], few=not experts)
        if experts:
            self.tokens |= {self._name(local): gathered[first].tokens for local in group}
            if not gathered[first].tokens:
                # No input is known to count more than another: each weight is rounded by itself.
                gathered[first] = Moments.alone(_columns(self.module.get_submodule(first)), self.run.device)

    def _quantize(self, group: Sequence[str], moments: Moments) -> dict[str, PackedTensor]:
        names = [self._name(local) for local in group]
        layers = {name: self._layer(name) for name in names}
        sizes = {name: self.run.source.tensors[name].nbytes for name in names}
        title = f"block {self.number + 1} of {len(self.skeleton.blocks)}: {', '.join(group)}"
        if self.run.signal:
            title += f" (error {100 * self.run.error:.2f} %)"
        self.run.progress.start(title, sum(sizes.values()))
        own = [layer for layer in layers.values() if layer is not None]
        results = self.run.round_layers(own, moments, self.run.tell)
        found = {}
        for name, layer in layers.items():
            began = time.perf_counter()
            rounded = None
            if layer is not None:
                try:
                    rounded = next(results)
                except NonFiniteError as error:
                    file = str(self.run.source.tensors[name].file)
                    raise WeightsError(file, name, error.found, error.hint) from error
            packed, values, loss, signal = self._together(name, layer, rounded)
            if rounded is not None:
                rounded = replace(rounded, loss=loss, signal=signal)
                self.run.count(name, rounded, moments.tokens, time.perf_counter() - began)
            self._assign(name, values)
            if packed is not None:
                found[name] = packed
            self.run.progress.advance(sizes[name])
            return_freed()
        return found

    def _layer(self, name: str) -> Layer | None:
        """What this process quantizes of a layer: a range of its rows, all of it, or nothing."""
        packer, team = self.run.formats[name], self.run.team
        shape = self.run.source.tensors[name].shape
        if team.size == 1 or (team.leads and not team.divides(packer, shape)):
            return Layer(name, packer, partial(self._read, name))
        if not team.divides(packer, shape):
            return None
        start, stop = team.share(shape[0])
        return Layer(name, packer, lambda: self._read(name)[start:stop].contiguous())

    def _together(
        self, name: str, layer: Layer | None, rounded: Rounded | None
    ) -> tuple[PackedTensor | None, Tensor, float, float]:
        """The whole layer of what each process has of it: bytes, if this one writes them, values, and errors."""
        run, team = self.run, self.run.team
        packer, stored = run.formats[name], run.source.tensors[name]
        dtype = stored.stored_packer.dense_dtype or "f32"
        if team.size == 1:
            assert layer is not None
            assert rounded is not None
            packed = run.pack(layer, rounded.quantized)
            # Decoded where the block is: its packed bytes are on the CPU.
            return packed, rounded.quantized.dequantize(), rounded.loss, rounded.signal
        if not team.divides(packer, stored.shape):
            made = None if layer is None or rounded is None else run.pack(layer, rounded.quantized)
            fields = team.fields_of(0, None if made is None else dict(made.fields))
            packed = PackedTensor(packer, stored.shape, fields)
            errors = (0.0, 0.0) if rounded is None else (rounded.loss, rounded.signal)
            return packed, packed.dequantize(), *errors
        assert layer is not None
        assert rounded is not None
        loss, signal = team.total(rounded.loss, rounded.signal)
        part = rounded.quantized
        if type(part) is QuantizedTensor and part.block_size[0] == 1:
            whole = team.all_codes(part, stored.shape[0])
            bytes_ = run.pack(layer, whole) if team.leads else None
            return bytes_, whole.dequantize(), loss, signal
        packed = team.all_bytes(run.pack(layer, part), stored.shape, dtype)
        return packed, packed.dequantize(), loss, signal

    def _read(self, name: str) -> Tensor:
        if self._scaled is not None:
            return self._scaled.read(name)
        if name in self._assigned:
            return self.skeleton.read(name).to(self.run.device)
        return self.skeleton.unquantized(self.number, name)

    def _assign(self, name: str, values: Tensor) -> None:
        """Make the block compute with the values of stored weights."""
        self._assigned.add(name)
        owner, key = self.skeleton.local(self.number, name), "weight"
        if name not in self.run.formats:
            owner, _, key = name.removeprefix(self.skeleton.name(self.number, "")).rpartition(".")
        self.skeleton.assign(self.module.get_submodule(owner), key, values, name)


def refused(names: Sequence[str], wanted: str) -> ConfigError:
    """Error for tensors that cannot be calibrated."""
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    types, plain = spelled("--tensor-type", "tensor_types"), spelled("--quantizer rtn", "quantizer='rtn'")
    hint = f"Keep them in another format ({types}), or use {plain}"
    return ConfigError("tensors to calibrate", Described(shown), wanted, hint)


def _hash(tokens: Tensor) -> str:
    return hashlib.sha256(tokens.numpy().astype("<i8").tobytes()).hexdigest()


def _within(prefix: str, name: str) -> str:
    """Name of a weight within its block."""
    return name.removeprefix(f"{prefix}.").partition(".")[2]


def _columns(module: Any) -> int:
    rows, columns = module.weight.shape
    return int(rows if type(module).__name__ == "Conv1D" else columns)


def _dtype(name: str, source: Checkpoint, device: torch.device) -> torch.dtype:
    """Dtype that the model runs in."""
    import torch

    if name:
        return torch_dtype(name)
    declared = str(source.config.get("dtype", source.config.get("torch_dtype", "")))
    if device.type != "cpu" and declared in ("bfloat16", "float16"):
        return torch.bfloat16 if declared == "bfloat16" else torch.float16
    return torch.bfloat16 if declared == "bfloat16" and _fast_bf16() else torch.float32


def _fast_bf16() -> bool:
    """Whether the processor multiplies bfloat16 itself; others emulate it slowly."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
