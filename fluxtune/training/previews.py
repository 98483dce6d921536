"""Previews: the same prompts and seeds again and again, so that learning shows. They equal ``fluxtune sample``."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import Any

from fluxtune import files
from fluxtune.config.schema import Config
from fluxtune.errors import ExitCode
from fluxtune.events import Phase, Preview, Sink
from fluxtune.flux.base import Base
from fluxtune.flux.denoise import Request, generate, looking_ahead
from fluxtune.flux.families import Text
from fluxtune.flux.load import free_memory, image_pipeline, load_vae
from fluxtune.runs import Run
from fluxtune.training.examples import Prepared


def preview_requests(config: Config, base: Base, prompts: list[str]) -> list[tuple[int, Request]]:
    """Every prompt with every seed, each with the number of its prompt."""
    previews = config.previews
    side = config.dataset.resolution[0]
    return [
        (
            index,
            Request(
                prompt=prompt,
                width=previews.width or side,
                height=previews.height or side,
                steps=previews.steps or base.sampling_steps,
                guidance=previews.guidance,
                seed=seed,
            ),
        )
        for index, prompt in enumerate(prompts)
        for seed in previews.seeds
    ]


def make_previews(
    run: Run,
    step: int,
    requests: list[tuple[int, Request]],
    base: Base,
    prepared: Prepared,
    transformer: Any,
    vae_tiling: bool,
    should_stop: Callable[[], ExitCode | None],
    on_event: Sink,
) -> None:
    """Make the previews of one step; the VAE is in memory only meanwhile.

    Args:
        vae_tiling: as ``memory.vae_tiling``.
        should_stop: asked after every denoising step; an exit code ends the previews where they are.
    """
    on_event(Phase("previews", f"{len(requests)} pictures at step {step}"))
    # What the steps left free is in pieces that fit steps.
    free_memory()
    device, dtype = transformer.device, transformer.dtype
    pipeline = image_pipeline(base, transformer, load_vae(base, dtype, str(device), vae_tiling))

    def text_of(prompt: str) -> Text:
        return {name: tensor.to(device) for name, tensor in prepared.text(prompt).items()}

    def stop_if_asked() -> None:
        if should_stop() is not None:
            raise _StopAsked

    transformer.eval()
    try:
        with closing(looking_ahead(base, pipeline, [request for _, request in requests], text_of)) as ahead:
            for (index, _), request in zip(requests, ahead, strict=True):
                picture = generate(base, pipeline, text_of(request.prompt), request, stop_if_asked)
                path = run.preview_path(step, index, request.seed)
                files.write_with(path, partial(picture.save, format="PNG"))
                on_event(Preview(step, request.prompt, request.seed, str(path)))
    except _StopAsked:
        pass
    finally:
        transformer.train()
    del pipeline
    free_memory()


class _StopAsked(Exception):
    """Previews that would take minutes are left where a stop is asked for."""
