"""What we promise of the samplers, as ratios between the contestants of ``contestants.py``.

A promise about a fast path is one more line in ``GOALS``.
"""

from dataclasses import dataclass

__all__ = ["GOALS", "Goal"]


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A ratio of two contestants' times for the same load in the same run.

    Attributes:
        text: what it says.
        over: contestant whose time is above the line.
        under: contestant whose time is below it.
        least: the ratio must reach this, None where it is only told.
        most: the ratio may not exceed this, None where there is no such limit.
        tokens: for which grids, empty for all.
        batches: for which batches, empty for all.
        devices: for which devices, empty for all.
    """

    text: str
    over: str
    under: str
    least: float | None = None
    most: float | None = None
    tokens: tuple[int, ...] = ()
    batches: tuple[int, ...] = ()
    devices: tuple[str, ...] = ()


GOALS: tuple[Goal, ...] = (
    Goal(
        text="maskgen against the plain MKL loop", over="plain MKL loop", under="maskgen",
        least=1.5, tokens=(256,), batches=(8,),
    ),
    Goal(text="loop over its bare forwards", over="maskgen", under="bare forwards", most=1.01, batches=(8,)),
    Goal(
        text="8 images of one class: 8 bare forwards over 8 steps", over="bare forwards", under="maskgen, one class",
        least=1.1, tokens=(256,), batches=(8,),
    ),
    Goal(
        text="8 images of one class, guided: 16 bare forwards over 8 steps", over="bare forwards, guided",
        under="maskgen, one class, guided", least=1.15, tokens=(256,), batches=(8,),
    ),
    Goal(
        text="the same in the order halton", over="bare forwards, guided", under="maskgen, one class, guided, halton",
        least=1.15, tokens=(256,), batches=(8,),
    ),
    Goal(text="guided: bare forwards over maskgen", over="bare forwards, guided", under="maskgen, guided"),
    Goal(text="naive loop over maskgen", over="naive loop", under="maskgen"),
    Goal(text="guided: naive loop over maskgen", over="naive loop, guided", under="maskgen, guided"),
    Goal(text="guided over unguided", over="maskgen, guided", under="maskgen", devices=("cpu",)),
    Goal(
        text="guided over unguided", over="maskgen, guided", under="maskgen", most=1.7, batches=(1,), devices=("cuda",)
    ),
    Goal(text="aMUSEd's loop over maskgen", over="aMUSEd loop (diffusers)", under="maskgen"),
    Goal(
        text="AR without cache (whole again) over maskgen", over="AR, whole again", under="maskgen",
        least=30, tokens=(256,), batches=(1, 64),
    ),
    Goal(
        text="AR without cache (whole again) over maskgen", over="AR, whole again", under="maskgen",
        least=64, tokens=(1024,), batches=(1, 64),
    ),
    Goal(text="AR without cache (prefix again) over maskgen", over="AR, prefix again", under="maskgen"),
    Goal(text="AR with KV cache over maskgen, the honest figure", over="AR, KV cache", under="maskgen"),
    Goal(text="eager over torch.compile", over="maskgen", under="maskgen, torch.compile", least=3, batches=(1,)),
)  # fmt: skip
