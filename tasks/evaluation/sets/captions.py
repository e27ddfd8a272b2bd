"""The captions of samples: of files, and of any set with those counted that have none.

Shapes: M samples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from maskgen.tasks.data.broken import Broken, Tolerance
from maskgen.tasks.data.captions import draw_caption, read_captions
from maskgen.tasks.media.shelf import Shelf

if TYPE_CHECKING:
    from maskgen.tasks.evaluation.sets.base import SampleSet

_ENDING = "txt"


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
            texts = (name for name in shelf.every() if name.lower().endswith(f".{_ENDING}"))
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
            found = () if file is None else read_captions(self._shelf.read(file), _ENDING, self._shelf.told(file))
        except (ValueError, OSError) as error:
            return Broken(name, str(error))
        missing = "no file of its name with" if file is None else "nothing in"
        told = f"{self._shelf.told(name)}: {missing} the ending {_ENDING}"
        return draw_caption(found, index) if found else Broken(name, told)


@dataclass(frozen=True)
class CaptionedNumbers:
    """The samples of a set that have captions.

    Attributes:
        numbers: theirs.
        captions: one each.
        missing: why each of the others has none.
    """

    numbers: list[int]
    captions: list[str]
    missing: list[str]

    def warning(self, name: str) -> list[str]:
        """What a report says of those without; nothing where there are none."""
        total = len(self.numbers) + len(self.missing)
        told = (
            f"{len(self.missing)} of {total} samples of {name} have no caption and were left out of the text measures"
        )
        return [told] if self.missing else []


def read_all_captions(samples: "SampleSet", share: float) -> CaptionedNumbers:
    """The captions of a set.

    Args:
        samples: M of them.
        share: of them that may have none.

    Raises:
        ValueError: no captions at all, or too many samples without.
    """
    found = samples.captions(range(len(samples)))
    if found is None:
        raise ValueError(
            f"{samples.name}: has no captions; expected a folder of `maskgen generate --prompts`, a file name.{_ENDING} "
            "beside each picture, or a data set that says where they are (--data.captions)"
        )
    missing = [one.reason for one in found if isinstance(one, Broken)]
    fault = "samples have no caption that can be read"
    Tolerance(place=samples.name, total=len(samples), share=share, fault=fault, option="settings.broken").check(missing)
    good = {number: one for number, one in enumerate(found) if not isinstance(one, Broken)}
    return CaptionedNumbers(list(good), list(good.values()), missing)


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))
