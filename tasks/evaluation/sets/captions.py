"""The captions of any set of samples, with those counted that have none.

Shapes: M samples.
"""

from dataclasses import dataclass

from maskgen.tasks.data.broken import Broken, Tolerance
from maskgen.tasks.evaluation.sets.base import SampleSet
from maskgen.tasks.evaluation.sets.file_captions import ENDING


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


def read_all_captions(samples: SampleSet, share: float) -> CaptionedNumbers:
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
            f"{samples.name}: has no captions; expected a folder of `maskgen generate --prompts`, a file name.{ENDING} "
            "beside each picture, or a data set that says where they are (--data.captions)"
        )
    missing = [one.reason for one in found if isinstance(one, Broken)]
    fault = "samples have no caption that can be read"
    Tolerance(place=samples.name, total=len(samples), share=share, fault=fault, option="settings.broken").check(missing)
    good = {number: one for number, one in enumerate(found) if not isinstance(one, Broken)}
    return CaptionedNumbers(list(good), list(good.values()), missing)
