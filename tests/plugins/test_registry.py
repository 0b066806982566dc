"""Discovery: good plugins work, bad ones are refused by name, and none takes another down.

The plugins lie under ``tests/external`` as modules beside hand-written ``.dist-info`` folders: that is all that
an installation leaves behind.
"""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from qformats.errors import UnknownFormatError
from qformats.registry import SWITCH, Registry

EXTERNAL = Path(__file__).parents[1] / "external"
BUILT_IN = {
    "framework",
    "awq",
    "bitsandbytes",
    "compressed_tensors",
    "eetq",
    "fp8",
    "glm",
    "gguf",
    "gptq",
    "hqq",
    "mlx",
    "modelopt",
    "quanto",
    "torchao",
}

BROKEN = {
    "qformats_broken": ["ModuleNotFoundError", "a_module_that_nobody_has"],
    "qformats_exits": ["SystemExit", "this plugin needs a licence"],
    "qformats_misspelt": [
        "unknown hook 'qformats_register_family'",
        "did you mean qformats_register_families?",
    ],
    "qformats_junk": ["qformats_register_families returned 'junk'", "a list of subclasses of Family"],
    "qformats_nameless": ["class Nameless has no name", "set name = '...'"],
    "qformats_impostor": [
        "plugin name 'gguf' is taken by plugin 'gguf' of qformats ",
        "plugin 'gguf' of qformats-impostor 1.0 claims it too",
    ],
    "qformats_takes_format": [
        "format name 'gguf:q4_0' is taken by plugin 'gguf' of qformats ",
        "plugin 'qformats_takes_format' of qformats-takes-format 1.0 claims it too",
    ],
    "qformats_takes_quantizer": [
        "quantizer name 'rtn' is taken by plugin 'framework' of qformats ",
        "plugin 'qformats_takes_quantizer' of qformats-takes-quantizer 1.0 claims it too",
    ],
    "qformats_takes_loader": [
        "loader name 'huggingface' is taken by plugin 'framework' of qformats ",
        "plugin 'qformats_takes_loader' of qformats-takes-loader 1.0 claims it too",
    ],
}
"""Tree under ``tests/external``, and what its refusal must say."""


@pytest.fixture(autouse=True)
def _only_what_a_test_adds(monkeypatch):
    """Plugins that happen to be installed here are no part of these tests."""
    monkeypatch.delenv(SWITCH, raising=False)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if hasattr(sys.modules[name], "__file__") and str(EXTERNAL) in str(sys.modules[name].__file__):
            del sys.modules[name]


@pytest.fixture
def discover(monkeypatch):
    """Build a registry as it would be with these trees installed; give it and what was refused."""

    def build(*trees):
        for tree in trees:
            monkeypatch.syspath_prepend(str(EXTERNAL / tree if isinstance(tree, str) else tree))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = Registry()
        return found, [f"{record.owner}: {record.error}" for record in found.plugins if record.error]

    return build


def _works(registry):
    """What must work whatever else is installed."""
    assert {p.name for p in registry.plugins if p.error is None} >= BUILT_IN
    assert registry.packer("gguf:q4_0").__class__.__module__ == "qformats_gguf.packers"
    assert registry.packer("dense:f16").spec.name == "dense:f16"
    assert registry.quantizer("rtn").__class__.__module__ == "qformats.builtin.rtn"
    assert registry.loader("huggingface").__class__.__module__ == "qformats.folder"


def test_the_trees_are_all_tested():
    assert {tree.name for tree in EXTERNAL.iterdir()} == {*BROKEN, "qformats_good"}


def test_built_in_plugins_load_without_a_warning(discover):
    registry, found = discover()
    assert found == []
    assert registry.failures == {}
    assert [p.name for p in registry.plugins][: len(BUILT_IN)] == sorted(BUILT_IN)
    _works(registry)


def test_a_good_plugin_brings_all_it_has(discover):
    registry, found = discover("qformats_good")
    assert found == []
    (record,) = (p for p in registry.plugins if p.name == "qformats_good")
    assert (record.distribution, record.version, record.target) == ("qformats-good", "2.5", "qformats_good")
    assert record.error is None
    assert record.formats == ["good:byte"]
    assert record.quantizers == ["good-quantizer"]
    assert record.loaders == ["good-loader"]
    assert record.models == ["good-llama"]
    assert registry.model_for({"model_type": "good-llama"}).name == "good-llama"
    assert registry.model_for({"model_type": "llama"}) is registry.model_for({}) is None
    packer = registry.packer("good")
    assert packer.name == registry.packer("good:byte").name == "good:byte"
    assert packer.name in [p.name for p in registry.formats()]
    assert registry.loader("good-loader").name == "good-loader"
    weight = torch.randn(4, 32, generator=torch.Generator().manual_seed(1))
    for name in ("rtn", "good-quantizer"):
        packed = registry.quantizer(name).encode(weight, packer)
        assert (packer.dequantize(packed) - weight).abs().max() < 0.02
    # A quantizer of one plugin serves the format of another.
    q4 = registry.packer("gguf:q4_0")
    assert (q4.dequantize(registry.quantizer("good-quantizer").encode(weight, q4)) - weight).abs().max() < 0.5
    _works(registry)


@pytest.mark.parametrize("tree", BROKEN)
def test_a_bad_plugin_is_refused_and_the_others_work(discover, tree):
    registry, found = discover(tree, "qformats_good")
    ((label, reason),) = registry.failures.items()
    assert label.startswith("gguf " if tree == "qformats_impostor" else tree)
    assert label.endswith(f"{tree.replace('_', '-')} 1.0")
    for text in BROKEN[tree]:
        assert text in reason
    assert "\n" not in reason
    assert len(found) == 1
    assert f"of {tree.replace('_', '-')} 1.0: {reason}" in found[0]
    assert registry.packer("good:byte").name == "good:byte"
    (record,) = (p for p in registry.plugins if p.error)
    assert record.formats == record.quantizers == record.loaders == record.models == []
    _works(registry)


def test_all_bad_plugins_at_once(discover):
    registry, found = discover(*BROKEN, "qformats_good")
    assert len(registry.failures) == len(found) == len(BROKEN)
    for tree, texts in BROKEN.items():
        (reason,) = (
            r for label, r in registry.failures.items() if label.endswith(f"{tree.replace('_', '-')} 1.0")
        )
        for text in texts:
            assert text in reason
    assert registry.packer("good:byte").name == "good:byte"
    _works(registry)


def test_unknown_names_list_what_failed(discover):
    registry, _ = discover("qformats_broken", "qformats_misspelt")
    for lookup, kind in (
        (registry.packer, "format"),
        (registry.quantizer, "quantizer"),
        (registry.loader, "loader"),
    ):
        with pytest.raises(UnknownFormatError) as caught:
            lookup("broken")
        message = str(caught.value)
        listed = "qformats formats lists all " if kind == "format" else "installed: "
        assert message.startswith(f"no {kind} 'broken'; {listed}")
        assert "failed to load: qformats_broken qformats-broken 1.0 (ModuleNotFoundError" in message
        assert "qformats_misspelt qformats-misspelt 1.0 (unknown hook" in message


def test_an_unknown_variant_lists_those_of_its_family(discover):
    registry, _ = discover("qformats_good")
    with pytest.raises(
        UnknownFormatError, match=r"^no format 'good:bite'. Did you mean 'good:byte'\? Installed: good:byte"
    ):
        registry.packer("good:bite")


@pytest.mark.parametrize(
    ("value", "loaded"),
    [
        ("", set()),
        ("qformats_good", {"qformats_good"}),
        (" qformats_good ,", {"qformats_good"}),
        ("gguf", set()),
        (None, {"qformats_good", "qformats_misspelt"}),
    ],
)
def test_the_switch_chooses_third_parties(discover, monkeypatch, value, loaded):
    if value is not None:
        monkeypatch.setenv(SWITCH, value)
    registry, _ = discover("qformats_good", "qformats_misspelt")
    assert {p.name for p in registry.plugins} == BUILT_IN | loaded
    _works(registry)


def test_the_switch_names_what_is_not_there(discover, monkeypatch):
    monkeypatch.setenv(SWITCH, "qformats_good,qformats_goood")
    registry, _ = discover("qformats_good")
    reason = "QFORMATS_PLUGINS names it, but nothing installed has a plugin of that name"
    assert registry.failures == {"qformats_goood not installed": reason}
    with pytest.raises(
        UnknownFormatError, match=rf"failed to load: qformats_goood not installed \({reason}\)"
    ):
        registry.packer("goood:int7")
    _works(registry)


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("gptq:5bit-1g", "gptq:{2,3,4,8}bit-{columns of a group}g"),
        ("glm:int5", "glm:int{4,8}-tp{scales per row}"),
        ("bitsandbytes:nf5", "bitsandbytes:nf4-bs32 to nf4-bs4096"),
    ],
)
def test_what_a_family_understands_beyond_its_list_is_told(name, pattern):
    with pytest.raises(UnknownFormatError) as caught:
        Registry().packer(name)
    assert any(known.startswith(pattern) for known in caught.value.patterns)
    assert pattern in str(caught.value)


# Trees that differ in a few lines are written where the test runs.


def _tree(folder, name, code, points=None):
    folder.mkdir()
    (folder / f"{name}.py").write_text(code)
    info = folder / f"{name}-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
    lines = [f"{key} = {target}" for key, target in (points or {name: name}).items()]
    (info / "entry_points.txt").write_text("\n".join(["[qformats]", *lines]))
    return folder


HEAD = """
import sys
from qformats import Family, FormatSpec, Loader, ModelClass, Packer, Quantizer, hookimpl


class P(Packer):
    def __init__(self, name):
        self.spec = FormatSpec(*name.split(":"), "", ())


class F(Family):
    name, known, default_variant = "extra", ("x",), "x"

    def variants(self):
        return self.known

    def parse(self, variant):
        if variant not in self.known:
            raise self.unknown(variant)
        return P(f"{self.name}:{variant}")


class Q(Quantizer):
    name = "extra"

    def quantize(self, weight, packer, importance=None):
        return None


class L(Loader):
    name = "extra"

    def detect(self, path):
        return False

    def open(self, path, options):
        return None


class M(ModelClass):
    name = "extra"

    def config_class(self):
        return None

    def model_class(self):
        return None


@hookimpl
def qformats_register_models():
    return [M]


@hookimpl
def qformats_register_quantizers():
    return [Q]


@hookimpl
def qformats_register_loaders():
    return [L]


@hookimpl
def qformats_register_families():
    return [F]
"""

SUBTLE = {
    "no hook at all": ("import qformats\n", "has no hook: mark its functions with @qformats.hookimpl"),
    "syntax": ("def f(:\n", "SyntaxError: invalid syntax"),
    "message of two lines": ("raise ImportError('one\\n two')\n", "ImportError: one two"),
    "hook with another signature": (
        "from qformats import hookimpl\n@hookimpl\ndef qformats_register_families(config):\n    return []\n",
        "config",
    ),
    "no model class": (
        HEAD.replace("return [M]", "return [L]"),
        "expected a list of subclasses of ModelClass",
    ),
    "a model class without a name": (
        HEAD.replace('class M(ModelClass):\n    name = "extra"', "class M(ModelClass):"),
        "class M has no name: set name = '...' in the class body",
    ),
    "a model class that another plugin has": (
        HEAD.replace(
            'class M(ModelClass):\n    name = "extra"', 'class M(ModelClass):\n    name = "glm-130b"'
        ),
        "the model class name 'glm-130b' is taken by plugin 'glm' of qformats",
    ),
    "hook that raises": (
        HEAD.replace("return [Q]", "return 1 / 0"),
        "qformats_register_quantizers raised ZeroDivisionError: division by zero",
    ),
    "class that cannot be made": (
        HEAD + "\nQ.__init__ = lambda self: 1 / 0\n",
        "Q() raised ZeroDivisionError",
    ),
    "entry point that is None": ("nothing = None\n", "has no hook", "nothing"),
    "hook that exits": (
        HEAD.replace("    return [L]", "    sys.exit(3)"),
        "qformats_register_loaders raised SystemExit: 3",
    ),
    "instances instead of classes": (
        HEAD.replace("return [Q]", "return [Q()]"),
        "a list of subclasses of Quantizer",
    ),
    "class of another kind": (HEAD.replace("return [Q]", "return [L]"), "a list of subclasses of Quantizer"),
    "a class instead of a list": (
        HEAD.replace("return [Q]", "return Q"),
        "a list of subclasses of Quantizer",
    ),
    "abstract loader": (
        HEAD + "\ndel L.open; L.__abstractmethods__ = frozenset({'open'})\n",
        "L() raised TypeError",
    ),
    "abstract quantizer": (
        HEAD + "\nQ.__abstractmethods__ = frozenset({'quantize'})\n",
        "Q() raised TypeError",
    ),
    "loader without a name": (HEAD + "\ndel L.name\n", "class L has no name: set name = '...'"),
    "quantizer whose name is no text": (HEAD + "\nQ.name = 5\n", "class Q has no name"),
    "family without a name": (HEAD + "\ndel F.name\n", "class F has no name"),
    "packer without a container": (
        HEAD + "\nP.container = ''\n",
        "the packer of extra:x has no container: set container = '...'",
    ),
    "family without variants": (HEAD + "\nF.known = ()\n", "F.variants() returned (), expected a sequence"),
    "variants in one text": (
        HEAD + "\nF.known = 'x'\n",
        "F.variants() returned 'x', expected a sequence of one name or more",
    ),
    "variants that are no text": (HEAD + "\nF.known = (4,)\n", "F.variants() returned (4,)"),
    "variants that raise": (HEAD + "\nF.variants = lambda self: {}['k']\n", "F.variants() raised KeyError"),
    "default that is unknown": (
        HEAD + "\nF.default_variant = 'y'\n",
        "F.parse('y') raised UnknownFormatError",
    ),
    "parse that raises": (
        HEAD + "\nF.parse = lambda self, variant: {}['k']\n",
        "F.parse('x') raised KeyError: 'k'",
    ),
    "parse that gives nothing": (HEAD + "\nF.parse = lambda self, variant: None\n", "F.parse('x') gave None"),
    "spec under another name": (
        HEAD.replace('P(f"{self.name}:{variant}")', 'P(f"{self.name}:z")'),
        "F.parse('x') gave extra:z, expected a packer of extra:x",
    ),
    "family with a colon": (HEAD + "\nF.name = 'a:b'\n", "F.name is 'a:b'"),
    "the same variant twice": (HEAD + "\nF.known = ('x', 'x')\n", "format name 'extra:x' is taken"),
    "the same class twice": (HEAD.replace("return [Q]", "return [Q, Q]"), "quantizer name 'extra' is taken"),
}


@pytest.mark.parametrize("case", SUBTLE)
def test_subtle_mistakes_are_refused_whole(discover, tmp_path, case, request):
    code, reason, *attribute = SUBTLE[case]
    name = f"subtle_{list(SUBTLE).index(case)}"
    points = {name: ":".join([name, *attribute])}
    registry, found = discover(_tree(tmp_path / "site", name, code, points), "qformats_good")
    request.addfinalizer(lambda: sys.modules.pop(name, None))
    assert list(registry.failures) == [f"{name} {name} 0.1"]
    assert reason in registry.failures[f"{name} {name} 0.1"]
    assert len(found) == 1
    assert "\n" not in found[0]
    # Nothing of it stays, not even what was right.
    assert "extra" not in registry.quantizer_names()
    assert "extra" not in [loader.name for loader in registry.loaders()]
    assert "extra" not in [model.name for model in registry.models()]
    assert not any(name.startswith("extra:") for name in registry.format_names())
    assert [p.name for p in registry.formats()] == registry.format_names()
    assert registry.packer("good:byte").name == "good:byte"
    _works(registry)


def test_the_example_for_subtle_mistakes_is_right_itself(discover, tmp_path, request):
    registry, found = discover(_tree(tmp_path / "site", "subtle", HEAD))
    request.addfinalizer(lambda: sys.modules.pop("subtle", None))
    assert found == []
    assert registry.packer("extra").name == "extra:x"
    assert registry.quantizer("extra").name == registry.loader("extra").name == "extra"


_OWNER = """
import types
import qformats

specs = types.ModuleType("specs")
source = "import qformats\\n@qformats.hookspec\\ndef qformats_zoo_register_animals():\\n    ''"
exec(source, vars(specs))

@qformats.hookimpl
def qformats_register_hooks():
    return [specs]
"""
_USER = """
import qformats

@qformats.hookimpl
def qformats_zoo_register_{what}():
    return ["gnu"]
"""


def test_a_plugin_has_hooks_for_others_whatever_their_order(discover, tmp_path, request):
    trees = [
        _tree(tmp_path / name, name, code)
        for name, code in (("aardvark", _USER.format(what="animals")), ("zoo", _OWNER))
    ]
    registry, found = discover(*trees)
    request.addfinalizer(lambda: [sys.modules.pop(name, None) for name in ("aardvark", "zoo")])
    assert found == []
    (((owner, value)),) = registry.contributions("qformats_zoo_register_animals")
    assert (owner.split()[1], value) == ("'aardvark'", ["gnu"])
    _works(registry)


@pytest.mark.parametrize(
    ("name", "code", "reason"),
    [
        ("misspelt", _USER.format(what="animal"), "did you mean qformats_zoo_register_animals?"),
        ("second", _OWNER, "hook name 'qformats_zoo_register_animals' is taken"),
        ("wrong", _OWNER.replace("[specs]", "specs"), "expected a list of modules"),
        ("empty", _OWNER.replace("[specs]", "[types]"), "did not find any 'qformats' hooks in"),
    ],
)
def test_mistakes_with_hooks_of_plugins_are_named(discover, tmp_path, request, name, code, reason):
    trees = [_tree(tmp_path / each, each, text) for each, text in (("zoo_a", _OWNER), (name, code))]
    request.addfinalizer(lambda: [sys.modules.pop(each, None) for each in ("zoo_a", name)])
    registry, _ = discover(*trees)
    failed = {record.name: record.error for record in registry.plugins if record.error}
    # The one that comes second by name gets no hook that the first has taken.
    (error,) = failed.values()
    assert reason in error
    _works(registry)


def test_ctrl_c_is_the_user_s(discover, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        discover(_tree(tmp_path / "site", "interrupted", "raise KeyboardInterrupt\n"))


def test_a_module_registered_twice_is_refused_once(discover, tmp_path, request):
    points = {"first": "double", "second": "double"}
    registry, found = discover(_tree(tmp_path / "site", "double", HEAD, points))
    request.addfinalizer(lambda: sys.modules.pop("double", None))
    assert len(found) == 1
    assert registry.failures == {
        "second double 0.1": "double is already registered by plugin 'first' of double 0.1"
    }
    assert registry.packer("extra").name == "extra:x"


def test_a_family_can_be_shared_by_plugins(discover, tmp_path, request):
    """A variant belongs to who lists it, even where the family's first plugin would accept the name."""
    code = HEAD + "\nF.name, F.known, F.default_variant = 'gguf', ('q2_0',), 'q2_0'\n"
    registry, found = discover(_tree(tmp_path / "site", "sharing", code))
    request.addfinalizer(lambda: sys.modules.pop("sharing", None))
    assert found == []
    assert registry.packer("gguf:q2_0").__class__.__module__ == "sharing"
    assert registry.packer("gguf").name == "gguf:q8_0"
    assert "gguf:q2_0" in registry.format_names("gguf")
    _works(registry)


# The command line, as a user has it.


def _qformats(*words, trees, **environment):
    path = os.pathsep.join([*(str(EXTERNAL / tree) for tree in trees), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", "from qformats.cli import main; main()", *words],
        env={**os.environ, "PYTHONPATH": path.strip(os.pathsep), "COLUMNS": "200", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_command_line_shows_what_failed():
    trees = ["qformats_exits", "qformats_takes_format", "qformats_good"]
    done = _qformats("plugins", "--json", trees=trees)
    assert done.returncode == 0
    records = {record["name"]: record for record in json.loads(done.stdout)}
    assert set(records) == BUILT_IN | set(trees)
    assert records["qformats_good"]["error"] is None
    assert records["qformats_exits"]["error"] == "SystemExit: this plugin needs a licence"
    assert "gguf:q4_0" in records["gguf"]["formats"]
    assert "'gguf:q4_0' is taken by" in records["qformats_takes_format"]["error"]
    assert done.stderr == ""
    shown = _qformats("plugins", trees=trees)
    assert [line.split()[0] for line in shown.stdout.splitlines() if " failed " in line] == trees[:2]


def test_the_command_line_names_failures_beside_unknown_formats():
    done = _qformats("export", "demo", "--format", "qwerty", "--dry-run", trees=["qformats_broken"])
    assert done.returncode == 2
    assert done.stdout == ""
    (error,) = done.stderr.splitlines()
    assert error.startswith("qformats: no format 'qwerty'; qformats formats lists all ")
    assert ", of the families awq, bitsandbytes, " in error
    assert "failed to load: qformats_broken qformats-broken 1.0 (ModuleNotFoundError" in error


def test_a_broken_plugin_is_not_told_with_every_command():
    trees = ["qformats_broken", "qformats_exits", "qformats_takes_format"]
    for command in (["inspect", "demo"], ["export", "demo", "--format", "gguf", "--dry-run"]):
        done = _qformats(*command, trees=trees)
        assert (done.returncode, done.stderr) == (0, "")


def test_the_command_line_can_leave_third_parties_out():
    done = _qformats("formats", "--json", trees=["qformats_exits", "qformats_good"], QFORMATS_PLUGINS="")
    assert done.returncode == 0
    assert done.stderr == ""
    listed = json.loads(done.stdout)
    assert listed["failed_plugins"] == {}
    assert not [row for row in listed["formats"] if row["name"].startswith("good")]
    done = _qformats("formats", "--json", trees=["qformats_exits", "qformats_good"])
    listed = json.loads(done.stdout)
    assert list(listed["failed_plugins"]) == ["qformats_exits qformats-exits 1.0"]
    assert [row["container"] for row in listed["formats"] if row["name"] == "good:byte"] == ["huggingface"]
