"""Change a whole picture by a text or a class: image to image with a strength, and mask-free editing.

``edit`` hides a share of the tokens and decides them anew (aMUSEd, arXiv 2401.01808). ``revise`` hides a few at a time, many
times over, so that the picture wanders towards the text (Muse, arXiv 2301.00704, section 4.3): no mask, no strength.

Shapes: B results, N tokens, K codebooks.
"""

import dataclasses
from typing import Unpack

import torch
from PIL import Image
from torch import Tensor

from maskgen.published.amused.editing import first_step, hidden_places, share_hidden
from maskgen.sampling.filters import TokenFilter
from maskgen.sampling.guidance import Guidance
from maskgen.sampling.settings import Sampling
from maskgen.schedules import get_schedule
from maskgen.tasks.conditions.request import Options, Request
from maskgen.tasks.media.images import ImageSource, to_images, to_tensor
from maskgen.tasks.media.originals import Original, load_original
from maskgen.tasks.pipeline import Pipeline

_MUSE = Sampling(steps=1, guidance=Guidance(scale=4.0), filter=TokenFilter(top_k=3))


def edit(pipe: Pipeline, image: ImageSource, *, strength: float = 0.5, **options: Unpack[Options]) -> list[Image.Image]:
    """Make a picture anew by a text or a class, keeping the more of it the smaller the strength.

    Of S steps, the last floor(S x strength) are run, at least one; at the start each token is masked by itself with the
    probability that the schedule has there. With the published settings of aMUSEd and Meissonic
    (``maskgen.published.amused.editing.OFFICIAL``), strengths at the ends behave as theirs do: 1 masks nothing.

    Args:
        pipe: an image model.
        image: a picture of any size, see ``maskgen.tasks.media.images.load_image``; the model sees it at its own size
            (aspect ignored).
        strength: over 0 (little is changed) to 1 (all is new).
        options: prompt, label, seeds and settings, see ``maskgen.tasks.conditions.request.Options``.

    Returns:
        B pictures of the original's size.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a strength out of range, numbers that differ, settings out of range, or a model of another modality.
    """
    pipe.require("image", "editing", regions=True)
    request = pipe.request(options)
    settings = request.sampling
    published = settings.sampler in ("amused", "openmuse") and settings.amused.counts == "all"
    official = published and settings.amused.rehides
    first = first_step(settings.steps, strength, official=official)
    original = load_original(image)
    tokens = _encoded(pipe, original, request)
    if official:
        share = share_hidden(settings.schedule, first, settings.steps, official=True)
    else:
        total = torch.tensor(tokens[0].numel())
        share = (
            get_schedule(settings.schedule)(torch.tensor(first / settings.steps), total) if first else torch.tensor(1.0)
        )
    mask = hidden_places(share, tokens.shape, request.seeds).to(tokens.device)
    if published:
        if first < settings.steps:
            tokens = pipe.fill(tokens, mask, request, start_step=first)
        return _decoded(pipe, tokens, original)
    # Other loops count what is masked at the start: they begin anew, with the steps that are left.
    left = dataclasses.replace(request, sampling=settings.override(steps=settings.steps - first))
    return _decoded(pipe, pipe.fill(tokens, mask, left), original)


def revise(
    pipe: Pipeline, image: ImageSource, *, rounds: int = 100, share: float = 0.08, **options: Unpack[Options]
) -> list[Image.Image]:
    """Muse's mask-free editing: a few tokens, drawn anew in each round, are predicted in one step and put back.

    Args:
        pipe: an image model.
        image: a picture of any size, see ``maskgen.tasks.media.images.load_image``; the model sees it at its own size
            (aspect ignored).
        rounds: how many; the paper takes 100 and finds earlier ones often better.
        share: of the tokens that a round masks.
        options: prompt, label, seeds and settings, see ``maskgen.tasks.conditions.request.Options``. Where they do not say
            otherwise, guidance is 4 and tokens are drawn from the 3 likeliest, as in the paper; steps are of a round.

    Returns:
        B pictures of the original's size.

    Raises:
        FileNotFoundError: no such file.
        ValueError: rounds or a share out of range, numbers that differ, settings out of range, or a model of another
            modality.
    """
    pipe.require("image", "editing", regions=True)
    if rounds < 1 or not 0 < share <= 1:
        raise ValueError(f"got rounds {rounds}, share {share}; expected 1 or more rounds and a share over 0, at most 1")
    request = pipe.request({**options, "sampling": revise_sampling(options.get("sampling"))})
    original = load_original(image)
    tokens = _encoded(pipe, original, request)
    for number in range(rounds):
        turn = request.window(number)
        mask = hidden_places(share, tokens.shape, turn.seeds).to(tokens.device)
        tokens = pipe.fill(tokens, mask, turn)
    return _decoded(pipe, tokens, original)


def revise_sampling(sampling: Sampling | None) -> Sampling:
    """Muse's settings of ``revise`` under those of a call."""
    return _MUSE if sampling is None else sampling.over(_MUSE)


def _encoded(pipe: Pipeline, original: Original, request: Request) -> Tensor:
    """Tokens ``[B, N, K]`` of a picture at the model's size, the same for every result."""
    size = (pipe.grid_size[1], pipe.grid_size[0])
    picture = original.rgb if original.rgb.size == size else original.rgb.resize(size, Image.Resampling.LANCZOS)
    tokens = pipe.encode(to_tensor([picture]))[..., : pipe.transformer.num_codebooks]
    return tokens.expand(len(request.seeds), -1, -1)


def _decoded(pipe: Pipeline, tokens: Tensor, original: Original) -> list[Image.Image]:
    """Pictures of the original's size, with what its file says besides the colours."""
    size = original.rgb.size
    made = [
        one if one.size == size else one.resize(size, Image.Resampling.BICUBIC)
        for one in to_images(pipe.decode(tokens))
    ]
    return [original.paste(one, torch.ones(size[1], size[0])) for one in made]
