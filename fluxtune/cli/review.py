"""Asking a person about each caption: accept it, edit it, skip it, or end."""

from __future__ import annotations

import sys

from fluxtune.captioning.writing import EndOfReview, Proposal
from fluxtune.cli.thumbnail import show_picture
from fluxtune.dataset.captions import tidy
from fluxtune.sentences import printable

QUESTION = "[Enter] accept, [e]dit, [s]kip, [q]uit: "


class Review:
    """Shows a proposal and answers with the caption to write, or with None for none."""

    def __call__(self, proposal: Proposal) -> str | None:
        """Asks until the answer is one.

        Raises:
            EndOfReview: the person wants to end; also at the end of the input.
        """
        print(f"\n{proposal.number} of {proposal.total}: {printable(str(proposal.path))}")
        show_picture(proposal.path, sys.stdout)
        if proposal.before:
            print(f"  now:      {printable(proposal.before)}")
        print(f"  proposed: {printable(proposal.caption)}")
        while True:
            answer = _typed(QUESTION).strip().lower()
            if answer in ("", "a", "accept", "y", "yes"):
                return proposal.caption
            if answer in ("s", "skip", "n", "no"):
                return None
            if answer in ("q", "quit"):
                raise EndOfReview
            if answer in ("e", "edit"):
                return _edited(proposal.caption)


def _edited(caption: str) -> str:
    """The caption as a person leaves it: the line comes filled in where the terminal's line editor can; an empty one
    keeps the caption."""
    try:
        import readline
    except ImportError:  # Windows
        return tidy(_typed("new caption (Enter keeps it): ")) or caption
    readline.set_startup_hook(lambda: readline.insert_text(caption))
    try:
        return tidy(_typed("caption: ")) or caption
    finally:
        readline.set_startup_hook()


def _typed(question: str) -> str:
    try:
        return input(question)
    except EOFError:
        print()
        raise EndOfReview from None
