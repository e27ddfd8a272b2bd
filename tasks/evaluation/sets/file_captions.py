"""The captions of sample files: a manifest's prompts, or the files beside them.

Shapes: M samples.
"""

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from maskgen.tasks.data.broken import Broken
from maskgen.tasks.data.captions import draw_caption, read_captions
from maskgen.tasks.media.shelf import Shelf

ENDING = "txt"
"""Of the files beside samples."""


class FileCaptions:
    """What a manifest says that samples were asked for; without that, the files ``name.txt`` beside them.

    Args:
        shelf: where the files are.
        names: of the M samples.
        items: of the manifest, one a sample, if there is any.
    """

    def __init__(self, shelf: Shelf, names: Sequence[str], items: Sequence[Mapping[str, Any]] | None) -> None:
        self._shelf, self._names = shelf, names
        self._prompts = [item.get("prompt") for item in items or ()]
        self._told = any(isinstance(prompt, str) for prompt in self._prompts)
        self._files: dict[str, str] = {}
        if not self._told:
            wanted = {_stem(name) for name in names}
            texts = (name for name in shelf.every() if name.lower().endswith(f".{ENDING}"))
            self._files = {stem: name for name in texts if (stem := _stem(name)) in wanted}

    def read(self, indices: Sequence[int]) -> list[str | Broken] | None:
        """See ``maskgen.tasks.evaluation.sets.base.SampleSet.captions``."""
        if not (self._told or self._files):
            return None
        return [self._prompt(index) if self._told else self._beside(index) for index in indices]

    def _prompt(self, index: int) -> str | Broken:
        prompt, name = self._prompts[index], self._names[index]
        asked = isinstance(prompt, str) and prompt.strip()
        return asked or Broken(name, f"{self._shelf.told(name)}: the manifest has no prompt of it")

    def _beside(self, index: int) -> str | Broken:
        name = self._names[index]
        file = self._files.get(_stem(name))
        try:
            found = () if file is None else read_captions(self._shelf.read(file), ENDING, self._shelf.told(file))
        except (ValueError, OSError) as error:
            return Broken(name, str(error))
        missing = "no file of its name with" if file is None else "nothing in"
        told = f"{self._shelf.told(name)}: {missing} the ending {ENDING}"
        return draw_caption(found, index) if found else Broken(name, told)


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))
