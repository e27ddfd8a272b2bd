"""Masked tokens become tokens: the loop, what it may choose, and what makes it fast."""

from maskgen.sampling.codebooks import sample_by_codebook
from maskgen.sampling.commit import sample_commit
from maskgen.sampling.filters import TokenFilter
from maskgen.sampling.guidance import guided_logits, model_logits, self_guided_logits
from maskgen.sampling.loop import LogitsFn, SampleStep, sample
from maskgen.sampling.selectors.named import get_selector
from maskgen.sampling.settings import Sampling

__all__ = [
    "LogitsFn",
    "SampleStep",
    "Sampling",
    "TokenFilter",
    "get_selector",
    "guided_logits",
    "model_logits",
    "sample",
    "sample_by_codebook",
    "sample_commit",
    "self_guided_logits",
]
