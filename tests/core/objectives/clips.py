"""Toy clips as the objective of COMMIT gets them: tokens, a draft of their first rows, two tasks, classes."""

import torch

from maskgen.conditioning import NO_LABEL
from maskgen.data import TensorSource
from maskgen.sampling.commit import Prompt

V = 11


def four_clips(copies: int = 1) -> TensorSource:
    """Four grids of 3 x 4 with drafts of their first rows (wrong in half of the places), two tasks, one class each."""
    generator = torch.Generator().manual_seed(9)
    tokens = torch.randint(V, (4, 12, 1), generator=generator)
    draft = torch.where(torch.rand(tokens.shape, generator=generator) < 0.5, tokens, (tokens + 1) % V)
    known = (torch.arange(12) < 4).view(1, 12, 1).repeat(4, 1, 1)
    known[2:] = False
    task = torch.tensor([Prompt.FRAME_PREDICTION] * 2 + [Prompt.FULL_GENERATION] * 2)
    labels = torch.tensor([NO_LABEL, NO_LABEL, 0, 1])
    fields = {"tokens": tokens, "condition": draft, "given": known, "task": task, "labels": labels}
    return TensorSource(**{name: value.repeat(copies, *[1] * (value.ndim - 1)) for name, value in fields.items()})
