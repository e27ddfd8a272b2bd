"""The tasks that edit a picture: read it, edit it, write a picture a seed and a manifest.

The signatures are the command line: names, types, defaults and help come from here.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from maskgen.sampling.settings import Sampling
from maskgen.tasks.commands.parts import EditRun, ProgressBar
from maskgen.tasks.image.class_swap import swap_class, swap_sampling
from maskgen.tasks.image.editing import edit, revise, revise_sampling
from maskgen.tasks.image.inpainting import inpaint
from maskgen.tasks.image.outpainting import outpaint
from maskgen.tasks.media.images import save_image
from maskgen.tasks.pipeline import Pipeline


def inpaint_command(run: EditRun, *, image: Path, mask: Path, dilation: int = 0) -> None:
    """Repaint the white part of a mask; the rest of the image comes back untouched.

    Args:
        run: see ``EditRun``.
        image: picture of any size.
        mask: picture of the same size; white = repaint, black = keep.
        dilation: tokens by which the repainted region grows.
    """
    pipe = run.load()
    sampling = run.settings(pipe)
    with ProgressBar(sampling.steps) as callback:
        images = inpaint(pipe, image, mask, dilation=dilation, **run.options(sampling, callback))
    _write(run, pipe, "inpaint", images, sampling, {"image": str(image), "mask": str(mask), "dilation": dilation})


def outpaint_command(
    run: EditRun, *, image: Path, left: int = 0, right: int = 0, top: int = 0, bottom: int = 0
) -> None:
    """Extend an image beyond its borders, as far as asked.

    Args:
        run: see ``EditRun``.
        image: picture of any size.
        left: pixels to add.
        right: pixels to add.
        top: pixels to add.
        bottom: pixels to add.
    """
    pipe = run.load()
    sampling = run.settings(pipe)
    sides = {"left": left, "right": right, "top": top, "bottom": bottom}
    with ProgressBar() as callback:  # how many windows there are, only the task knows
        images = outpaint(pipe, image, **sides, **run.options(sampling, callback))
    _write(run, pipe, "outpaint", images, sampling, {"image": str(image), **sides})


def swap_command(run: EditRun, *, image: Path, box: tuple[int, int, int, int], start_step: int = 2) -> None:
    """Replace what stands in a box by another class (the official MaskGIT editing).

    Without ``--steps`` and ``--sampling.steps`` it takes the official 12 steps.

    Args:
        run: see ``EditRun``.
        image: picture of any size.
        box: [top, left, height, width] in pixels.
        start_step: first step of the schedule that is run, official 2.
    """
    pipe = run.load()
    sampling = swap_sampling(pipe, run.sampling, run.steps, run.guidance)
    with ProgressBar(max(0, sampling.steps - start_step)) as callback:
        images = swap_class(pipe, image, box=box, start_step=start_step, **run.options(sampling, callback))
    _write(run, pipe, "swap-class", images, sampling, {"image": str(image), "box": list(box), "start_step": start_step})


def edit_command(run: EditRun, *, image: Path, strength: float = 0.5) -> None:
    """Make a picture anew by a prompt or a label, keeping the more of it the smaller the strength.

    Args:
        run: see ``EditRun``.
        image: picture of any size; the model sees it at its own.
        strength: over 0 (little is changed) to 1 (all is new).
    """
    pipe = run.load()
    sampling = run.settings(pipe)
    with ProgressBar() as callback:
        images = edit(pipe, image, strength=strength, **run.options(sampling, callback))
    _write(run, pipe, "edit", images, sampling, {"image": str(image), "strength": strength})


def revise_command(run: EditRun, *, image: Path, rounds: int = 100, share: float = 0.08) -> None:
    """Change a picture towards a prompt or a label without a mask, a few tokens at a time (Muse).

    Args:
        run: see ``EditRun``; where it does not say otherwise, guidance is 4 and tokens are drawn from the 3 likeliest.
        image: picture of any size; the model sees it at its own.
        rounds: how often tokens are drawn anew.
        share: of the tokens that are, each time.
    """
    pipe = run.load()
    if pipe.coarse is None:
        sampling = pipe.sampling(revise_sampling(run.sampling), run.steps, run.guidance)
    else:
        sampling = run.settings(pipe)
        pipe.coarse.set_sampling(pipe.coarse.sampling(revise_sampling(run.coarse_sampling), guidance=run.guidance))
    with ProgressBar(None if pipe.coarse is not None else rounds * sampling.steps) as callback:
        options = run.options(sampling, callback)
        if pipe.coarse is not None:
            options["coarse_sampling"] = pipe.coarse.config.sampling
        images = revise(pipe, image, rounds=rounds, share=share, **options)
    _write(run, pipe, "revise", images, sampling, {"image": str(image), "rounds": rounds, "share": share})


def _write(
    run: EditRun, pipe: Pipeline, task: str, images: Sequence[Image.Image], sampling: Sampling, details: dict[str, Any]
) -> None:
    items, _ = run.write(task, ".png", [partial(save_image, image) for image in images])
    run.finish(pipe, task, items, sampling, details, f"{len(items)} image(s)")
