"""`python -m vecbank info`, and what is said of CUDA: no GPU is needed, as the devices are made up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from vecbank import __main__, _cuda, info

SOUND = _cuda.TensorCores("sound", (0.0, 0.0, 1.48, 2.5), 5.5, "mma16")


class Made:
    """Stands in for the ops library, over devices that are named by what is known of them."""

    found: ClassVar[list[_cuda.TensorCores]] = [
        SOUND,
        SOUND._replace(outcome="unsound", errors=(0.0, 4194304.0, 1.0, 7.25), path="simt"),
        SOUND._replace(outcome="absent", errors=(0.0, 0.0, 0.0, 0.0), path="simt"),
        SOUND._replace(path=None),
    ]

    def tensor_cores(self, device: int) -> _cuda.TensorCores:
        return self.found[device]

    def architectures(self) -> str:
        return "8.0 9.0a"

    _warn = _cuda.Library._warn


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Made:
    library = Made()
    monkeypatch.setattr(_cuda, "module", library)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(Made.found))
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "device", lambda index: torch.inference_mode())  # any context
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"Made-up {index}")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9 - index, 0))
    monkeypatch.setenv("VECBANK_CUDA_PATH", "cublas")
    return library


def test_each_device_has_its_line(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(["info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    said = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines if line.strip().startswith("cuda:")}
    assert said == {
        "cuda:0": "Made-up 0, compute capability 9.0, searches on mma16; "
        "tensor cores passed the self-check: integers and subnormals exact, "
        "sums within 1.48 (bf16) and 2.5 (fp16) of 2^-22 (5.5 allowed)",
        "cuda:1": "Made-up 1, compute capability 8.0, searches on simt; "
        "tensor cores FAILED the self-check: integers and subnormals off by 0 and 4.19e+06, "
        "sums within 1 (bf16) and 7.25 (fp16) of 2^-22 (5.5 allowed)",
        "cuda:2": "Made-up 2, compute capability 7.0, searches on simt; no tensor cores for bf16",
        "cuda:3": f"Made-up 3, compute capability 6.0; {SOUND}; VECBANK_CUDA_PATH=cublas names no path",
    }
    assert any("kernels for 8.0 9.0a; " in line and "; VECBANK_CUDA_PATH=cublas" in line for line in lines)
    assert __main__.main(["info", "--json"]) == 0
    cuda = json.loads(capsys.readouterr().out)["cuda"]
    assert cuda["in_this_build"] and cuda["path_override"] == "cublas" and cuda["project_override"] is None
    devices = cuda["devices"]
    assert [d["path"] for d in devices] == ["mma16", "simt", "simt", None]
    assert devices[0]["tensor_cores"] == str(SOUND)


def test_devices_without_kernels_are_named(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cuda, "module", None)
    monkeypatch.setattr(_cuda, "reason", "nvcc was not there")
    said = info.render(info.collect()) + "\n"
    assert "Made-up 1, compute capability 8.0\n" in said and "no kernels: nvcc was not there;" in said


def test_no_variable_is_blamed_that_is_not_set(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VECBANK_CUDA_PATH")
    assert "names no path" not in info.render(info.collect())


def test_an_unsound_device_is_warned_of(made: Made) -> None:
    with pytest.warns(UserWarning, match=r"cuda:1: tensor cores FAILED .* the float32 screen"):
        made._warn(1)


def test_what_could_not_be_checked_says_why() -> None:
    assert str(SOUND._replace(outcome="unsound", problem="no kernel")) == "tensor cores could not be checked: no kernel"
    assert "a graph is being captured" in str(SOUND._replace(outcome="unchecked"))


def test_one_line_without_devices() -> None:
    if not torch.cuda.is_available():
        assert "devices: none" in info.render(info.collect())


def test_what_cannot_be_loaded_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As `load` does where torch has CUDA: missing, broken, and a library of another version."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(_cuda, "module", None)
    monkeypatch.setattr(_cuda, "reason", None)
    monkeypatch.delenv("VECBANK_CUDA", raising=False)
    monkeypatch.setattr(_cuda, "LIBRARY", tmp_path / "_C_cuda.so")
    assert not _cuda.load() and "no CUDA kernels" in str(_cuda.reason)
    _cuda.LIBRARY.write_bytes(b"no library")
    assert not _cuda.load() and "_C_cuda.so" in str(_cuda.reason)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.warns(UserWarning, match="CUDA tensors are not supported here: .*_C_cuda.so"):
        _cuda.load()
