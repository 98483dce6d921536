"""What a command line says in vain: refused where it was said, for no picture would show it."""

from __future__ import annotations

from collections.abc import Mapping

from fluxtune.errors import UsageError
from fluxtune.sampling.request import SampleRequest

_VARIED = {
    "prompt": ("PROMPT", "--prompts"),
    "negative-prompt": ("sampling.negative_prompt",),
    "seed": ("previews.seeds", "--count"),
    "steps": ("previews.steps",),
    "guidance": ("previews.guidance",),
    "true-guidance": ("sampling.true_guidance",),
    "strength": ("sampling.strength",),
    "size": ("previews.width", "previews.height"),
}
"""By axis what it puts its values in the place of."""


def require_effect(request: SampleRequest, named: Mapping[str, str], others: Mapping[str, object]) -> None:
    """Refuse flags and axes that change nothing, and flags beside the axis that varies the same.

    Args:
        named: settings that the command line gives, and the flag of each.
        others: what else can be given, by its name.

    Raises:
        UsageError: there is such a one.
    """
    given = {**named, **{name: name for name, value in others.items() if value}}
    for axis in request.axes:
        if twice := next((given[key] for key in _VARIED.get(axis.name, ()) if key in given), None):
            raise UsageError(
                f"{twice} would have no effect beside the axis {axis.name}",
                where="--grid",
                hint=f"leave out {twice}, and give all values to the axis",
            )
        if axis.name == "seed" and any(getattr(row, "count", None) for row in request.prompts):
            raise UsageError(
                "count of a prompt would have no effect beside the axis seed",
                where="--grid",
                hint="leave out one of them",
            )
    _require_start(request, given)
    _require_negative_prompt(request, given)
    if "sampling.quality" in given and request.sampling.format == "png":
        raise UsageError(
            "a PNG loses nothing and has no quality", where=given["sampling.quality"], hint="add --format jpeg or webp"
        )


def _require_start(request: SampleRequest, given: Mapping[str, str]) -> None:
    flag = _asks(request, given, "sampling.strength", "strength")
    begun = request.start or any(getattr(each, "start", None) for each in (*request.prompts, *request.again))
    if flag and not begun:
        raise UsageError(
            "strength is how much of a start picture is painted over, and there is none",
            where=flag,
            hint="leave it out" if request.again else "add --start PICTURE",
        )


def _require_negative_prompt(request: SampleRequest, given: Mapping[str, str]) -> None:
    flag = _asks(request, given, "sampling.true_guidance", "true-guidance")
    texts = [getattr(each, "negative_prompt", None) for each in (*request.prompts, *request.again)]
    if not request.again:
        texts.append(request.sampling.negative_prompt)
    led_away = any(text is not None for text in texts) or any(axis.name == "negative-prompt" for axis in request.axes)
    if flag and not led_away:
        raise UsageError(
            "true guidance leads away from a negative prompt, and there is none",
            where=flag,
            hint="add --negative-prompt TEXT",
        )


def _asks(request: SampleRequest, given: Mapping[str, str], key: str, axis: str) -> str | None:
    """The flag or the axis that asks for a setting."""
    return given.get(key) or next((f"--grid {axis}" for each in request.axes if each.name == axis), None)
