"""A model that runs: logits of a window, and where they stop being finite."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from qformats.errors import BackendUnavailableError, QFormatsError
from qformats.interfaces.checkpoint import Checkpoint

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["LoadedModel"]


class LoadedModel:
    """A model in memory.

    Parameters
    ----------
    source : Checkpoint
        The model.
    device : torch.device
        Where it runs.
    dtype : torch.dtype or None
        What it computes in, see :func:`qformats.load_model`; packed weights stay packed.
    **loading
        Further arguments of that function.

    Attributes
    ----------
    limit : int or None
        Tokens that the model takes, if its configuration tells.
    keeps : bool
        Whether it computes logits only where they are asked for.
    prefix : tuple of int
        Ids that it needs in front of every text.

    Raises
    ------
    QFormatsError
        If it cannot be run, saying why.
    """

    def __init__(
        self, source: Checkpoint, device: torch.device, dtype: torch.dtype | None, **loading: Any
    ) -> None:
        from qformats.folder.context import context_limit
        from qformats.folder.readiness import require_class
        from qformats.runtime.load import load_model
        from qformats.runtime.prefix import text_prefix

        require_class(source, "run")
        self.device, self.name = device, source.name
        self.limit = context_limit(source.config)
        self.prefix = text_prefix(source)
        with self.reported():
            self.model: Any = load_model(source, device=device, dtype=dtype, **loading)
        self.keeps = "logits_to_keep" in inspect.signature(self.model.forward).parameters

    @contextlib.contextmanager
    def reported(self) -> Iterator[None]:
        """Turn errors while the model runs into one sentence.

        Raises
        ------
        BackendUnavailableError
            If the device has too little memory, or an operation fails.
        """
        import torch

        try:
            yield
        except QFormatsError:
            raise
        except torch.OutOfMemoryError as error:
            hint = "Use --device cpu, a smaller --window, or --dtype bf16"
            found = f"does not have enough memory to run {self.name}"
            raise BackendUnavailableError(str(self.device), found, hint) from error
        except (RuntimeError, IndexError) as error:
            # Messages of torch may go on with a trace of their own.
            reason = next(iter(str(error).splitlines()), "") or type(error).__name__
            raise BackendUnavailableError(
                str(self.device), f"{self.name} failed while running ({reason})"
            ) from error

    @property
    def vocabulary(self) -> int:
        """Tokens that it can read."""
        return int(self.model.get_input_embeddings().num_embeddings)

    def logits(self, ids: NDArray[Any], count: int) -> Tensor:
        """Logits at the last `count` positions of a sequence.

        Returns
        -------
        Tensor
            float32 or the model's dtype, ``(count, V)``, on the model's device.
        """
        return self.logits_of(ids[None], count)[0]

    def logits_of(self, ids: NDArray[Any], count: int, keep: NDArray[Any] | None = None) -> Tensor:
        """Logits at the last `count` positions of several sequences.

        Parameters
        ----------
        ids : ndarray
            int64, ``(sequences, tokens)``.
        count : int
            Positions, counted from the end of the longest sequence.
        keep : ndarray, optional
            int64, ``(sequences, tokens)``: 0 for padding, which comes last; nothing is padding by default.

        Returns
        -------
        Tensor
            float32 or the model's dtype, ``(sequences, count, V)``, on the model's device.
        """
        import torch

        # The head is the largest matrix of small models: it computes only what is scored.
        more: dict[str, Any] = {"logits_to_keep": count} if self.keeps else {}
        if keep is not None:
            more["attention_mask"] = torch.from_numpy(keep).to(self.device)
        with torch.inference_mode():
            batch = torch.from_numpy(ids).to(self.device)
            found: Tensor = self.model(input_ids=batch, use_cache=False, **more).logits[:, -count:]
        return found

    def first_nonfinite(self, ids: NDArray[Any]) -> str:
        """Name of the first module whose output holds NaN or infinity; empty if none does."""
        import torch

        found: list[str] = []
        names = {module: name for name, module in self.model.named_modules()}

        def look(module: Any, _: Any, output: Any) -> None:
            tensors = output if isinstance(output, tuple | list) else [output]
            if not found and any(
                isinstance(value, torch.Tensor)
                and value.is_floating_point()
                and not bool(value.isfinite().all())
                for value in tensors
            ):
                found.append(names[module] or type(module).__name__)

        hooks = [module.register_forward_hook(look) for module in names]
        try:
            self.logits(ids, 1)
        finally:
            for hook in hooks:
                hook.remove()
        return found[0] if found else ""
