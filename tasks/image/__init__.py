"""Generate, inpaint, outpaint, swap classes, edit and revise, on pictures of any size."""

from maskgen.tasks.image.class_swap import swap_class
from maskgen.tasks.image.editing import edit, revise
from maskgen.tasks.image.generation import generate
from maskgen.tasks.image.inpainting import inpaint
from maskgen.tasks.image.outpainting import outpaint

__all__ = ["edit", "generate", "inpaint", "outpaint", "revise", "swap_class"]
