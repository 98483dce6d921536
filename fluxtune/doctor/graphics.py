"""The driver and the cards."""

from __future__ import annotations

from collections.abc import Iterator

from fluxtune.doctor.mends import NEWEST_DRIVER, in_wsl, install_driver
from fluxtune.environment.card import OLDEST_DRIVERS, Card, Graphics, has_nvidia_hardware
from fluxtune.environment.torch_builds import BUILDS, takes
from fluxtune.events import Finding

FREE_ENOUGH = 0.9
"""Part of a card's memory that should be free: presets are made for cards on which little else runs."""

_RESTART = "restart the machine: sudo reboot"
# What nvidia-smi says -> what helps. Elsewhere than in these cases its own words are the best advice.
_KNOWN_TROUBLE = {
    "version mismatch": f"the driver was updated under the running system; {_RESTART}",
    "couldn't communicate with the NVIDIA driver": "the driver's kernel module is not loaded: {install}",
    "blocked by the operating system": "in Windows: update the NVIDIA driver and run wsl --update, then wsl --shutdown",
    "Unable to determine the device handle": f"the card dropped off the bus; {_RESTART}",
    "No devices were found": "the driver sees no card: check that it sits and is powered, and for a second driver "
    "(sudo dmesg | grep -i nvidia)",
    "Unknown Error": "in a container: start it again; else {restart}",
}


def check_driver(graphics: Graphics, torch_sees_a_card: bool) -> Iterator[Finding]:
    """Whether there is a card with a driver that any torch of ours takes."""
    if graphics.trouble is not None:
        yield Finding("error", "driver", f"nvidia-smi failed: {graphics.trouble}", hint=_mend_of(graphics.trouble))
    elif not graphics.installed and torch_sees_a_card:
        yield Finding("note", "driver", "there is no nvidia-smi here to ask, as in some containers; torch sees a card")
    elif not graphics.installed and has_nvidia_hardware():
        yield Finding("error", "driver", "there is an NVIDIA card, but no driver for it", hint=install_driver())
    elif graphics.foremost is None:
        yield Finding(
            "warning",
            "driver",
            "no NVIDIA card was found: a processor is enough for `--preset nano`, and far too slow for FLUX.1",
            hint=install_driver() if in_wsl() else None,
        )
    elif not any(takes(graphics.cuda, build.cuda) for build in BUILDS):
        oldest = min(OLDEST_DRIVERS[build.cuda[0]] for build in BUILDS if build.cuda)
        yield Finding(
            "error",
            "driver",
            f"the driver {graphics.driver} is too old: {_told(graphics)}, and no torch that fluxtune takes is built "
            f"for that",
            hint=install_driver(oldest),
        )
    else:
        yield Finding("ok", "driver", f"{graphics.driver}: {_told(graphics)}")


def check_cards(graphics: Graphics) -> Iterator[Finding]:
    """What each card is, whether it computes in bfloat16, and whether its memory is free."""
    for card in graphics.cards:
        yield Finding("ok", "card", _described(card))
        if card.capability is not None and card.capability < (8, 0):
            yield Finding(
                "warning",
                "bf16",
                f"{card.name} has no bfloat16 of its own: it works, but training on it is slow",
                hint="a card of the 30 series or newer has it",
            )
        if card.total and card.free is not None and card.free < FREE_ENOUGH * card.total:
            yield Finding(
                "warning",
                "card-memory",
                f"only {card.free:.1f} of {card.total:.1f} GiB of {card.name} are free",
                hint=_holders(graphics),
            )


def _told(graphics: Graphics) -> str:
    return f"it takes CUDA {graphics.cuda[0]}.{graphics.cuda[1]}" if graphics.cuda else "it does not tell its CUDA"


def _described(card: Card) -> str:
    memory = f"{card.total:.1f} GiB" if card.total else "memory shared with the system"
    capability = "unknown" if card.capability is None else f"{card.capability[0]}.{card.capability[1]}"
    return f"{card.name}, {memory}, compute capability {capability}"


def _holders(graphics: Graphics) -> str:
    """Who holds the memory, the largest first; desktops and Windows do not tell all of it."""
    told = sorted(graphics.holders, key=lambda holder: -(holder.held or 0.0))
    if not told:
        return "close other programs that use the card: a desktop, a browser, other models"
    named = [
        f"{holder.name} (process {holder.pid}{f', {holder.held:.1f} GiB' if holder.held else ''})" for holder in told
    ]
    return f"close what you can spare of: {', '.join(named[:6])}"


def _mend_of(trouble: str) -> str:
    for words, mend in _KNOWN_TROUBLE.items():
        if words in trouble:
            return mend.format(install=install_driver(), restart=_RESTART)
    return f"{_RESTART}; if that does not help, install the driver anew ({NEWEST_DRIVER})"
