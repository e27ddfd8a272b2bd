"""Text as a condition: encoders of it, and the prompts of a call."""

from maskgen.tasks.conditions.text.base import TextEncoder
from maskgen.tasks.conditions.text.pretrained import PretrainedText, PretrainedTextConfig
from maskgen.tasks.conditions.text.prompts import Prompts

__all__ = ["PretrainedText", "PretrainedTextConfig", "Prompts", "TextEncoder"]
