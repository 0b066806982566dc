"""What rounding one tensor costs a model: the divergence of its predictions, estimated from one pass over a text.

Rounding a weight by ``d`` raises the mean KL divergence by about ``dᵀ F d / 2``, with the Fisher information ``F`` of
the model's own predictions. Its diagonal is the mean square of the gradients of sampled labels' log probabilities, one
gradient per piece of text. Elements' errors are nearly independent of each other, so that the diagonal suffices: on the
demo model estimates are within 30 % of what is measured (tests/calibration/test_sensitivity.py).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qformats.calibration.activations import Activations, Memory
from qformats.calibration.settings import Settings
from qformats.calibration.stream import Stream
from qformats.calibration.text import sample_tokens
from qformats.errors import NonFiniteError
from qformats.interfaces.checkpoint import Checkpoint
from qformats.interfaces.packer import Packer
from qformats.interfaces.quantizer import Quantizer
from qformats.work.memory import return_freed
from qformats.work.progress import Progress

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from qformats.calibration.skeleton import Skeleton

__all__ = ["measure_sensitivity"]


def measure_sensitivity(
    source: Checkpoint,
    candidates: Mapping[str, Sequence[Packer]],
    quantizer: Quantizer,
    settings: Settings,
    progress: Progress,
) -> dict[str, dict[str, float]]:
    """Estimate how much each tensor's rounding alone raises the model's mean KL divergence.

    One block is in memory at a time, with two float32 matrices beside each of its weights; hidden states before every
    block are kept, as much as `settings` allow in memory and the rest on disk.

    Parameters
    ----------
    source : Checkpoint
        The model.
    candidates : mapping of str to sequence of Packer
        Formats that a tensor may get, by canonical name.
    quantizer : Quantizer
        Rounds each weight by itself.
    settings : Settings
        Text, samples, device and so on.
    progress : Progress
        Receives progress reports.

    Returns
    -------
    dict of str to dict of str to float
        Nats per token, by canonical name and name of the format; without tensors that the model's class does not hold
        as matrices of their own.

    Raises
    ------
    ConfigError
        If an option is not possible.
    UnsupportedModelError
        If Transformers cannot run the model block by block.
    NonFiniteError
        If gradients are not finite.

    Examples
    --------
    >>> import qformats
    >>> from qformats.calibration import Settings, measure_sensitivity
    >>> from qformats.registry import registry
    >>> from qformats.work.progress import Silent
    >>> formats = [qformats.packer("gguf:q4_k"), qformats.packer("gguf:q6_k")]
    >>> settings = Settings(samples=2, sequence_length=32, device="cpu")
    >>> name = "model.layers.0.mlp.up_proj.weight"
    >>> found = measure_sensitivity(
    ...     qformats.open("demo"), {name: formats}, registry().quantizer("rtn"), settings, Silent()
    ... )
    >>> found[name]["gguf:q4_k"] > found[name]["gguf:q6_k"] > 0
    True
    """
    from qformats.folder.readiness import require_class, require_tokenizer
    from qformats.work.gpus import require_device

    require_device(settings.device or None, "device")
    require_class(source, "measure")
    require_tokenizer(source)
    progress.start("loading torch and Transformers", 0)
    import torch

    from qformats.calibration.precision import full_precision
    from qformats.calibration.skeleton import Skeleton
    from qformats.numbers.dtypes import torch_dtype
    from qformats.work.device import chosen_device

    device = chosen_device(settings.device or None)
    with torch.no_grad(), full_precision(), tempfile.TemporaryDirectory(prefix="qformats-") as work:
        skeleton = Skeleton(source, torch_dtype(settings.compute_dtype or "f32"), device)
        progress.start("reading the calibration text", 0)
        tokens = sample_tokens(source, settings, progress)
        run = _Run(source, skeleton, candidates, quantizer, tokens, Path(work), settings, progress)
        return dict(run.go())


class _Run:
    def __init__(
        self,
        source: Checkpoint,
        skeleton: Skeleton,
        candidates: Mapping[str, Sequence[Packer]],
        quantizer: Quantizer,
        tokens: Tensor,
        work: Path,
        settings: Settings,
        progress: Progress,
    ) -> None:
        self.source, self.skeleton, self.candidates = source, skeleton, candidates
        self.quantizer, self.tokens, self.settings, self.progress = quantizer, tokens, settings, progress
        memory = Memory(settings.activation_memory)
        count = len(skeleton.blocks)
        self.states = [Activations(work / f"states-{number}", memory) for number in range(count + 1)]
        self.gradients = Activations(work / "gradients", memory)
        self.arguments: list[list[dict[str, Any]]] = []
        self.share = 1 / (2 * tokens.numel())

    def go(self) -> Iterator[tuple[str, dict[str, float]]]:
        """Forward through all blocks, then back."""
        self._forward()
        outside: dict[str, Tensor] = {}
        self._head(outside)
        for number in reversed(range(len(self.skeleton.blocks))):
            yield from self._block(number)
        self._embedding(outside)
        yield from self._losses(outside)

    def _forward(self) -> None:
        skeleton, blocks = self.skeleton, self.skeleton.blocks
        self.progress.start("embedding the calibration text", 0)
        with skeleton.loading_on_use():
            for index, (hidden, given) in enumerate(skeleton.batches(self.tokens, 1)):
                self.states[0].put(index, hidden)
                self.arguments.append(given)
        for number, block in enumerate(blocks):
            self.progress.start(f"block {number + 1} of {len(blocks)}, forward", len(self.tokens))
            skeleton.load_block(number)
            stream = self._stream(number, block)
            for index in range(len(self.tokens)):
                self.states[number + 1].put(index, stream.run(index))
                self.progress.advance(1)
            skeleton.free_block(number)
            return_freed()

    def _stream(self, number: int, block: Any) -> Stream:
        given = [each[number] for each in self.arguments]
        return Stream(block, self.states[number], given, Memory(0), self.skeleton.device)

    def _head(self, fisher: dict[str, Tensor]) -> None:
        """Gradients of the log probability of one sampled label per token, as far as the last block's output."""
        import torch

        self.progress.start("the output layer", len(self.tokens))
        generator = torch.Generator(self.skeleton.device).manual_seed(self.settings.seed)
        with self.skeleton.loading_on_use():
            for index in range(len(self.tokens)):
                states = self._leaf(self.states[-1].get(index))
                if not index:
                    self.skeleton.around(self.tokens[:1], states)
                weights = self._outside()
                with torch.enable_grad():
                    _, logits = self.skeleton.around(self.tokens[index : index + 1], states)
                    scores = logits[0].float().log_softmax(-1)
                    if not bool(scores.isfinite().all()):
                        raise self._not_finite("the model's predictions are")
                    labels = torch.multinomial(scores.detach().exp(), 1, generator=generator)
                    wanted = [states, *(weight for weight, _ in weights.values())]
                    found = torch.autograd.grad(scores.gather(1, labels).sum(), wanted, allow_unused=True)
                self.gradients.put(index, found[0])
                self._add(fisher, weights, found[1:])
                self.progress.advance(1)
        return_freed()

    def _block(self, number: int) -> Iterator[tuple[str, dict[str, float]]]:
        import torch

        skeleton, block = self.skeleton, self.skeleton.blocks[number]
        self.progress.start(f"block {number + 1} of {len(skeleton.blocks)}, back", len(self.tokens))
        skeleton.load_block(number)
        weights = {
            name: (parameter, canonical)
            for local, parameter in block.named_parameters()
            for name in [skeleton.name(number, local)]
            for canonical in [skeleton.stored(name)]
            if any(each in self.candidates for each, _ in canonical)
        }
        for parameter, _ in weights.values():
            parameter.requires_grad_(True)
        stream = self._stream(number, block)
        fisher: dict[str, Tensor] = {}
        for index in range(len(self.tokens)):
            states = self._leaf(self.states[number].get(index))
            with torch.enable_grad():
                output = stream.run(index, states)
                wanted = [states, *(weight for weight, _ in weights.values())]
                onward = self.gradients.get(index).to(output)
                found = torch.autograd.grad(output, wanted, onward, allow_unused=True)
            self.gradients.put(index, found[0])
            self._add(fisher, weights, found[1:])
            self.progress.advance(1)
        self.states[number + 1].clear()
        skeleton.free_block(number)
        return_freed()
        yield from self._losses(fisher)

    def _embedding(self, fisher: dict[str, Tensor]) -> None:
        import torch

        with self.skeleton.loading_on_use():
            for index in range(len(self.tokens)):
                piece, states = (
                    self.tokens[index : index + 1],
                    self.states[-1 - len(self.skeleton.blocks)].get(index),
                )
                states = states.to(self.skeleton.device)
                if not index:
                    self.skeleton.around(piece, states)
                weights = self._outside()
                with torch.enable_grad():
                    hidden, _ = self.skeleton.around(piece, states)
                    if not hidden.requires_grad:
                        return
                    wanted = [weight for weight, _ in weights.values()]
                    onward = self.gradients.get(index).to(hidden)
                    found = torch.autograd.grad(hidden, wanted, onward, allow_unused=True)
                self._add(fisher, weights, found)
        return_freed()

    def _leaf(self, states: Tensor) -> Tensor:
        leaf: Tensor = states.to(self.skeleton.device).detach().clone().requires_grad_(True)
        return leaf

    def _outside(self) -> dict[str, tuple[Any, Any]]:
        """Loaded parameters outside the blocks that have candidates, and the tensors that they consist of."""
        found = {}
        for name, parameter in self.skeleton.model.named_parameters(remove_duplicate=False):
            if name.startswith(f"{self.skeleton.prefix}.") or parameter.is_meta or parameter.ndim < 2:
                continue
            canonical = self.skeleton.stored(name)
            if any(each in self.candidates for each, _ in canonical):
                found[name] = (parameter.requires_grad_(True), canonical)
        return found

    def _add(
        self,
        fisher: dict[str, Tensor],
        weights: Mapping[str, tuple[Any, Any]],
        gradients: Sequence[Tensor | None],
    ) -> None:
        """Add the squares of one piece's gradients, by canonical name."""
        for (name, (_, canonical)), gradient in zip(weights.items(), gradients, strict=True):
            if gradient is None:
                continue
            squares = gradient.float().square_().mul_(self.share)
            if not bool(squares.isfinite().all()):
                raise self._not_finite(f"the gradient of {name} is")
            owner, _, key = name.rpartition(".")
            if key == "weight" and type(self.skeleton.model.get_submodule(owner)).__name__ == "Conv1D":
                # It computes with the transposed matrix.
                squares = squares.t()
            for each, place in canonical:
                part = place.within(squares)
                if each in fisher:
                    fisher[each] += part
                elif each in self.candidates:
                    fisher[each] = part.clone() if part is not squares else squares

    def _not_finite(self, what: str) -> NonFiniteError:
        hint = "run the model in f32 (compute-dtype=f32)"
        return NonFiniteError(f"{what} not finite in {self.skeleton.dtype}", hint)

    def _losses(self, fisher: dict[str, Tensor]) -> Iterator[tuple[str, dict[str, float]]]:
        for name in list(fisher):
            squares = fisher.pop(name).cpu()
            weight = self.skeleton.read(name)
            if squares.shape != weight.shape or weight.ndim not in (2, 3):
                continue
            found = {}
            for packer in self.candidates[name]:
                self.progress.start(f"{name} in {packer.name}", 0)
                found[packer.name] = self._loss(name, weight, squares, packer)
            yield name, found

    def _loss(self, name: str, weight: Tensor, squares: Tensor, packer: Packer) -> float:
        if packer.name == self.source.tensors[name].format:
            # Its bytes are copied.
            return 0.0
        columns = weight.shape[-1]
        sums = None if self.source.importance is None else self.source.importance.sums.get(name)
        matrices, fisher = (
            weight.view(-1, weight.shape[-2], columns),
            squares.reshape(-1, weight.shape[-2], columns),
        )
        means = _means(sums, weight, name) if sums is not None else [None] * len(matrices)
        total = 0.0
        for matrix, cost, importance in zip(matrices, fisher, means, strict=True):
            error = self.quantizer.quantize(matrix, packer, importance).dequantize() - matrix
            total += float((cost * error.square()).sum(dtype=_double()))
        return total


def _double() -> torch.dtype:
    import torch

    return torch.float64


def _means(sums: Any, weight: Tensor, name: str) -> Sequence[Tensor]:
    import torch

    return list(torch.from_numpy(sums.means(tuple(weight.shape), name)))
