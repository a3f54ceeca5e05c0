"""The processes of a run: one, or those that torchrun started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from ttt_docs.errors import UsageError


@dataclass(frozen=True)
class Processes:
    """This process among all of them."""

    rank: int
    count: int
    local_rank: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the one that writes files and speaks."""
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """The mean of `values` over the processes."""
        if self.count == 1:
            return values
        return self.sum(values) / self.count

    def sum(self, values: Tensor) -> Tensor:
        """The sum of `values` over the processes, in every one of them the same bits."""
        if self.count > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            dist.barrier()


@contextmanager
def processes(device: str = "auto") -> Iterator[Processes]:
    """The processes that torchrun started, connected (NCCL between GPUs, gloo between CPUs); or this one alone.

    Raises:
        UsageError: a device that is not there.
    """
    count, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    cuda = torch.cuda.is_available() if device == "auto" else device.startswith("cuda")
    if cuda and not torch.cuda.is_available():
        raise UsageError(f"compute.device={device}: no GPU is visible; use cpu")
    where = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(where)
    if count == 1:
        yield Processes(0, 1, 0, where)
        return
    # One process may tokenize or validate while the others wait.
    dist.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(hours=12))
    try:
        yield Processes(rank, count, local_rank, where)
        dist.barrier()  # the first process writes files at the end: connections are taken down by all at the same time
    finally:
        dist.destroy_process_group()
