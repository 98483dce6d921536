"""Several processes, each with a card, that train one LoRA: every step's micro-batches are dealt out among them.

There is no wrapper around the model. Each process goes forward and back with its micro-batches, weighted as in a run
of one process, then the gradients of all are summed and every process makes the same update. So two processes equal one
with twice the accumulation to the bit; where more than two gradients are added, the order of the sum differs, and with
it the last bits.

The main process prepares, writes and speaks. What it knows goes to the others once, when everything is in the caches;
until then they wait, however long that takes. A process that fails says so in the store that all of them share; one
that is killed breaks its connections. Both ways the others notice where they wait.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as distributed

from fluxtune.config.schema import Config
from fluxtune.environment.device import takes_cards
from fluxtune.environment.launch import Place, place, started_alone
from fluxtune.errors import ExitCode, FluxtuneError, ProcessError, Stopped, UsageError
from fluxtune.events import Error, Phase, Sink, Warning

_TO_MEET = timedelta(minutes=10)
"""Within this all processes have to be there: they only have to import their libraries first."""
_TO_WAIT = timedelta(days=365)
"""For the main process to prepare; that it is gone is noticed anyway."""
_FAREWELL = 600.0
"""Seconds for which a process that failed stays, so that its launcher leaves the main one time to save."""
_SHORTEST, _LONGEST = 0.0002, 0.05
_HERE, _FAILURE, _END = "here", "failure", "end"
_STOPS = (ExitCode.STOPPED_EARLY, ExitCode.INTERRUPTED, ExitCode.TERMINATED)
_MOST_MICRO_BATCHES = 4096


class Told(Exception):
    """Another process failed or was killed, and the main process answers for it."""


class Processes:
    """This process among those of its run; ``ALONE`` where there are no others.

    Attributes:
        free: bytes that are free on the fullest card; None without cards, or alone.
    """

    def __init__(self, where: Place, store: Any = None, free: int | None = None) -> None:
        self.index, self.number = where.index, where.number
        self.is_main = where.is_main
        self.free = free
        self._store = store

    def part_of(self, micro_steps: range) -> range:
        """Those of a step's micro-steps that this process takes: every n-th."""
        return micro_steps[self.index :: self.number]

    def hand_out(self, value: Any = None) -> Any:
        """What the main process gives, in every process: a JSON value, since what is sent must not be able to run code.

        Raises:
            ProcessError, Stopped, Told: another process failed or was killed meanwhile.
        """
        if self.number == 1:
            return value
        self.wait()
        content = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8) if self.is_main else None
        size = torch.tensor([0 if content is None else len(content)])
        self._finish(distributed.broadcast(size, 0, async_op=True))
        content = torch.empty(int(size), dtype=torch.uint8) if content is None else content
        self._finish(distributed.broadcast(content, 0, async_op=True))
        return json.loads(content.numpy().tobytes())

    def wait(self) -> None:
        """Until every process is here."""
        if self.number > 1:
            self._finish(distributed.barrier(async_op=True))

    def together(self, should_stop: Callable[[], ExitCode | None]) -> Callable[[], ExitCode | None]:
        """``should_stop`` of all processes: what one is asked for, all of them do, at the same step."""
        if self.number == 1:
            return should_stop

        def asked() -> ExitCode | None:
            code = torch.tensor([int(should_stop() or 0)])
            self._finish(distributed.all_reduce(code, distributed.ReduceOp.MAX, async_op=True))
            return ExitCode(int(code)) if code else None  # type: ignore[call-arg]

        return asked

    def all_losses(self, own: Sequence[torch.Tensor], micro_steps: int) -> torch.Tensor:
        """The losses of all micro-steps of a step, in their order, from those of ``part_of``."""
        if self.number == 1:
            return torch.stack(list(own))
        losses = torch.zeros(micro_steps)
        if own:
            losses[self.index :: self.number] = torch.stack(list(own)).float().cpu()
        self._finish(distributed.all_reduce(losses, async_op=True))
        return losses

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Adds up the gradients of all processes, in place; a parameter that has one in none of them stays without."""
        if self.number == 1:
            return
        present = torch.tensor([each.grad is not None for each in parameters], device=parameters[0].device)
        gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]
        flat = torch.cat([*(gradient.flatten() for gradient in gradients), present.float()])
        self._finish(distributed.all_reduce(flat, async_op=True))
        *sums, present = flat.split([*(each.numel() for each in parameters), len(parameters)])
        for parameter, gradient, total, found in zip(parameters, gradients, sums, present.tolist(), strict=True):
            if found:
                parameter.grad = gradient.copy_(total.view_as(gradient))

    def tell(self, error: BaseException) -> None:
        """Says to the others why this process ends; the first failure counts."""
        if not isinstance(error, Told):
            known = error if isinstance(error, FluxtuneError) else _unforeseen(error)
            record = {"process": self.index, **asdict(Error.of(known))}
            with suppress(RuntimeError):
                self._store.compare_set(_FAILURE, "", json.dumps(record))

    def end(self) -> None:
        """The main process has nothing more to do; the others wait for that, while it lives."""
        with suppress(RuntimeError):
            if self.is_main:
                self._store.set(_END, "")
                return
            until = time.monotonic() + _FAREWELL
            while not self._store.check([_END]) and time.monotonic() < until:
                time.sleep(_LONGEST)

    def _finish(self, work: Any) -> None:
        """Waits for the others in a way that a signal interrupts, and the failure of another process ends."""
        pause = _SHORTEST
        try:
            while not work.is_completed():
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST)
                if pause == _LONGEST:
                    self._hear()
            work.wait()
        except RuntimeError as error:  # of the connection, or of the store where the process that held it is gone
            raise self._loss() from error

    def _hear(self) -> None:
        """Raises what another process failed with."""
        if not self._store.check([_FAILURE]):
            return
        record = json.loads(self._store.get(_FAILURE))
        if not self.is_main:
            raise Told
        code = ExitCode(record["code"])  # type: ignore[call-arg]
        what = f"process {record['process'] + 1} of {self.number}"
        if code in _STOPS:
            raise Stopped(f"{what} was stopped", code)
        message = f"{what} failed: {record['message']}"
        raise ProcessError(message, code, where=record["where"], hint=record["hint"])

    def _loss(self) -> Exception:
        """What to say of a connection that broke."""
        for _ in range(20):
            with suppress(RuntimeError):
                self._hear()
            time.sleep(_LONGEST)
        if not self.is_main:
            return Told()
        return Stopped("another process of this run was killed, or its machine lost", ExitCode.TERMINATED)


ALONE = Processes(Place())


@contextmanager
def joined() -> Iterator[Processes]:
    """This process and those that were started with it. Where this one fails inside, the others are told.

    Raises:
        UsageError: they do not come.
    """
    where = place()
    if where.number == 1:
        yield ALONE
        return
    processes = _met(where)
    try:
        yield processes
    except BaseException as error:
        processes.tell(error)
        raise
    finally:
        processes.end()
        distributed.destroy_process_group()


def dealt(config: Config, number: int) -> tuple[Config, dict[str, str]]:
    """The settings of a new run of so many processes, each with ``training.accumulation`` micro-batches a step.

    Returns:
        The settings of the run, whose accumulation is that of all processes, and the origins of what changed.

    Raises:
        UsageError: those are more micro-batches than a step may have.
    """
    if number == 1:
        return config, {}
    accumulation = config.training.accumulation * number
    if accumulation > _MOST_MICRO_BATCHES:
        raise UsageError(
            f"{number} processes with {config.training.accumulation} micro-batches each are {accumulation} a step",
            where="training.accumulation",
            hint=f"together they may have {_MOST_MICRO_BATCHES}",
        )
    training = config.training.model_copy(update={"accumulation": accumulation})
    return config.model_copy(update={"training": training}), {"training.accumulation": f"{number} processes"}


def tell_shares(config: Config, number: int, on_event: Sink) -> None:
    """Report how a step's micro-batches go to so many processes."""
    accumulation = config.training.accumulation
    if started_alone():
        on_event(
            Warning(
                "accelerate was asked for several processes and started one: it does not start more for --cpu",
                hint="accelerate launch --multi_gpu --num_processes 2 ... with --set training.device=cpu; or torchrun",
            )
        )
    if number == 1:
        return
    on_event(Phase("processes", f"{number}, which share the {accumulation} micro-batches of a step"))
    if number > accumulation:
        on_event(
            Warning(
                f"{number - accumulation} of {number} processes have nothing to do: a step of this run has "
                f"{accumulation} micro-batches",
                where="training.accumulation",
                hint=f"go on with {accumulation} processes",
            )
        )


def _met(where: Place) -> Processes:
    """All processes, once they are there."""
    cards = takes_cards()
    backend = "cpu:gloo,cuda:nccl" if cards and distributed.is_nccl_available() else "gloo"
    try:
        store, *_ = next(distributed.rendezvous("env://", where.index, where.number, timeout=_TO_MEET))
        _await_all(store, where.number)
        distributed.init_process_group(
            backend, store=store, rank=where.index, world_size=where.number, timeout=_TO_WAIT
        )
    except (RuntimeError, ValueError, TimeoutError) as error:
        raise UsageError(
            f"the {where.number} processes of this run do not find each other: {error}",
            hint="start them together, with `accelerate launch` or `torchrun`",
        ) from error
    return Processes(where, store, _free_on_all(where) if cards else None)


def _await_all(store: Any, number: int) -> None:
    """Until all are there: beside this torch waits, too, but no signal reaches it then."""
    until = time.monotonic() + _TO_MEET.total_seconds()
    store.add(_HERE, 1)
    while store.add(_HERE, 0) < number:
        if time.monotonic() > until:
            raise TimeoutError("one did not come in time")
        time.sleep(_LONGEST)


def _free_on_all(where: Place) -> int:
    """Bytes that are free on the fullest card, without what the connection between the cards takes."""
    torch.cuda.set_device(where.local)
    distributed.all_reduce(torch.zeros(1, device="cuda"))
    torch.cuda.synchronize()
    free = torch.tensor([torch.cuda.mem_get_info()[0]])
    distributed.all_reduce(free, distributed.ReduceOp.MIN)
    return int(free)


def _unforeseen(error: BaseException) -> FluxtuneError:
    return FluxtuneError(f"unexpected {type(error).__name__}: {error}")
