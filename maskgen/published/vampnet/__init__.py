"""VampNet's transformer, prompts and decoding loop."""

from maskgen.published.vampnet.transformer import VampNetTransformer

__all__ = ["VampNetTransformer"]
