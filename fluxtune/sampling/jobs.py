"""Which pictures are made together, and in which order: LoRAs change as rarely as can be."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from fluxtune.flux.denoise import Request
from fluxtune.lora.use import LoraUse
from fluxtune.sampling.wanted import Place, Wanted


@dataclass(frozen=True)
class Job:
    """One batch.

    Attributes:
        requests: of all its pictures.
        kept: of each picture that is wanted of it, its number among all, and its place in the batch.
    """

    requests: tuple[Request, ...]
    kept: tuple[tuple[int, Place], ...]


def jobs_of(
    pictures: Sequence[Wanted], requests: Sequence[Request], batch_size: int
) -> dict[tuple[LoraUse, ...], list[Job]]:
    """The batches of all pictures, by the LoRAs that act on them.

    A picture that has a place in a batch of its own is made there again, among copies of itself.
    """
    alike: dict[tuple[LoraUse, ...], dict[Request, list[int]]] = defaultdict(lambda: defaultdict(list))
    jobs: dict[tuple[LoraUse, ...], list[Job]] = defaultdict(list)
    for number, (wanted, request) in enumerate(zip(pictures, requests, strict=True)):
        if wanted.place is not None:
            jobs[wanted.loras].append(Job((request,) * wanted.place.size, ((number, wanted.place),)))
        else:
            alike[wanted.loras][replace(request, prompt="", seed=0)].append(number)
    for loras, groups in alike.items():
        batches = [batch for numbers in groups.values() for batch in _batches(numbers, batch_size)]
        for batch in sorted(batches):
            kept = tuple((number, Place(len(batch), index)) for index, number in enumerate(batch))
            jobs[loras].append(Job(tuple(requests[number] for number in batch), kept))
    return dict(jobs)


def _batches(numbers: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(numbers), size):
        yield numbers[start : start + size]
