"""A tokenizer and its transformers as one model; ``fill``, the one way from masked tokens to tokens."""

from maskgen.tasks.pipeline.model import Pipeline

__all__ = ["Pipeline"]
