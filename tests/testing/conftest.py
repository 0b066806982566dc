"""Plugins that are installed for the length of a test, without a distribution."""

from importlib.metadata import entry_points
from types import ModuleType

import pytest

from qformats import Family, Loader, Quantizer, hookimpl
from qformats.registry import registry


class Point:
    """An entry point whose module is made on the spot."""

    name, value, dist = "under-test", "testing.broken", None

    def __init__(self, classes):
        self.classes = classes

    def load(self):
        plugin = ModuleType("under_test")
        for kind, base in (("families", Family), ("quantizers", Quantizer), ("loaders", Loader)):
            found = [each for each in self.classes if issubclass(each, base)]
            setattr(plugin, f"qformats_register_{kind}", self.hook(f"qformats_register_{kind}", found))
        return plugin

    @staticmethod
    def hook(name, classes):
        def give():
            return classes

        give.__name__ = name
        return hookimpl(give)


@pytest.fixture
def install(monkeypatch):
    """Register classes in this process, beside what is installed."""

    def add(*classes):
        points = [*entry_points(group="qformats"), Point(classes)]
        monkeypatch.setattr("qformats.registry.entry_points", lambda group: points)
        registry.cache_clear()
        assert not registry().failures
        return registry()

    yield add
    registry.cache_clear()
