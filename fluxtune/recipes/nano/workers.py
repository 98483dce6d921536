"""Data parallel training on one machine's cores: one process a core, which a busy neighbour stalls least."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import Tensor


def in_processes(count: int, function: Callable[..., None], *arguments: Any) -> None:
    """Calls the function in `count` processes of one thread each; it uses what is below."""
    meeting = Path(mkdtemp()) / "meeting"
    multiprocessing.spawn(_worker, (count, str(meeting), function, arguments), nprocs=count)


def _worker(index: int, count: int, meeting: str, function: Callable[..., None], arguments: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=index, world_size=count)
    function(*arguments)
    dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def wait_for_all() -> None:
    """Returns when every process has come here."""
    first_says(0.0)


def sum_(tensors: Iterable[Tensor]) -> None:
    """Replaces the tensors by their sums over all processes, in one exchange."""
    tensors = list(tensors)
    if world() > 1:
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        parts = flat.split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replaces every gradient by its mean over all processes."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    sum_(gradients)
    torch._foreach_div_(gradients, world())


def first_says(value: float) -> float:
    """The value that the first process has."""
    said = torch.tensor(value if rank() == 0 else 0.0, dtype=torch.float64)
    sum_([said])
    return said.item()
