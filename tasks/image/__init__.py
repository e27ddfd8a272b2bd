"""Generate, inpaint, outpaint and swap classes, on pictures of any size."""

from maskgen.tasks.image.class_swap import swap_class
from maskgen.tasks.image.generation import generate
from maskgen.tasks.image.inpainting import inpaint
from maskgen.tasks.image.outpainting import outpaint

__all__ = ["generate", "inpaint", "outpaint", "swap_class"]
