"""Places that are out of reach for a while: ask again, with pauses that double, then stop in a way that can go on."""

import time
from collections.abc import Callable
from typing import TypeVar

from maskgen.data import DataUnavailable

T = TypeVar("T")

TRIES, PAUSE = 6, 1.0
"""How often a place is asked, and seconds before the second time, which double each time (31 seconds in all)."""


def patiently(place: str, ask: Callable[[], T]) -> T:
    """What ``ask`` returns, asked again while it fails; a ``ValueError`` or ``ImportError`` would not change, and passes.

    Args:
        place: named in the error.
        ask: reads something.

    Raises:
        DataUnavailable: it failed each time.
    """
    reason = ""
    for attempt in range(TRIES):
        if attempt:
            time.sleep(PAUSE * 2 ** (attempt - 1))
        try:
            return ask()
        except (ValueError, ImportError):
            raise
        except Exception as error:  # each of fsspec's places has errors of its own
            reason = " ".join(str(getattr(error, "strerror", None) or error or type(error).__name__).split())
    raise DataUnavailable(
        f"{place}: cannot be read, {TRIES} times in a row ({reason}); once it is back, run the same command again to go on "
        "from the last checkpoint"
    )
