"""Change a whole picture by a text or a class: image to image with a strength, and mask-free editing.

``edit`` hides a share of the tokens and decides them anew (aMUSEd, arXiv 2401.01808). ``revise`` hides a few at a time, many
times over, so that the picture wanders towards the text (Muse, arXiv 2301.00704, section 4.3): no mask, no strength. Of a
cascade the small grid is changed so, and from that the large one is made anew, by the same text.

Shapes: B results, N tokens, K codebooks.
"""

import dataclasses
from collections.abc import Callable
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
from maskgen.tasks.pipeline.cascade import reduced

_Change = Callable[[Pipeline, Tensor, Request], Tensor]  # of the tokens of one stage

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

    def change(stage: Pipeline, tokens: Tensor, asked: Request) -> Tensor:
        return _hidden_again(stage, tokens, asked, strength)

    return _changed(pipe, load_original(image), request, change)


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
        options: prompt, label, seeds and settings, see ``maskgen.tasks.conditions.request.Options``. Where they (of a
            cascade ``coarse_sampling``) do not say otherwise, guidance is 4 and tokens are drawn from the 3 likeliest, as in
            the paper; steps are of a round.

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
    asked = options.copy()
    if pipe.coarse is None:
        asked["sampling"] = revise_sampling(options.get("sampling"))
    else:
        asked["coarse_sampling"] = revise_sampling(options.get("coarse_sampling"))
    request = pipe.request(asked)

    def change(stage: Pipeline, tokens: Tensor, asked: Request) -> Tensor:
        for number in range(rounds):
            turn = asked.window(number)
            mask = hidden_places(share, tokens.shape, turn.seeds).to(tokens.device)
            tokens = stage.fill(tokens, mask, turn)
        return tokens

    return _changed(pipe, load_original(image), request, change)


def revise_sampling(sampling: Sampling | None) -> Sampling:
    """Muse's settings of ``revise`` under those of a call."""
    return _MUSE if sampling is None else sampling.over(_MUSE)


def _hidden_again(pipe: Pipeline, tokens: Tensor, request: Request, strength: float) -> Tensor:
    """Tokens ``[B, N, K]`` of which a share by the strength is hidden and decided anew, see ``edit``."""
    settings = request.sampling
    published = settings.sampler in ("amused", "openmuse") and settings.amused.counts == "all"
    official = published and settings.amused.rehides
    first = first_step(settings.steps, strength, official=official)
    if official:
        share = share_hidden(settings.schedule, first, settings.steps, official=True)
    else:
        total = torch.tensor(tokens[0].numel())
        share = (
            get_schedule(settings.schedule)(torch.tensor(first / settings.steps), total) if first else torch.tensor(1.0)
        )
    mask = hidden_places(share, tokens.shape, request.seeds).to(tokens.device)
    if published:
        return pipe.fill(tokens, mask, request, start_step=first) if first < settings.steps else tokens
    # Other loops count what is masked at the start: they begin anew, with the steps that are left.
    left = dataclasses.replace(request, sampling=settings.override(steps=settings.steps - first))
    return pipe.fill(tokens, mask, left)


def _changed(pipe: Pipeline, original: Original, request: Request, change: _Change) -> list[Image.Image]:
    """Pictures of the original's size, with what its file says besides the colours."""
    size, target = original.rgb.size, (pipe.grid_size[1], pipe.grid_size[0])
    shown = original.rgb if size == target else original.rgb.resize(target, Image.Resampling.LANCZOS)
    made = to_images(pipe.decode(_tokens(pipe, to_tensor([shown]), request, change)))
    full = [one if one.size == size else one.resize(size, Image.Resampling.BICUBIC) for one in made]
    return [original.paste(one, torch.ones(size[1], size[0])) for one in full]


def _tokens(pipe: Pipeline, picture: Tensor, request: Request, change: _Change) -> Tensor:
    """Tokens ``[B, N, K]`` of a picture ``[1, 3, H, W]``, changed; of a cascade what changed small ones lead to."""
    if pipe.coarse is not None and request.coarse is not None:
        small = _tokens(pipe.coarse, reduced(picture, pipe.coarse), request.coarse, change)
        return pipe.enlarge(small, request)
    tokens = pipe.encode(picture)[..., : pipe.transformer.num_codebooks]
    return change(pipe, tokens.expand(len(request.seeds), -1, -1), request)
