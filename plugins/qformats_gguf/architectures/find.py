"""Which row of the table a model or a file belongs to."""

from __future__ import annotations

from qformats.errors import UnsupportedModelError
from qformats_gguf.architectures import multimodal
from qformats_gguf.architectures.limits import Config
from qformats_gguf.architectures.models import HFModel
from qformats_gguf.architectures.numbers import metadata_number
from qformats_gguf.architectures.rows import ROWS
from qformats_gguf.architectures.schema import Row
from qformats_gguf.metadata import Metadata

__all__ = ["around", "find", "row_of", "supported_models"]


_ELSEWHERE = "formats that stay in a Hugging Face folder, such as gptq or bitsandbytes, need no architecture"


def supported_models() -> dict[str, tuple[str, ...]]:
    """Hugging Face model types of each GGUF architecture."""
    found: dict[str, tuple[str, ...]] = {}
    for row in (row for row in ROWS.values() if row.only != "read"):
        found[row.arch] = found.get(row.arch, ()) + tuple(model.model_type for model in row.models)
    return found


def around(config: Config, source: str) -> list[tuple[Row, HFModel]]:
    """Rows of the language model in a folder that holds a vision model too; none for other folders."""
    outer, given = config.get("model_type"), config.get("architectures")
    found = [
        (row, m) for row in ROWS.values() for m in row.models if isinstance(outer, str) and outer in m.within
    ]
    if not found:
        return []
    cls = found[0][1].within[str(outer)]
    if isinstance(given, list) and given and cls not in given:
        raise UnsupportedModelError(f"{source}: architectures", given[0], (cls,), _ELSEWHERE)
    inner = multimodal.text_type(config)
    named = [(row, m) for row, m in found if inner == m.model_type or (inner is None and len(found) == 1)]
    if not named:
        types = [model.model_type for _, model in found]
        raise UnsupportedModelError(f"{source}: text_config.model_type", inner, types, _ELSEWHERE)
    return named


def find(
    config: Config, override: str | None, source: str, among: list[tuple[Row, HFModel]]
) -> tuple[Row, HFModel, bool]:
    """Row and model of a configuration, and whether the configuration itself says so.

    The model's own type decides. Another type's tensors may well have the same names and shapes, but its code
    computes something else with them.
    """
    archs = list(dict.fromkeys(row.arch for row in ROWS.values()))
    if override is not None and override not in archs:
        raise UnsupportedModelError("--arch", override, archs)
    model_type, given = config.get("model_type"), config.get("architectures")
    classes = [str(name) for name in given] if isinstance(given, list) else []
    known = among or [(row, model) for row in ROWS.values() if row.only != "read" for model in row.models]
    if model_type is not None:
        found = [(row, model) for row, model in known if model.model_type == model_type]
        if found and classes and not any(set(classes) & set(model.architectures) for _, model in found):
            supported = [name for _, model in found for name in model.architectures]
            raise UnsupportedModelError(f"{source}: architectures", classes[0], supported, _ELSEWHERE)
    else:
        found = [(row, model) for row, model in known if set(classes) & set(model.architectures)]
    if not found and model_type is None and not classes and override is not None:
        rows = (row for row, _ in known if row.arch == override and not row.tells)
        row = min(rows, key=lambda row: bool(row.only))
        return row, row.models[0], False
    if not found:
        types = dict.fromkeys(model.model_type for _, model in known)
        hint = _ELSEWHERE
        if isinstance(model_type, str) and model_type in archs:
            # Its name is like the model's type, but --arch with it would write a file that computes something else.
            own = " and ".join(supported_models()[model_type])
            hint = (
                f"GGUF's architecture {model_type} is that of models of type {own}, not of this one; {hint}"
            )
        raise UnsupportedModelError(f"{source}: model_type", model_type or classes or None, types, hint)
    if override is None:
        return *found[0], True
    chosen = [(row, model) for row, model in found if row.arch == override]
    if not chosen:
        type_ = found[0][1].model_type
        hint = f"{source} describes a model of type {type_}, and another architecture computes something else"
        raise UnsupportedModelError("--arch", override, (row.arch for row, _ in found), hint)
    return *chosen[0], True


def row_of(arch: object, metadata: Metadata, source: str) -> Row:
    """Row of a file: the one whose keys it has, where an architecture has several."""
    rows = [row for row in ROWS.values() if row.arch == arch and row.only != "write"]
    if not rows:
        raise UnsupportedModelError(f"{source}: general.architecture", arch, supported_models())
    told = (row for row in rows if row.tells and _tells(row, metadata, source))
    return next(told, None) or next(r for r in rows if not r.tells)


def _tells(row: Row, metadata: Metadata, source: str) -> bool:
    key, _, wanted = row.tells.partition(" = ")
    number = metadata_number(metadata, f"{row.arch}.{key}", source, zero=True)
    return number == int(wanted) if wanted else bool(number)
