"""What a video model was trained to do: names of tasks, as people write them and as a model folder remembers them."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from maskgen.sampling.commit import Prompt
from maskgen.tasks.conditions.video import VIDEO_TASKS, VideoTask

__all__ = ["TrainedTasks", "named_task"]

_BY_FRAMES = ("first", "ends")  # regions that a number of frames makes


def named_task(name: str) -> VideoTask:
    """A task by its name: a label of ``maskgen.tasks.conditions.video.VIDEO_TASKS``, and how many frames are given.

    Args:
        name: such as ``IPC``, ``FP`` (one frame is given) or ``FP5`` (five are); case does not matter.

    Raises:
        ValueError: no such task, or a number behind one that gives no frames.
    """
    match = re.fullmatch(r"([A-Za-z]+)([0-9]*)", name.strip())
    if match is None or match[1].upper() not in VIDEO_TASKS:
        raise ValueError(
            f"task: got {name!r}, expected one of {', '.join(VIDEO_TASKS)}, where frames are given with their number, as FP5"
        )
    task = VIDEO_TASKS[match[1].upper()]
    if match[2] and task.region not in _BY_FRAMES:
        raise ValueError(f"task: got {name!r}, but {match[1].upper()} gives no whole frames; leave the number out")
    return replace(task, frames=int(match[2])) if match[2] else task


@dataclass(frozen=True, kw_only=True)
class TrainedTasks:
    """What a model was trained to do.

    Attributes:
        names: of its tasks, see ``named_task``; () if nobody wrote them down, and then nothing is refused.
        inpainting_prompt: whether inpainting has a prompt of its own; the official code has it use outpainting's.
        unconditional: whether it saw examples without any condition, which guidance needs.
        frame_rate: frames a second of the clips; None if it is not known.
    """

    names: tuple[str, ...] = ()
    inpainting_prompt: bool = False
    unconditional: bool = False
    frame_rate: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))  # JSON brings a list
        for name in self.names:
            named_task(name)

    def frames(self, kind: Prompt) -> list[int]:
        """How many given frames the model knows from tasks of a kind, ascending."""
        found = [named_task(name) for name in self.names]
        return sorted({task.frames for task in found if task.kind == kind and task.region in _BY_FRAMES})

    def check(self, kind: Prompt, what: str) -> None:
        """Refuse what the model never learned, whose results would be noise.

        Args:
            kind: of the task.
            what: is asked of the model.

        Raises:
            ValueError: it was trained on others.
        """
        learned = {named_task(name).kind for name in self.names}
        if self.unconditional:
            learned.add(Prompt.FULL_GENERATION)
        if self.names and kind not in learned:
            able = ", ".join(label for label, task in VIDEO_TASKS.items() if task.kind == kind)
            raise ValueError(
                f"{what}: this model was trained on {', '.join(self.names)}; expected one that was trained on any of {able}"
            )
