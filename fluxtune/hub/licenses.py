"""The licences of base models that are known, as cards on the hub name them: they bind what is made of it."""

from __future__ import annotations

from dataclasses import dataclass

from fluxtune.nano import EMBEDDED


@dataclass(frozen=True)
class License:
    """A licence.

    Attributes:
        identifier: the hub's, ``other`` where it has none.
        name, link: of what is ``other``.
    """

    identifier: str
    name: str | None = None
    link: str | None = None

    def __str__(self) -> str:
        return self.name or self.identifier


def _of_dev(model: str) -> License:
    link = f"https://huggingface.co/{model}/blob/main/LICENSE.md"
    return License("other", "flux-1-dev-non-commercial-license", link)


LICENSES = {
    EMBEDDED: License("mit"),
    "black-forest-labs/FLUX.1-dev": _of_dev("black-forest-labs/FLUX.1-dev"),
    "black-forest-labs/FLUX.1-Krea-dev": _of_dev("black-forest-labs/FLUX.1-Krea-dev"),
    "black-forest-labs/FLUX.1-schnell": License("apache-2.0"),
}
"""Base model -> its licence, as the model's own card on the hub has it."""
