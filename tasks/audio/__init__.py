"""Fill gaps, go on, vary and close loops, in sound of any length."""

from maskgen.tasks.audio.infilling import continue_audio, infill, loop, vary

__all__ = ["continue_audio", "infill", "loop", "vary"]
