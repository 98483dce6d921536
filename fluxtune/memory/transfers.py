"""Copies between a device and system memory that run beside the device's computing."""

from __future__ import annotations

import weakref
from typing import Any

import torch


class Transfers:
    """One queue of copies, in the order in which they are asked for.

    On CUDA they run on a stream of their own, and system memory is pinned, so that they need no processor. Elsewhere a
    copy is done when it was asked for, and the device may be the processor itself: then only the order is real.

    Args:
        device: where the computing is.
        system: where ``hold`` and ``hold_like`` allocate.

    Attributes:
        uploaded, downloaded: bytes copied to the device and from it so far.
    """

    def __init__(self, device: str | torch.device, system: str = "cpu") -> None:
        self.device = torch.device(device)
        self.system = torch.device(system)
        self.uploaded = self.downloaded = 0
        self._stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None

    def hold(self, size: int) -> torch.Tensor:
        """``size`` bytes of system memory, to be kept long.

        Raises:
            RuntimeError: the system has not as much memory that can be pinned.
        """
        memory = torch.empty(size, dtype=torch.uint8, device=self.system)
        if self._stream is not None:
            # torch's own pinned memory is rounded up to a power of two: up to twice of what a block takes.
            cuda = torch.cuda.cudart()
            torch.cuda.check_error(cuda.cudaHostRegister(memory.data_ptr(), size, 0))
            weakref.finalize(memory, cuda.cudaHostUnregister, memory.data_ptr()).atexit = False
        return memory

    def hold_like(self, tensor: torch.Tensor) -> torch.Tensor:
        """System memory for what is in ``tensor``, for a short time: it is used again once it is dropped."""
        return torch.empty_like(tensor, device=self.system, pin_memory=self._stream is not None)

    def upload(self, target: torch.Tensor, source: torch.Tensor) -> Any:
        """Copies to the device, once everything that it was asked to compute so far is done.

        Returns:
            What ``wait`` takes.
        """
        self.uploaded += source.nbytes
        return self._copy(target, source)

    def download(self, target: torch.Tensor, source: torch.Tensor) -> Any:
        """As ``upload``, the other way; ``source`` may be dropped at once."""
        self.downloaded += source.nbytes
        return self._copy(target, source)

    def wait(self, started: Any) -> None:
        """Whatever the device is asked to compute from now on begins when that copy is done."""
        if started is not None:
            torch.cuda.current_stream(self.device).wait_event(started)

    def _copy(self, target: torch.Tensor, source: torch.Tensor) -> Any:
        with torch.no_grad():
            if self._stream is None:
                target.copy_(source)
                return None
            self._stream.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(self._stream):
                target.copy_(source, non_blocking=True)
                # Whoever drops it meanwhile gives its memory back to those who compute.
                if source.is_cuda:
                    source.record_stream(self._stream)
                return self._stream.record_event()
