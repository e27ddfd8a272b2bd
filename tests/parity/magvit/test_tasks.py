"""MAGVIT's condition regions, paddings and prompts against the official outputs.

Shapes: official video is [B, T, H, W, 3], masks broadcast to it and to [B, t, h, w].
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from maskgen.sampling.commit import Prompt
from maskgen.tasks.conditions.video import VIDEO_TASKS, TokenCells, VideoTask
from tests.parity.support import check_kinds, load, metadata, own_set, recordings

FILES = recordings("magvit", "tasks*.safetensors")
CASES = [(path, name) for path in FILES for name in metadata(path)["tokens"]]
KINDS = {
    "full_generation": "CG",
    "frame_prediction": "FP",
    "frame_interpolation": "FI",
    "latent_frame_prediction": "LFP",
    "outpainting": "OPQ",  # the official default where no region is named
    "inpainting": "IPQ",
}
REGIONS = {
    ("outpainting", "rectangle_central"): "OPC",
    ("outpainting", "rectangle_vertical"): "OPV",
    ("outpainting", "rectangle_horizontal"): "OPH",
    ("outpainting", "dynamic_vertical"): "OPD",
    ("inpainting", "rectangle_central"): "IPC",
    ("inpainting", "dynamic_central"): "IPD",
}


def official_kind(name: str) -> str:
    return max((kind for kind in KINDS if name.startswith(kind)), key=len)


def task_of(path: Path, name: str) -> VideoTask:
    """The task that an official configuration describes."""
    config: dict[str, Any] = metadata(path)[f"cfg_{name}"]
    kind = official_kind(name)
    label = REGIONS[kind, config["cond_region"]] if "cond_region" in config else KINDS[kind]
    task = VIDEO_TASKS[label]
    if "cond_padding" in config:
        assert (config["cond_padding"], task.padding) == ("constant", "black")
    return replace(
        task,
        frames=config.get("cond_frames", 1),
        latent_frames=config.get("cond_latent_frames"),
        class_conditional=config.get("class_conditional", False),
    )


def ours(video: Tensor) -> Tensor:
    """[B, T, H, W, 3] -> [B, 3, T, H, W]."""
    return video.permute(0, 4, 1, 2, 3)


def cells_of(path: Path) -> TokenCells:
    return TokenCells.even(metadata(path)["latent_shape"], metadata(path)["video_shape"][1:4])


def with_condition(cases: list[tuple[Path, str]]) -> list[tuple[Path, str]]:
    return [case for case in cases if f"{case[1]}/cond_video" in load(case[0])]


def check_region(found: Tensor, official: Tensor) -> None:
    """One region for all items; the official masks of the items broadcast to its shape."""
    assert all(torch.equal(found, mask.bool().expand(found.shape)) for mask in official)


@pytest.mark.parametrize(("path", "name"), with_condition(CASES), ids=lambda value: getattr(value, "stem", value))
def test_conditions(path: Path, name: str) -> None:
    data = load(path)
    found = task_of(path, name).condition(ours(data["video"]), cells_of(path))
    expected = ours(data[f"{name}/cond_video"])
    exact = "interpolation" not in name
    torch.testing.assert_close(found.clip, expected, rtol=0, atol=0 if exact else 2e-7)
    check_region(found.pixels[0], ours(data[f"{name}/video_mask"]))
    check_region(found.tokens, data[f"{name}/latent_mask"])


@pytest.mark.parametrize(("path", "name"), CASES, ids=lambda value: getattr(value, "stem", value))
def test_prompts(path: Path, name: str) -> None:
    """The official ids count down from -3; inpainting has outpainting's, by a mistake that can be switched off."""
    task = task_of(path, name)
    assert metadata(path)["tokens"][name] == -3 - task.prompt()
    other = task.prompt(inpainting_prompt=True)
    assert other == task.kind == (Prompt.INPAINTING if name.startswith("inpainting") else task.prompt())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_token_frames_follow_from_the_frames(path: Path) -> None:
    """The official configurations name both numbers; ours derives the second."""
    data, seen = load(path), 0
    for name in metadata(path)["tokens"]:
        task = task_of(path, name)
        if task.region in ("first", "ends"):
            derived = replace(task, latent_frames=None).condition(ours(data["video"]), cells_of(path))
            check_region(derived.tokens, data[f"{name}/latent_mask"])
            seen += 1
    assert seen > 1 or not own_set("magvit")


def test_all_tasks_are_compared() -> None:
    labels = {task_of(path, name) for path, name in CASES}
    compared = {(task.kind, task.region, task.missing, task.padding, task.class_conditional) for task in labels}
    expected = {
        (task.kind, task.region, task.missing, task.padding, task.class_conditional) for task in VIDEO_TASKS.values()
    }
    check_kinds("magvit", compared, expected)
    assert [case for case in CASES if case not in with_condition(CASES)] == [
        case for case in CASES if official_kind(case[1]) == "full_generation"
    ]
