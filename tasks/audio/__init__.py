"""Fill gaps, go on, vary, close loops and generate, in sound of any length."""

from maskgen.tasks.audio.generation import generate_sounds
from maskgen.tasks.audio.infilling import continue_audio, infill, loop, vary

__all__ = ["continue_audio", "generate_sounds", "infill", "loop", "vary"]
