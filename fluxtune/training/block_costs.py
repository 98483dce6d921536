"""What each kind of block holds and computes, by what it keeps for the backward: measured on a shallow model.

Blocks of a kind are alike, and what they hold adds up. So one step of a few blocks of each kind, two for each thing
that a block can keep, tells what a step of the whole model takes, without simulating it for every plan.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fluxtune.flux.empty import empty_transformer
from fluxtune.flux.modulation import is_modulation
from fluxtune.memory.allocator import rounded
from fluxtune.memory.kernels import kernels_of_the_device
from fluxtune.memory.ledger import Ledger, Moment
from fluxtune.memory.plan import Choice, Counts, Kind, fastest, need_of
from fluxtune.memory.recompute import Kept
from fluxtune.memory.simulate import DEVICE, give_content
from fluxtune.training.simulation import Work, simulate_training

_STATIC = ("weights", "adapter", "optimizer", "inputs")
"""Categories that are there through the whole step."""
_END: Counts = {"end": 1}
_KEPT: tuple[Kept, ...] = get_args(Kept)
_ELEMENTWISE = 0.07
"""Of a block's products, as operations: what it takes to recompute all else. For a double block of FLUX.1 at 1024 px
some 1.5 GB pass through the card's memory, 2 ms at 800 GB/s; its products are 1.3 TF, 30 ms at 45 TF/s."""


@dataclass(frozen=True)
class BlockCosts:
    """Of a model of any depth.

    Attributes:
        kinds: in the order of the forward, as many blocks as the model has.
        operations: of a forward of one block of each kind.
        static: bytes that are held through the whole step, of the model as deep as it is.
        rest: bytes beside that and the blocks' own, while the backward goes over the blocks.
        end: bytes beside static ones and what all blocks hold, at the end of the forward, at most.
        weights: bytes of the weights of one block of each kind, as they are held on the card.
        modulation: bytes of all modulation weights in the precision of the computation.
    """

    kinds: list[Kind]
    operations: list[int]
    static: int
    rest: int
    end: int
    weights: list[int]
    modulation: int

    def as_record(self) -> dict[str, Any]:
        """As JSON holds it; ``costs_from`` reads it."""
        return asdict(self)

    def peak(self, plan: Sequence[Counts]) -> int:
        """Bytes at the highest moment of the step, foretold by adding up: in the backward, or before it begins."""
        return self.static + self.rest + need_of(self._walk, [*plan, _END])

    def fastest(self, room: int) -> list[Counts] | None:
        """The plan that recomputes least within ``room`` bytes, as ``peak`` foretells; None where none does."""
        plan = fastest(self._walk, room - self.static - self.rest)
        return plan[:-1] if plan is not None else None

    @property
    def _walk(self) -> list[Kind]:
        """The end of the forward counts as one more block, which holds nothing."""
        return [*self.kinds, Kind(1, {"end": Choice(0, max(0, self.end - self.rest), 0)})]


def costs_from(record: dict[str, Any]) -> BlockCosts:
    """What ``as_record`` gave.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: it is no such record.
    """
    kinds = [
        Kind(kind["count"], {kept: Choice(**choice) for kept, choice in kind["choices"].items()}, kind["left"])
        for kind in record["kinds"]
    ]
    return BlockCosts(**{**record, "kinds": kinds})


def block_costs(work: Work) -> BlockCosts:
    """Measures ``work``, whatever its settings say of recomputation and streaming."""
    family = work.base.family
    depths = [work.transformer[key] for key in family.depths]
    seen = _Seen(work)
    kinds, operations = [], []
    for kind, depth in enumerate(depths):
        products, attention = _operations(work, kind)
        again = {"nothing": products, "attention": products - attention}
        choices: dict[str, Choice] = {}
        for kept in _KEPT:
            elementwise = 0 if kept == "everything" else round(_ELEMENTWISE * products)
            choices[kept] = Choice(seen.held(kind, kept), seen.working(kind, kept), again.get(kept, 0) + elementwise)
        kinds.append(Kind(depth, choices, seen.blocks[kind]["adapter"]))
        operations.append(products)
    weights = [each["weights"] for each in seen.blocks]
    return BlockCosts(kinds, operations, seen.static(depths), seen.rest(), seen.end(), weights, seen.modulation(depths))


class _Seen:
    """A step of a few blocks of each kind: two for each thing to keep, in the order of ``_KEPT``. The second of them is
    looked at: what it shares with the block before is then like what others share with theirs."""

    def __init__(self, work: Work) -> None:
        kinds = len(work.base.family.blocks)
        keep = {kept: [2] * kinds for kept in _KEPT if kept != "nothing"}
        kept = work.with_memory(recompute="all", streamed_blocks=0, keep=keep)
        self._depth = 2 * len(_KEPT)
        self._work = replace(kept, depths=(self._depth,) * kinds, preview=None, capacity=None)
        self._marks: dict[tuple[int, int, str], int] = {}
        self.blocks: list[dict[str, int]] = []
        ledger = simulate_training(self._work, self._watch)
        self._moments: list[Moment] = ledger.moments

    def held(self, kind: int, kept: str) -> int:
        """Bytes that a block holds from its forward on."""
        block = 2 * _KEPT.index(kept) + 1
        return self._at(kind, block, "leave").bytes - self._at(kind, block - 1, "leave").bytes

    def working(self, kind: int, kept: str) -> int:
        """Bytes that its backward takes beside what was there when it began."""
        block = 2 * _KEPT.index(kept) + 1
        # Its inputs are keywords, of which no hook tells when their gradients are there: until the one before begins.
        begun, done = self._marks[kind, block, "backward"], self._marks[kind, block - 1, "backward"]
        return max(moment.bytes for moment in self._moments[begun - 1 : done]) - self._moments[begun - 1].bytes

    def static(self, depths: Sequence[int]) -> int:
        """Bytes of the static categories in a model of other depths."""
        alive = self._at(0, 1, "backward").alive
        shallow = {category: alive.get(category, 0) for category in _STATIC}
        per_adapter = shallow["optimizer"] / max(1, shallow["adapter"])
        deeper = sum(
            (depth - self._depth) * (block["weights"] + block["adapter"] * (1 + per_adapter))
            for depth, block in zip(depths, self.blocks, strict=True)
        )
        return round(sum(shallow.values()) + deeper)

    def modulation(self, depths: Sequence[int]) -> int:
        """Bytes of all modulation weights in a model of other depths, in the precision of the computation."""
        family = self._work.base.family
        numbers = 0
        for name, parameter in empty_transformer(family, self._work.transformer).named_parameters():
            if is_modulation(name.rpartition(".")[0], family):
                kind = next((kind for kind, blocks in enumerate(family.blocks) if name.startswith(f"{blocks}.")), None)
                numbers += round(parameter.numel() * (1 if kind is None else depths[kind] / self._depth))
        return numbers * self._work.dtype.itemsize

    def rest(self) -> int:
        """Bytes that are neither static, nor gradients, nor held by a block, while the backward goes over the blocks:
        as it comes to one of the last kind that keeps nothing, behind which all is done."""
        last = len(self.blocks) - 1
        moment = self._at(last, 1, "backward")
        others = sum(moment.alive.get(category, 0) for category in (*_STATIC, "gradients"))
        return moment.bytes - others - self._held_before(last) - 2 * self.held(last, _KEPT[0])

    def end(self) -> int:
        """Bytes beside static ones and what all blocks hold, from the last block on until its backward begins."""
        last = len(self.blocks)
        begun = self._marks[last - 1, self._depth - 2, "leave"]
        done = self._marks[last - 1, self._depth - 1, "backward"]
        highest = max(self._moments[begun:done], key=lambda moment: moment.bytes)
        static = sum(highest.alive.get(category, 0) for category in _STATIC)
        return highest.bytes - static - self._held_before(last)

    def _held_before(self, number: int) -> int:
        """Bytes that the blocks of so many kinds hold. The input of the very first block is not like the others'."""
        held = 0
        for kind in range(number):
            leaves = [self._at(kind, block, "leave").bytes for block in (0, self._depth - 1)]
            held += self.held(kind, _KEPT[0]) + leaves[1] - leaves[0]
        return held

    def _at(self, kind: int, block: int, mark: str) -> Moment:
        return self._moments[self._marks[kind, block, mark] - 1]

    def _watch(self, transformer: Any, ledger: Ledger) -> None:
        for kind, name in enumerate(self._work.base.family.blocks):
            blocks = list(transformer.get_submodule(name).children())
            self.blocks.append(_bytes_of(blocks[1]))
            for index, block in enumerate(blocks):
                self._mark(kind, index, block, ledger)

    def _mark(self, kind: int, index: int, block: nn.Module, ledger: Ledger) -> None:
        def note(mark: str) -> None:
            self._marks.setdefault((kind, index, mark), len(ledger.moments))

        def left(_: nn.Module, __: Any, outputs: Any) -> None:
            note("leave")
            for tensor in outputs:
                if tensor.requires_grad:
                    tensor.register_hook(lambda _: note("backward"))

        block.register_forward_hook(left)


def _bytes_of(block: nn.Module) -> dict[str, int]:
    """Bytes of a block's tensors on the card, by category."""
    found: dict[str, int] = defaultdict(int)
    tensors = {tensor.untyped_storage()._cdata: tensor for tensor in (*block.parameters(), *block.buffers())}
    for tensor in tensors.values():
        found["adapter" if tensor.requires_grad else "weights"] += rounded(tensor.untyped_storage().nbytes())
    return found


def _operations(work: Work, kind: int) -> tuple[int, int]:
    """Operations of a block's forward: in all its products, and in attention alone. Precision does not matter."""
    family, name = work.base.family, work.base.family.blocks[kind]
    shallow = replace(work, depths=(1,) * len(family.blocks))
    transformer = empty_transformer(family, shallow.transformer)
    give_content(transformer, lambda _: torch.bfloat16)
    batch = shallow.config.training.batch_size
    sides = [side // family.side_multiple for side in reversed(shallow.size)]
    text = family.blank_text(shallow.transformer, batch, work.base.text_tokens)
    with (
        kernels_of_the_device(as_cuda=True),
        torch.no_grad(),
        torch.device(DEVICE),
        FlopCounterMode(display=False) as counter,
    ):
        noisy = torch.zeros(batch, shallow.transformer["in_channels"], *sides, dtype=torch.bfloat16)
        text = {key: tensor.to(DEVICE) for key, tensor in text.items()}
        guidance = 1.0 if work.base.embeds_guidance else None
        family.forward(transformer, noisy, torch.zeros(batch), text, guidance)
    counts = counter.get_flop_counts()[f"{type(transformer).__name__}.{name}.0"]
    attention = sum(count for operation, count in counts.items() if "attention" in str(operation))
    return sum(counts.values()), attention
