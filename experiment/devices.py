"""Choice of the compute device."""

import re

import torch

from experiment.errors import UserError
from experiment.memory import keep_freed_memory


def resolve_device(name: str, gpu_index: int = 0) -> torch.device:
    """Turn `auto`, `cpu`, `cuda`, `cuda:N` or the reference's `gpu` into a torch device.

    `gpu` means `cuda:<gpu_index>`, and like every other CUDA name it is an error, not a silent
    fallback, where CUDA is absent. Where the CPU is to compute, the process keeps the memory that
    it frees from here on.
    """
    device = _named_device(name, gpu_index)
    if device.type == "cpu":
        keep_freed_memory()
    return device


def _named_device(name: str, gpu_index: int) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "gpu":
        name = f"cuda:{gpu_index}"
    if not re.fullmatch(r"cpu|cuda(:[0-9]+)?", name):
        raise UserError(f"--device: {name!r} is none of auto, cpu, gpu, cuda, cuda:N")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device {name}: CUDA is not available here; use --device cpu or auto")
    device = torch.device(name)
    if device.index is not None and device.index >= torch.cuda.device_count():
        raise UserError(
            f"--device {name}: only {torch.cuda.device_count()} CUDA devices are present"
        )
    return device
