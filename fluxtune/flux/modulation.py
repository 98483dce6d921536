"""The modulation (adaLN) layers with their weights off the card: what they answer is computed ahead.

Every block of FLUX turns one vector a sample, made of noise level, guidance and pooled text, into shifts, scales and
gates (arXiv 2212.09748, section 3.2). These layers hold 27 % of FLUX.1-dev's weights for 1.06 million results a sample.
The vectors of coming forward calls are known beforehand. So the weights stay in system memory; they pass over the
device once for many calls, layer by layer, and each call takes its row of results. The products have the operands and
shapes that they would have in the model, and therefore the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from fluxtune.flux.families import Family
from fluxtune.memory.quantize import replace_module

_Key = tuple[torch.dtype, torch.Size, bytes]


def is_modulation(path: str, family: Family) -> bool:
    """Whether the layer ``path`` of the family's transformer is one of its modulation layers."""
    return any(fnmatchcase(path, pattern) for pattern in family.modulation)


def compute_ahead(transformer: Any, family: Family) -> None:
    """Make the modulation layers of a transformer answer with rows computed ahead, in place, before any adapter.

    Their weights and biases are kept where they are, and are no parameters any more: nothing moves or casts them. A
    forward call whose vector was not ``foreseen`` takes them over the bus by itself. While its backward recomputes
    blocks, no other forward call may come between.
    """
    conditioner, layers = transformer.get_submodule(family.conditioner), []
    device = next(conditioner.parameters()).device
    for path, layer in list(transformer.named_modules()):
        if is_modulation(path, family):
            layers.append(RowLinear(layer, device))
            replace_module(transformer, path, layers[-1])
    modulation = transformer.modulation = Modulation(layers)
    conditioner.register_forward_hook(lambda _, __, conditioning: modulation.turn_to(conditioning))


def held_numbers(transformer: nn.Module) -> int:
    """How many modulation weights are computed ahead with, and so are held off the card."""
    layers = [layer for layer in transformer.modules() if isinstance(layer, RowLinear)]
    return sum(held.numel() for layer in layers for held in (layer.held, layer.held_bias) if held is not None)


@contextmanager
def foreseen(transformer: Any, work: Callable[[], object]) -> Iterator[None]:
    """Inside, the modulation of the forward calls that ``work`` makes is there.

    Args:
        work: called once, to learn of its forward calls. None of them comes to its first block, and each answers
            with its own ``hidden_states``. If the modulation is not computed ahead, ``work`` is not called.
    """
    modulation: Modulation | None = getattr(transformer, "modulation", None)
    if modulation is None:
        yield
        return
    added = modulation.add(_conditionings(transformer, modulation, work))
    try:
        yield
    finally:
        modulation.drop(added)


class RowLinear(nn.Linear):
    """A linear layer that answers with the row of the forward call under way.

    Attributes:
        held, held_bias: the weight ``[out, in]`` and the bias, wherever they were; no parameters.
        row: ``[batch, out]``.
    """

    def __init__(self, layer: nn.Linear, device: torch.device) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        self.held = layer.weight.detach()
        self.held_bias = None if layer.bias is None else layer.bias.detach()
        # Empty, it still tells peft and diffusers where the layer computes, and in which precision.
        self.weight = nn.Parameter(torch.empty(0, device=device, dtype=self.held.dtype), requires_grad=False)
        self.row: torch.Tensor | None = None

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The row, whatever ``input`` is; adapters around this layer read that."""
        assert self.row is not None, "the conditioning of this forward call was never computed"
        # An adapter adds its part in place.
        return self.row.clone()

    def products(self, inputs: list[torch.Tensor]) -> Iterator[torch.Tensor]:
        """What the layer answers to each of ``inputs`` (``[batch, in]``, of one precision): the weight is taken to
        them once. The precision is theirs, as under autocast."""
        weight = self.held.to(inputs[0])
        bias = None if self.held_bias is None else self.held_bias.to(inputs[0])
        for each in inputs:
            yield functional.linear(each, weight, bias)


class Modulation:
    """The rows that are known: for each conditioning vector, what all layers answer to it, in system memory.

    They are found by the content of the vector, which costs one short wait for the device each forward call. So they
    are right whatever made it: another guidance, or a LoRA on the embedders.
    """

    def __init__(self, layers: list[RowLinear]) -> None:
        self._layers = layers
        self._width = sum(layer.out_features for layer in layers)
        self._rows: dict[_Key, torch.Tensor] = {}
        self.heard: list[torch.Tensor] | None = None

    def turn_to(self, conditioning: torch.Tensor) -> None:
        """Give every layer its row for a conditioning ``[batch, width]``."""
        if self.heard is not None:
            self.heard.append(conditioning)
            raise _Heard
        if conditioning.requires_grad:
            raise RuntimeError("rows computed ahead carry no gradient to what the conditioning is made of")
        for layer in self._layers:
            layer.row = None
        batch = len(conditioning)
        parts = self._row(conditioning).split([batch * layer.out_features for layer in self._layers])
        for layer, part in zip(self._layers, parts, strict=True):
            layer.row = part.view(batch, -1)

    def add(self, conditionings: list[torch.Tensor]) -> list[_Key]:
        """Compute the rows that are not known yet, in one pass over the weights; returns what was added."""
        wanted = {_key(each): each for each in conditionings}
        new = {key: each for key, each in wanted.items() if key not in self._rows}
        self._rows.update(zip(new, self._compute(list(new.values())), strict=True))
        return list(new)

    def drop(self, keys: list[_Key]) -> None:
        """Forget rows."""
        for key in keys:
            del self._rows[key]

    def _row(self, conditioning: torch.Tensor) -> torch.Tensor:
        if conditioning.is_meta:
            # A simulation: there is no content to find a row by, and the row has none.
            return conditioning.new_empty(len(conditioning) * self._width)
        row = self._rows.get(_key(conditioning))
        if row is None:
            (row,) = self._compute([conditioning])
        return row.to(conditioning.device)

    # Rows that are made for pictures must serve training, too.
    @torch.inference_mode(False)
    @torch.no_grad()
    def _compute(self, conditionings: list[torch.Tensor]) -> list[torch.Tensor]:
        """For each conditioning, one flat tensor of what the layers answer, one after the other."""
        if not conditionings:
            return []
        inputs = [functional.silu(each) for each in conditionings]
        rows = [torch.empty(len(each) * self._width, dtype=each.dtype) for each in inputs]
        done = 0
        # No autocast: the inputs have its precision already.
        with torch.autocast(inputs[0].device.type, enabled=False):
            for layer in self._layers:
                products = torch.cat([each.flatten() for each in layer.products(inputs)]).to("cpu")
                sizes = [len(each) * layer.out_features for each in inputs]
                for row, each, product in zip(rows, inputs, products.split(sizes), strict=True):
                    row[len(each) * done :][: len(product)] = product
                done += layer.out_features
        return rows


class _Heard(Exception):
    """Ends a forward call whose conditioning is known."""


def _conditionings(transformer: Any, modulation: Modulation, work: Callable[[], object]) -> list[torch.Tensor]:
    """The conditioning of each forward call in ``work``, made by the transformer itself."""
    forward = transformer.forward

    def until_heard(*args: Any, **kwargs: Any) -> tuple[torch.Tensor]:
        try:
            forward(*args, **kwargs)
        except _Heard:
            return (kwargs["hidden_states"],)
        raise AssertionError("a forward call without a conditioning")

    heard: list[torch.Tensor] = []
    modulation.heard, transformer.forward = heard, until_heard
    try:
        with torch.no_grad():
            work()
    finally:
        modulation.heard, transformer.forward = None, forward
    return heard


def _key(conditioning: torch.Tensor) -> _Key:
    content = conditioning.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
    return conditioning.dtype, conditioning.shape, content
