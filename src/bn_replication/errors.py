"""The one error a user's mistake raises, and the nearest valid name to put in it."""

from __future__ import annotations

import difflib
import functools
import sys
from collections.abc import Callable, Iterable
from typing import ParamSpec

P = ParamSpec("P")


class UserError(ValueError):
    """What was found, what was expected, and where to mend it, in one line; the command line exits with 2."""

    def __init__(self, message: str) -> None:
        # What was found may be anything: a line break or a terminal's command in it stands there as its escape.
        super().__init__("".join(each if each.isprintable() else repr(each)[1:-1] for each in message))


def no_room(place: object, why: str | None) -> UserError:
    """Return the mistake of records that cannot be written at ``place``."""
    return UserError(
        f"{place}: found '{why}', expected room to write; earlier records are intact. "
        "Free some space or set machine.results=..."
    )


def one_line(prefix: str = "") -> Callable[[Callable[P, int]], Callable[P, int]]:
    """Decorate a command's ``main``: a user's mistake becomes one line, after ``prefix``, and exit code 2."""

    def decorate(main: Callable[P, int]) -> Callable[P, int]:
        @functools.wraps(main)
        def told(*args: P.args, **kwargs: P.kwargs) -> int:
            try:
                return main(*args, **kwargs)
            except UserError as error:
                print(f"{prefix}{error}", file=sys.stderr)
                return 2

        return told

    return decorate


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the choice closest to ``word``, or an empty string."""
    names = [str(choice) for choice in choices]
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if not close:
        # The right key in the wrong section, say: the last part alone decides.
        last = {name.rpartition(".")[2]: name for name in names}
        close = [last[key] for key in difflib.get_close_matches(word.rpartition(".")[2], last, n=1, cutoff=0.75)]
    return f"; did you mean '{close[0]}'?" if close else ""
