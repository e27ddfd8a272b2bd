"""Seconds by stage, of an evaluation or of a demo."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from maskgen.checkpoint import read_json, write_json


class Clock:
    """Seconds by stage; with a file they are kept, so that what was interrupted adds up its parts.

    Args:
        path: the file, read if it is there.

    Attributes:
        seconds: by stage.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.seconds: dict[str, float] = read_json(path) if path is not None and path.is_file() else {}

    @contextlib.contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Time a stage."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            # Stages that train add up over interruptions; the others are made anew each time.
            before = self.seconds.get(stage, 0.0) if stage.startswith("train") else 0.0
            self.seconds[stage] = round(before + time.perf_counter() - begun, 3)
            if self.path is not None and self.path.parent.is_dir():  # else nothing was begun
                write_json(self.path, self.seconds)
