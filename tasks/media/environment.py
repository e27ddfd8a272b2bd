"""Versions and devices, as manifests, reports and ``maskgen info`` give them."""

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch


def environment() -> dict[str, Any]:
    """Versions and devices, as manifests and ``maskgen info`` give them."""
    versions = {}
    for name in (
        "maskgen",
        "torch",
        "torchvision",
        "accelerate",
        "xformers",
        "av",
        "decord",
        "torchaudio",
        "soundfile",
    ):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {"python": platform.python_version(), **versions, "devices": devices or ["cpu"]}
