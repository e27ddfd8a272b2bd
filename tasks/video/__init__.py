"""Predict frames, interpolate, inpaint, outpaint and generate, on clips of any length."""

from maskgen.tasks.video.generation import generate_video
from maskgen.tasks.video.inpainting import inpaint_video
from maskgen.tasks.video.interpolation import interpolate
from maskgen.tasks.video.outpainting import outpaint_video
from maskgen.tasks.video.prediction import predict_frames

__all__ = ["generate_video", "inpaint_video", "interpolate", "outpaint_video", "predict_frames"]
