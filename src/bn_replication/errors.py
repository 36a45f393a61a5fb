"""The one error a user's mistake raises, the nearest valid name to put in it, and places that cannot be used."""

from __future__ import annotations

import contextlib
import difflib
import errno
import functools
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import ParamSpec

P = ParamSpec("P")

# What the system says where nothing can be written, or no more, and of a place that is not what it was taken for. Any
# other OSError is a defect.
UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR}
_OF_PLACES = UNWRITABLE | {errno.EISDIR, errno.EEXIST, errno.ENOENT, errno.ENAMETOOLONG, errno.ELOOP}


class UserError(ValueError):
    """What was found, what was expected, and where to mend it, in one line; the command line exits with 2."""

    def __init__(self, message: str) -> None:
        # What was found may be anything: a line break or a terminal's command in it stands there as its escape.
        super().__init__("".join(each if each.isprintable() else repr(each)[1:-1] for each in message))


def no_room(place: object, why: str | None) -> UserError:
    """Return the mistake of records that cannot be written at ``place``."""
    return UserError(
        f"{place}: found '{why}', expected room to write; earlier records are intact. "
        "Free some space or set machine.results=... (make: RESULTS=...)"
    )


@contextlib.contextmanager
def writing(place: object, flag: str) -> Iterator[None]:
    """Say in one line, as a :class:`UserError`, that the block could not write at ``place``, which ``flag`` sets.

    The block should read nothing, as a file that cannot be read would be told as one that cannot be written.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _OF_PLACES:
            raise
        found = f"found '{os.strerror(error.errno)}', expected room to write"
        raise UserError(f"{place}: {found}; free some space or mend {flag}") from error


def one_line(prefix: str = "") -> Callable[[Callable[P, int]], Callable[P, int]]:
    """Decorate a command's ``main``: a user's mistake becomes one line, after ``prefix``, and exit code 2.

    So does a file or folder that cannot be read or written.
    """

    def decorate(main: Callable[P, int]) -> Callable[P, int]:
        @functools.wraps(main)
        def told(*args: P.args, **kwargs: P.kwargs) -> int:
            try:
                return main(*args, **kwargs)
            except UserError as error:
                complaint = error
            except OSError as error:
                if error.errno not in _OF_PLACES:
                    raise
                place = "" if error.filename is None else f"{error.filename}: "
                expected = "expected a place to read and write; mend its path, or what lies there"
                complaint = UserError(f"{place}found '{os.strerror(error.errno)}', {expected}")
            print(f"{prefix}{complaint}", file=sys.stderr)
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
