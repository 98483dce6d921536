"""`fluxtune export inspect`: what a LoRA file is."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fluxtune.cli.export.options import TrainedOn, open_named
from fluxtune.cli.options import Json
from fluxtune.cli.render import printable, sink, write_line
from fluxtune.environment.device import quiet_libraries
from fluxtune.events import Result
from fluxtune.runs import lora_in

if TYPE_CHECKING:
    from fluxtune.exporting.inspection import Inspection

_BARS = " ▁▂▃▄▅▆▇█"
_LONGEST = 200


def inspect(
    lora: Annotated[
        Path, typer.Argument(metavar="LORA", help="A LoRA file of any trainer, or a run folder.", show_default=False)
    ],
    base: TrainedOn = None,
    as_json: Json = False,
) -> None:
    """Show what a LoRA file is: format, ranks, alphas, how much it changes each block, hashes, and its header.

    \b
    Examples:
      fluxtune export inspect zorvex.safetensors
      fluxtune export inspect runs/zorvex --json
      fluxtune export inspect dora.safetensors --base black-forest-labs/FLUX.1-dev
    """
    source = lora_in(lora)
    with sink(as_json) as on_event:
        quiet_libraries()
        from fluxtune.exporting.inspection import as_data
        from fluxtune.exporting.inspection import inspect as look

        found = look(source, open_model=partial(open_named, base, on_event) if base else None)
        if as_json:
            on_event(Result("export inspect", as_data(found)))
            return
    for line in _lines(found):
        write_line(sys.stdout, printable(line))


def _lines(found: Inspection) -> Iterator[str]:
    yield f"{found.file}"
    kinds = ", ".join(f"{number} {kind}" for kind, number in found.kinds.items())
    dtypes = ", ".join(f"{name}" for name in found.dtypes)
    yield f"  format      {found.format}, {kinds} layers, {dtypes}, for {found.family}"
    magnitudes = f", {found.magnitudes:,} of them magnitudes of DoRA" if found.magnitudes else ""
    yield f"  size        {found.bytes / 2**20:.1f} MiB, {found.parameters:,} parameters{magnitudes}"
    if found.trigger:
        yield f"  trigger     {found.trigger}"
    yield f"  SHA-256     {found.hashes['sha256']}"
    yield f"  AutoV2      {found.hashes['autov2']}    AutoV3  {found.hashes['autov3']}"
    header = found.hashes.get("header", "")
    if header and not header.lower().startswith(found.hashes["autov3"].lower()):
        yield f"  header      says {header[:12]} in the place of AutoV3: Forge and others know the file by that"
    yield ""
    width = max(len(group.name) for group in found.groups)
    yield f"  {'layers':<{width}}  number  rank        alpha       change"
    for group in found.groups:
        ranks, alphas = (" ".join(map(str, values)) for values in (group.ranks, group.alphas))
        norm = "?" if group.norm is None else f"{group.norm:.3g}"
        yield f"  {group.name:<{width}}  {group.layers:>6}  {ranks:<10}  {alphas:<10}  {norm}"
    yield ""
    norms = {name: norm for name, norm in found.blocks.items() if norm is not None}
    if len(norms) < len(found.blocks):
        yield "  change: that of a DoRA depends on the weights of the model that it was trained on: --base MODEL"
    for kind in ("double", "single"):
        if bars := _chart({name: norm for name, norm in norms.items() if name.startswith(kind)}):
            yield f"  change by {kind} block  {bars}"
    yield ""
    for key, value in found.metadata.items():
        cut = f"{value[:_LONGEST]}... ({len(value)} characters)" if len(value) > _LONGEST else value
        yield f"  {key}: {cut}"


def _chart(norms: Mapping[str, float]) -> str:
    """A bar for each block, in order; the largest is full."""
    if not norms:
        return ""
    highest, last = max(norms.values()) or 1.0, max(int(name.split()[1]) for name in norms)
    kind = next(iter(norms)).split()[0]
    heights = [norms.get(f"{kind} {number}", 0.0) / highest for number in range(last + 1)]
    return "".join(_BARS[round(height * (len(_BARS) - 1))] for height in heights)
