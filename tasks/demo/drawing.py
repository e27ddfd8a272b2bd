"""What the text demo asks of a model: scenes to draw, colours to avoid, digits to change.

Shapes: M scenes, S side of a picture.
"""

import random
from dataclasses import replace
from typing import Any

import torch

from maskgen.tasks.data.images.scenes import COLOURS, Scene, describe_scene
from maskgen.tasks.demo.figures.text import Drawn
from maskgen.tasks.image.generation import generate
from maskgen.tasks.image.inpainting import inpaint
from maskgen.tasks.media.images import to_images, to_tensor
from maskgen.tasks.pipeline import Pipeline


def draw(pipe: Pipeline, asked: Drawn, **options: Any) -> Drawn:
    """What the model draws for the same prompts; see ``maskgen.tasks.image.generation.generate``."""
    return replace(asked, images=to_tensor(generate(pipe, prompt=asked.prompts, **options)))


def avoid_colours(pipe: Pipeline, asked: Drawn) -> dict[str, Drawn]:
    """Single digits whose colour the prompt leaves open: without guidance, with it, and guided away from a colour.

    The scenes beside the pictures have the colour that is to be avoided.
    """
    scenes = [
        Scene((replace(scene.figures[0], colour=number % len(COLOURS)),), scene.ground)
        for number, scene in enumerate(asked.scenes)
    ]
    left_open, named = (
        [describe_scene(scene, random.Random(number), silent=silent) for number, scene in enumerate(scenes)]
        for silent in (1.0, 0.0)
    )
    wanted = Drawn(scenes, left_open, asked.images)
    guided = max(pipe.config.sampling.guidance.scale, 1.0)
    return {
        "avoided_unguided": draw(pipe, wanted, guidance=0.0),
        "avoided_guided": draw(pipe, wanted, guidance=guided),
        "avoided_negative": draw(pipe, wanted, guidance=guided, negative_prompt=named),
    }


def edit_scenes(pipe: Pipeline, real: Drawn) -> Drawn:
    """Real scenes whose first digit is painted over by text: another digit in another colour, and all else as it was."""
    scenes, masks = [], []
    side = real.images.shape[-1]
    half = side // 2
    for scene in real.scenes:
        first, *others = scene.figures
        changed = replace(first, digit=(first.digit + 3) % 10, colour=(first.colour + 2) % len(COLOURS))
        scenes.append(Scene((changed, *others), scene.ground))
        top, left = (half * index for index in divmod(first.place, 2))
        mask = torch.zeros(side, side, dtype=torch.bool)
        mask[top : top + half, left : left + half] = True
        masks.append(mask)
    prompts = [describe_scene(scene, random.Random(number)) for number, scene in enumerate(scenes)]
    edited = inpaint(pipe, to_images(real.images), masks, prompt=prompts, seeds=range(len(masks)), feather=0)
    return Drawn(scenes, prompts, to_tensor(edited))
