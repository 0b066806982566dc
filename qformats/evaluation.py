"""lm-eval's tasks over a model in any format: ``python -m qformats.evaluation run --model qformats ...``.

lm-eval finds no classes of other packages by itself, so that this module is imported first; run as a program it hands
over to lm-eval's own command line. It needs the extra ``qformats[eval]``.
"""

from __future__ import annotations

import sys
from typing import Any, NoReturn

import qformats
from qformats.errors import BackendUnavailableError, QFormatsError
from qformats.folder.readiness import require_class

__all__ = ["QFormatsLM", "main"]

_UNUSABLE = 3
"""Exit code of the program, as of ``qformats``, if a model or a package cannot be used."""


def _give_up(error: QFormatsError) -> NoReturn:
    """End the program with one line instead of a traceback."""
    print(f"qformats: {error}", file=sys.stderr)
    sys.exit(_UNUSABLE)


try:
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM
except ImportError as error:
    # lm-eval by itself lacks what its classes of models import.
    package = (error.name or "").partition(".")[0]
    found = f"{package} is not installed" if isinstance(error, ModuleNotFoundError) else str(error)
    missing = BackendUnavailableError("lm-eval", found, "Install it: pip install 'qformats[eval]'")
    if __name__ == "__main__":
        _give_up(missing)
    raise missing from error


@register_model("qformats")
class QFormatsLM(HFLM):  # type: ignore[misc]
    """A model in any format as lm-eval runs it, with its weights packed.

    Parameters
    ----------
    pretrained : str
        What :func:`qformats.open` takes: file, folder, hub id, or ``demo``.
    format, quantizer : str, optional
        Quantize while loading, as :func:`qformats.load_model` does.
    device : str, optional
        A GPU if there is one.
    dtype : str, optional
        Dtype of computation: ``f32``, ``f16`` or ``bf16``.
    verify : bool
        Compare every byte of a model that qformats has written with its record; by default the sizes and a sample.
    **more
        As for lm-eval's ``hf``: ``batch_size``, ``max_length``, ``add_bos_token`` and others.

    Raises
    ------
    QFormatsError
        If the model cannot be loaded.
    """

    def __init__(
        self,
        pretrained: str,
        *,
        format: str | None = None,
        quantizer: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        verify: bool = False,
        **more: Any,
    ) -> None:
        how: dict[str, Any] = {"format": format, "quantizer": quantizer, "dtype": dtype, "device": device}
        require_class(qformats.open(pretrained), "run")
        model = qformats.load_model(
            pretrained,
            verify=verify,
            **{name: value for name, value in how.items() if value is not None},
        )
        super().__init__(
            pretrained=model, tokenizer=qformats.load_tokenizer(pretrained), device=str(model.device), **more
        )


def main() -> None:
    """lm-eval's command line, which knows this class."""
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except QFormatsError as error:
        _give_up(error)


if __name__ == "__main__":
    main()
