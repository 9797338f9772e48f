"""Processes that train one model together, as `torchrun --nproc_per_node=N script.py` starts them.

Everything here does nothing in a process that is alone, so that a trainer has one path for both.
Values meet in rank order; each process then computes the same from the same numbers.
"""

import contextlib
import datetime
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from experiment.errors import USER_ERROR_EXIT_CODE, UserError
from experiment.parent import signal_at_end_of_parent

Result = TypeVar("Result")

TIMEOUT = datetime.timedelta(hours=2)
"""How long a process waits for the others, which may be writing or evaluating."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that work together."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Number of the process on its machine, and so of the GPU that it takes."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes logs and checkpoints."""
        return self.rank == 0

    def share(self, count: int, flag: str) -> range:
        """Which of `count` things are this process's; raises `UserError` for unequal shares."""
        if count % self.size:
            raise UserError(f"{flag} {count}: does not divide among {self.size} processes")
        each = count // self.size
        return range(self.rank * each, (self.rank + 1) * each)

    def own_device(self, device: torch.device) -> torch.device:
        """The device itself; among several processes with GPUs, the GPU of this one."""
        is_shared = self.size > 1 and device.type == "cuda"
        return torch.device("cuda", self.local_rank) if is_shared else device

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum of the tensors of all processes, the same in each."""
        if self.size == 1:
            return tensor
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Make every gradient its sum over processes; an absent one counts as zero.

        Gradients stay where they are in memory: a CUDA graph goes on adding to that place.
        """
        if self.size == 1:
            return
        parameters = list(parameters)
        flat = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        total = self.sum(torch.cat([gradient.flatten() for gradient in flat]))
        parts = total.split([p.numel() for p in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            if parameter.grad is None:
                # In the parameter's memory layout: a fused optimiser takes that for granted.
                parameter.grad = torch.empty_like(parameter)
            parameter.grad.copy_(part.view_as(parameter))

    def concatenate(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """Tensors of one shape, one from each process, put together along `dim`."""
        if self.size == 1:
            return tensor
        tensor = tensor.contiguous()
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor)
        return torch.cat(parts, dim)

    def gather(self, value: Any) -> list[Any]:
        """What each process has, in rank order, in every process; any value pickle takes."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in at least one process."""
        return any(self.gather(flag))

    def from_main(self, make: Callable[[], Result]) -> Result:
        """Let the main process make a value, and hand it to all.

        A `UserError` ends all processes, and is reported by the main one alone.
        """
        if self.size == 1:
            return make()
        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome[0] = make()
            except UserError as error:
                outcome[1] = error
        dist.broadcast_object_list(outcome)
        if outcome[1] is not None:
            raise outcome[1] if self.is_main else SystemExit(USER_ERROR_EXIT_CODE)
        return outcome[0]

    def each(self, make: Callable[[], Result]) -> Result:
        """Let every process make a value of its own.

        A `UserError` in one of them ends all, and is reported once.
        """
        if self.size == 1:
            return make()
        value, error = None, None
        try:
            value = make()
        except UserError as refusal:
            error = refusal
        refused = [rank for rank, failed in enumerate(self.gather(error is not None)) if failed]
        if error is not None and refused[0] == self.rank:
            raise error
        if refused:
            raise SystemExit(USER_ERROR_EXIT_CODE)
        return cast(Result, value)


ALONE = Ranks()
"""The only process there is."""


def launched_ranks() -> Ranks:
    """What torchrun says about this process; `ALONE` where it was not started by torchrun."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return ALONE
    rank, size, local_rank = (int(os.environ[v]) for v in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    return Ranks(rank, size, local_rank)


@contextmanager
def joined(ranks: Ranks, device: torch.device) -> Iterator[Ranks]:
    """Connect the processes: NCCL between GPUs, Gloo between CPUs.

    What is not a tensor travels through Gloo in either case, so that no process waits for its GPU
    only to hear whether it shall stop.
    """
    if ranks.size == 1:
        yield ranks
        return
    # torchrun hands SIGTERM on, but SIGUSR1 or a lack of memory ends it alone: its processes would
    # go on without anyone who knows of them, beside those of the job that is started next.
    signal_at_end_of_parent(signal.SIGTERM)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=TIMEOUT)
    try:
        yield ranks
    finally:
        dist.destroy_process_group()


@contextmanager
def only_main_speaks(ranks: Ranks) -> Iterator[None]:
    """Swallow what the other processes print; errors that end them still show."""
    with contextlib.ExitStack() as stack:
        if not ranks.is_main:
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        yield
