"""Prompts against the official masks, from the recorded draws.

Shapes: B batch, C codebooks, T frames. Official masks are [B, C, T]; ours are bool [B, T, C].
"""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from maskgen.published.vampnet.prompt import PromptNoise, VampPrompt
from maskgen.sampling import prompts
from tests.parity.support import check_kinds, load, metadata, own_set, recordings

MASKS = recordings("vampnet", "masks*.safetensors")
INTERFACE = recordings("vampnet", "interface*.safetensors")
CASES = [(path, name) for path in MASKS for name in metadata(path)["cases"]]
BUILT = [(path, name) for path in INTERFACE for name in metadata(path)["cases"] if name.startswith("build_mask")]
BEATS = [(path, name) for path in INTERFACE for name in metadata(path)["cases"] if name.startswith("beat_mask")]


def label(value: object) -> str:
    return str(getattr(value, "stem", value))


def ours(official: Tensor) -> Tensor:
    """[B, C, T] -> bool [B, T, C]."""
    return official.transpose(1, 2).bool()


class Case:
    """One recorded call: its arguments, draws and outputs."""

    def __init__(self, path: Path, name: str) -> None:
        self.data, self.name = load(path), name
        self.args: dict[str, Any] = metadata(path)["cases"][name]
        rows, codebooks, frames = self.data["z"].shape
        self.shape = (rows, frames, codebooks)
        self.half = ours(self.data["half"])
        sampled = re.compile(rf"{re.escape(name)}\.draw(\d+)\.")
        found = {int(match[1]): key for key in self.data if (match := sampled.match(key))}
        self.draws = [self.data[found[index]] for index in sorted(found)]

    def out(self, index: str = "") -> Tensor:
        return self.data[f"{self.name}.out{index}"]

    def cells(self) -> Tensor:
        return self.draws[0].transpose(1, 2)


def linear(case: Case) -> Tensor:
    return prompts.linear_mask(case.cells(), case.args["r"])


def inpaint(case: Case) -> Tensor:
    return prompts.inpaint_mask(case.shape, case.args["n_prefix"], case.args["n_suffix"])


def periodic(case: Case) -> Tensor:
    shift = case.draws[0] if case.args.get("random_roll") else 0
    return prompts.periodic_mask(case.shape, case.args["period"], case.args["width"], shift)


def codebook_unmask(case: Case) -> Tensor:
    return prompts.keep_codebooks(case.half, case.args["ncc"])


def codebook_mask(case: Case) -> Tensor:
    return prompts.mask_codebooks(case.half, case.args["val1"])


def both(case: Case) -> Tensor:
    return case.half & ours(case.data["other"])


def either(case: Case) -> Tensor:
    return case.half | ours(case.data["other"])


def dropout(case: Case) -> Tensor:
    assert len(case.draws[0]) == int(case.shape[1] * case.args["p"])
    return prompts.mask_frames(case.half, case.draws[0].expand(case.shape[0], -1))


def time_stretch(case: Case) -> Tensor:
    assert all(draw.item() < 1 for draw in case.draws)  # official coins of probability 1: they decide nothing
    return prompts.periodic_mask(case.shape, case.args["factor"])


def onset(case: Case) -> Tensor:
    """Official: an onset nearer than the width to the start is lost; so it is left out here."""
    width = case.args["width"]
    kept = [frame for frame in case.data["onset_frames"].tolist() if frame >= width]
    return prompts.onset_mask(case.shape, kept, width)


BUILDERS: dict[str, Callable[[Case], Tensor]] = {
    r"linear_random_[\d.]+": linear,
    r"inpaint_\d+_\d+": inpaint,
    r"periodic_(roll_)?p\d+_w\d+": periodic,
    r"codebook_unmask_\d+": codebook_unmask,
    r"codebook_mask_\d+": codebook_mask,
    r"mask_and": both,
    r"mask_or": either,
    r"dropout_[\d.]+": dropout,
    r"time_stretch_mask_\d+": time_stretch,
    r"onset_w\d+": onset,
}
# Masks of official training, which nothing here is trained with.
TRAINING = ("random", "random_scalar", "new_random_along_time", "new_drop_ones", "new_tria", "new_stemgen", "new_hugo")
OTHERS = ("apply_mask", *TRAINING)


def builder(name: str) -> Callable[[Case], Tensor] | None:
    return next((made for pattern, made in BUILDERS.items() if re.fullmatch(pattern, name)), None)


def test_every_recorded_case_is_compared() -> None:
    assert [name for _, name in CASES if builder(name) is None and name not in OTHERS] == []
    names = {name for _, name in CASES}
    check_kinds("vampnet", names & set(OTHERS), OTHERS)
    check_kinds("vampnet", {made for made in BUILDERS if any(re.fullmatch(made, name) for name in names)}, BUILDERS)
    assert BUILT
    assert BEATS


@pytest.mark.parametrize(("path", "name"), [case for case in CASES if builder(case[1])], ids=label)
def test_masks(path: Path, name: str) -> None:
    case, made = Case(path, name), builder(name)
    assert made is not None
    assert torch.equal(made(case), ours(case.out()))


@pytest.mark.parametrize("path", [path for path, name in CASES if name == "apply_mask"], ids=label)
def test_apply_mask(path: Path) -> None:
    case = Case(path, "apply_mask")
    masked, codes = ours(case.out("1")), metadata(path)["config"]["vocab"]
    assert torch.equal(masked, case.half)
    assert torch.equal(case.data["z"].transpose(1, 2).masked_fill(masked, codes), case.out("0").transpose(1, 2))


def early_onsets(path: Path, name: str) -> list[int]:
    """Onsets nearer to the start than the width of a recorded case."""
    width = metadata(path)["cases"][name]["width"]
    return [frame for frame in load(path)["onset_frames"].tolist() if frame < width]


ONSETS = [(path, name) for path, name in CASES if name.startswith("onset")]


@pytest.mark.parametrize(("path", "name"), [case for case in ONSETS if early_onsets(*case)], ids=label)
def test_early_onsets_are_kept_here_and_lost_there(path: Path, name: str) -> None:
    case = Case(path, name)
    width, frames = case.args["width"], case.data["onset_frames"].tolist()
    mask = prompts.onset_mask(case.shape, frames, width)
    kept = torch.zeros(case.shape, dtype=torch.bool)
    for frame in early_onsets(path, name):
        kept[:, : frame + width] = True
    assert torch.equal(mask, ours(case.out()) & ~kept)
    # Where a later onset covers the same frames nothing was lost.
    assert torch.equal(mask, ours(case.out())) is (width in frames)


def test_an_early_onset_was_lost_in_some_recording() -> None:
    early = [early_onsets(*case) for case in ONSETS]
    lost = [
        metadata(path)["cases"][name]["width"] not in load(path)["onset_frames"].tolist()
        for (path, name), found in zip(ONSETS, early, strict=True)
        if found
    ]
    assert (all(early) and any(lost)) or not own_set("vampnet")


@pytest.mark.parametrize(("path", "name"), BUILT, ids=label)
def test_the_whole_prompt(path: Path, name: str) -> None:
    data, stated = load(path), metadata(path)
    args = dict(stated["cases"][name])
    rate = stated["codec"]["sample_rate"] / stated["codec"]["hop_length"]
    names = {"periodic_prompt": "period", "periodic_prompt_width": "width", "upper_codebook_mask": "mask_from"}
    names |= {"rand_mask_intensity": "masked_share", "_dropout": "dropout", "ncc": "keep"}
    for key in ("prefix", "suffix"):
        args[key] = math.ceil(args.pop(f"{key}_s", 0.0) * rate)
    prompt = VampPrompt(**{names.get(key, key): value for key, value in args.items()})
    cells = data[f"{name}.bernoulli_u"].transpose(1, 2)
    integers = [data[f"{name}.randint{i}"] for i in range(2) if f"{name}.randint{i}" in data]
    shift = integers.pop(0) if prompt.period else torch.zeros(len(cells), dtype=torch.long)
    (dropped,) = integers
    # One offset and one set of dropped frames for all rows.
    mask = prompt.mask(
        PromptNoise(tokens=cells, shift=shift.expand(len(cells)), dropped=dropped.expand(len(cells), -1))
    )
    assert torch.equal(mask, ours(data[f"{name}.out"]))


@pytest.mark.parametrize(("path", "name"), BEATS, ids=label)
def test_beats(path: Path, name: str) -> None:
    data, stated = load(path), metadata(path)
    args, codec = stated["cases"][name], stated["codec"]
    expected = ours(data[f"{name}.out"])

    def frames(seconds: float) -> int:
        return math.ceil(seconds * codec["sample_rate"] / codec["hop_length"])

    down = [frames(beat) for beat in data["downbeats"].tolist()]
    up = [frame for frame in (frames(beat) for beat in data["beats"].tolist()) if frame not in down]
    up = up[:: args.get("beat_downsample_factor", 1)] if args.get("mask_upbeats", True) else []
    down = down[:: args.get("downbeat_downsample_factor", 1)] if args.get("mask_downbeats", True) else []
    before, after = frames(args.get("before_beat_s", 0.0)), frames(args.get("after_beat_s", 0.02))
    thin = args.get("dropout", 0.0)
    uniforms = torch.zeros(expected.shape[:2])
    if thin:  # one draw for every frame of every beat, the later one counting where two overlap
        draws = data[f"{name}.bernoulli_u"].tolist()
        for beat in (*up, *down):
            for frame in range(beat - before, min(beat + after, expected.shape[1])):
                uniforms[:, frame] = draws.pop(0)
        assert not draws
    mask = prompts.beat_mask(expected.shape, [*up, *down], before, after, thin=thin, uniforms=uniforms)
    assert torch.equal(mask if args.get("invert", True) else ~mask, expected)
