import pytest
import torch

from experiment.devices import resolve_device
from experiment.errors import UserError


def pretend(monkeypatch, num_cuda_devices: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: num_cuda_devices > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_cuda_devices)


@pytest.mark.parametrize(
    ("name", "gpu_index", "expected"),
    [
        ("auto", 0, "cuda"),
        ("cpu", 0, "cpu"),
        ("cuda", 0, "cuda"),
        ("cuda:1", 0, "cuda:1"),
        ("gpu", 1, "cuda:1"),
    ],
)
def test_names_with_two_gpus(monkeypatch, name, gpu_index, expected):
    pretend(monkeypatch, 2)
    assert resolve_device(name, gpu_index) == torch.device(expected)


def test_auto_without_gpu_is_the_cpu(monkeypatch):
    pretend(monkeypatch, 0)
    assert resolve_device("auto") == torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "gpu"])
def test_cuda_that_is_absent_is_an_error(monkeypatch, name):
    pretend(monkeypatch, 0)
    with pytest.raises(UserError, match=r"--device cuda.*: CUDA is not available"):
        resolve_device(name)


def test_a_gpu_beyond_those_present_is_an_error(monkeypatch):
    pretend(monkeypatch, 2)
    with pytest.raises(UserError, match="--device cuda:2: only 2 CUDA devices"):
        resolve_device("gpu", 2)


@pytest.mark.parametrize("name", ["", "tpu", "cuda:", "cuda:x", "cpu:0", "CPU", "0", "cuda:²"])
def test_unknown_names_are_errors(name):
    with pytest.raises(UserError, match="none of auto, cpu, gpu, cuda, cuda:N"):
        resolve_device(name)
