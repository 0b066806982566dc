"""Small models in many formats, each exported once."""

from pathlib import Path

import pytest
from models import tiny

import qformats


class Exported:
    """Models and exports of them in one folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def model(self, name: str) -> Path:
        """Folder of a tiny model of plain numbers."""
        path = self.folder / name
        return path if path.exists() else tiny.build(name, path)

    def __call__(self, name: str, format: str, **options) -> Path:
        """The model in a format."""
        suffix = ".gguf" if format.startswith("gguf") else ""
        path = self.folder / f"{name}-{format.replace(':', '-')}{suffix}"
        if not path.exists():
            qformats.export(self.model(name), path, format=format, quantizer="rtn", **options)
        return path

    def dense(self, path: Path) -> Path:
        """What an export holds, as a folder of float32 that Transformers reads by itself."""
        target = path.with_name(f"{path.name}-dense")
        if not target.exists():
            qformats.export(path, target, format="dense:f32")
        return target


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return Exported(tmp_path_factory.mktemp("exported"))
