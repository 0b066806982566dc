"""lm-eval's tasks over a model in any format: ``python -m qformats.evaluation run --model qformats ...``.

lm-eval finds no classes of other packages by itself, so that this module is imported first; run as a program it hands
over to lm-eval's own command line. It needs the extra ``qformats[eval]``.
"""

from __future__ import annotations

from typing import Any

import qformats
from qformats.errors import BackendUnavailableError
from qformats.folder.readiness import require_class

try:
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM
except ImportError as error:
    raise BackendUnavailableError("lm-eval", str(error), "pip install 'qformats[eval]'") from error

__all__ = ["QFormatsLM", "main"]


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
        **more: Any,
    ) -> None:
        how: dict[str, Any] = {"format": format, "quantizer": quantizer, "dtype": dtype, "device": device}
        require_class(qformats.open(pretrained), "run")
        model = qformats.load_model(
            pretrained, **{name: value for name, value in how.items() if value is not None}
        )
        super().__init__(
            pretrained=model, tokenizer=qformats.load_tokenizer(pretrained), device=str(model.device), **more
        )


def main() -> None:
    """lm-eval's command line, which knows this class."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
