"""``--device`` is judged before torch is imported."""

from __future__ import annotations

import subprocess
from types import SimpleNamespace

import pytest
from cli.command import PROGRAM, call

from qformats.errors import ConfigError
from qformats.work import gpus as devices


@pytest.mark.parametrize("command", ["generate", "compare"])
def test_without_a_gpu(command, monkeypatch, capsys):
    if devices._gpus()[0]:
        pytest.skip("there is a GPU here")
    more = "hello" if command == "generate" else "demo"
    code = (
        f"import sys; sys.argv = ['qformats', '{command}', 'demo', '{more}', '--device', 'cuda']\n"
        "from qformats.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert stop.code == 2, stop\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)\n"
    )
    done = subprocess.run([PROGRAM[0], "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.startswith("qformats: --device: found 'cuda'; expected cpu, since ")
    assert done.stderr.endswith(". Leave out --device to use the CPU.\n")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("device", ["gpu", "cuda0", "cuda:x", "mps", "cpu:1", ""])
def test_names_that_are_no_device(capsys, device):
    result = call(capsys, "generate", "demo", "x", "--device", device)
    assert (result.code, result.out) == (2, "")
    assert f"--device: found {device!r}; expected cpu, cuda, or one of several GPUs" in result.err


class Driver:
    """What CUDA's driver answers, on machines that this one is not."""

    def __init__(self, devices, error=0):
        self.devices, self.error = devices, error

    def cuInit(self, flags):
        return self.error

    def cuDeviceGetCount(self, count):
        count._obj.value = self.devices
        return 0


@pytest.mark.parametrize(
    ("driver", "device", "message"),
    [
        (Driver(2), "cuda:1", None),
        (Driver(2), "cuda", None),
        (Driver(2), "cuda:2", "expected cpu or one of this machine's GPUs: cuda:0, cuda:1"),
        (Driver(0, error=100), "cuda", "the NVIDIA driver finds no GPU that this process may use"),
        (None, "cuda", "this machine has no NVIDIA driver"),
        (None, "cpu", None),
        (None, None, None),
    ],
)
def test_what_the_driver_says(monkeypatch, tmp_path, driver, device, message):
    def load(name):
        if driver is None:
            raise OSError(name)
        return driver

    monkeypatch.setattr(devices, "ctypes", SimpleNamespace(**vars(devices.ctypes) | {"CDLL": load}))
    monkeypatch.setattr(devices, "_AMD", tmp_path / "none")
    if message is None:
        devices.require_device(device)
    else:
        with pytest.raises(ConfigError, match=message):
            devices.require_device(device)
