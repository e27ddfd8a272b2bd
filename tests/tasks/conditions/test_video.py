"""What is given in each task: regions, paddings and tokens, for tokenizers of both kinds of time.

Shapes: T frames, H W pixels, t h w token grid.
"""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from maskgen.sampling.commit import Prompt
from maskgen.tasks.conditions.trained import named_task
from maskgen.tasks.conditions.video import VIDEO_TASKS, TokenCells, VideoTask, condition_from_mask
from maskgen.tokenizers.video.base import VideoTokenizer

PAPER = ("FP", "FI", "OPC", "OPV", "OPH", "OPD", "IPC", "IPD", "CG", "CFP")
SIZE, AXES = (16, 32, 32), (4, 8, 8)
CELLS = TokenCells.even(AXES, SIZE)


class Shapes(VideoTokenizer):
    """Nothing but the shapes of a tokenizer; ``alone``: the first frame has tokens of its own."""

    vocab_size = num_codebooks = 1

    def __init__(self, stride: tuple[int, int, int] = (4, 4, 4), alone: bool = False) -> None:
        super().__init__()
        self.steps, self.alone = stride, alone

    @property
    def stride(self) -> tuple[int, int, int]:
        return self.steps

    def latent_frames(self, frames: int) -> int:
        if self.alone and (frames - 1) % self.stride[0]:
            raise ValueError(f"got {frames} frames")
        return 1 + (frames - 1) // self.stride[0] if self.alone else -(-frames // self.stride[0])

    def decoded_frames(self, latent_frames: int) -> int:
        return 1 + (latent_frames - 1) * self.stride[0] if self.alone else latent_frames * self.stride[0]

    def encode(self, signal: Tensor) -> Tensor:
        raise NotImplementedError

    def decode(self, tokens: Tensor, axes: Sequence[int]) -> Tensor:
        raise NotImplementedError


def noise(size: Sequence[int] = SIZE, batch: int = 2, seed: int = 0) -> Tensor:
    return torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(seed))


def test_the_ten_tasks_of_the_paper() -> None:
    assert tuple(VIDEO_TASKS)[:10] == PAPER
    assert [label for label in PAPER if VIDEO_TASKS[label].class_conditional] == ["CG", "CFP"]
    with pytest.raises(TypeError):
        VIDEO_TASKS["FP"] = VIDEO_TASKS["FI"]  # type: ignore[index]


@pytest.mark.parametrize("label", VIDEO_TASKS)
def test_shapes_and_what_shows(label: str) -> None:
    clip = noise()
    found = VIDEO_TASKS[label].condition(clip, CELLS)
    assert (found.clip.shape, found.clip.dtype) == (clip.shape, clip.dtype)
    assert (found.pixels.shape, found.pixels.dtype) == ((1, 1, *SIZE), torch.bool)
    assert (found.tokens.shape, found.tokens.dtype) == (AXES, torch.bool)
    pixels = found.pixels.expand_as(clip)
    assert torch.equal(found.clip[pixels], clip[pixels])
    if label == "LFP":
        return
    # Nothing of what is not given shows, not even where it is no number.
    other = VIDEO_TASKS[label].condition(torch.where(pixels, clip, torch.nan), CELLS)
    assert torch.equal(other.clip, found.clip)


@pytest.mark.parametrize("label", [label for label in VIDEO_TASKS if label not in ("OPD", "IPD", "LFP")])
def test_tokens_are_those_whose_cells_hold_given_pixels(label: str) -> None:
    """All but the moving regions, whose token edges are rounded by themselves."""
    found = VIDEO_TASKS[label].condition(noise(), CELLS)
    assert torch.equal(found.tokens, CELLS.holding(found.pixels[0, 0]))


def test_moving_regions_move() -> None:
    strip, hole = (VIDEO_TASKS[label].condition(noise(), CELLS) for label in ("OPD", "IPD"))
    lefts = [int(row.nonzero()[0]) for row in strip.pixels[0, 0, :, 0]]
    assert lefts == [round(16 * frame / 15) for frame in range(16)]
    assert (strip.pixels[0, 0].sum((1, 2)) == 16 * 32).all()
    assert (~hole.pixels[0, 0]).sum((1, 2)).tolist() == [16 * 16] * 16
    assert torch.equal(~hole.pixels[0, 0, :, 8:24], strip.pixels[0, 0, :, 8:24])
    assert [int(row.nonzero()[0]) for row in strip.tokens[:, 0]] == [0, 1, 3, 4]
    assert strip.tokens.sum().item() == 4 * 8 * 4
    # Half way is rounded to the even number: 1/2 to 0, 3/2 to 2.
    narrow = VIDEO_TASKS["OPD"].condition(noise((5, 4, 4)), TokenCells.even((5, 4, 4), (5, 4, 4)))
    assert [int(row.nonzero()[0]) for row in narrow.tokens[:, 0]] == [0, 0, 1, 2, 2]


def test_paddings() -> None:
    clip = noise()
    fp = named_task("fp3").condition(clip, CELLS).clip
    assert torch.equal(fp[:, :, 3:], clip[:, :, 2:3].expand_as(fp[:, :, 3:]))
    fi = named_task("FI2").condition(clip, CELLS).clip
    for place in range(1, 13):
        share = place / 13
        torch.testing.assert_close(fi[:, :, 1 + place], clip[:, :, 1] * (1 - share) + clip[:, :, 14] * share)
    opc = VIDEO_TASKS["OPC"].condition(clip, CELLS).clip
    assert torch.equal(opc[..., 0, 0], clip[..., 8, 8])
    assert torch.equal(opc[..., 31, 12], clip[..., 23, 12])
    assert not VIDEO_TASKS["IPC"].condition(clip, CELLS).clip[..., 8:24, 8:24].any()
    assert not VIDEO_TASKS["CG"].condition(clip, CELLS).clip.any()
    assert torch.equal(VIDEO_TASKS["LFP"].condition(clip, CELLS).clip, clip)


@pytest.mark.parametrize(
    ("alone", "length", "frames", "expected"),
    [
        (False, 16, 1, [0]),
        (False, 16, 4, [0]),
        (False, 16, 5, [0, 1]),
        (True, 17, 1, [0]),
        (True, 17, 2, [0, 1]),
        (True, 17, 5, [0, 1]),
        (True, 17, 6, [0, 1, 2]),
    ],
)
def test_token_frames_of_both_kinds_of_tokenizer(alone: bool, length: int, frames: int, expected: list[int]) -> None:
    """Four frames a token frame; or one, and then four each."""
    cells = TokenCells.of(Shapes(alone=alone), (2, 3, length, 32, 32))
    found = named_task(f"FP{frames}").condition(noise((length, 32, 32)), cells)
    assert found.tokens.flatten(1).any(1).nonzero()[:, 0].tolist() == expected
    assert torch.equal(found.tokens, found.tokens[:, :1, :1].expand_as(found.tokens))
    ends = named_task(f"FI{frames}").condition(noise((length, 32, 32)), cells).tokens[:, 0, 0]
    last = cells.axes[0] - (-(-frames // 4))
    assert ends.tolist() == [place in expected or place >= last for place in range(cells.axes[0])]


def test_cells() -> None:
    plain, causal = (TokenCells.of(Shapes((4, 8, 16), alone=alone), (1, 3, 17, 20, 32)) for alone in (False, True))
    assert plain.frames == (0, 4, 8, 12, 16, 17)
    assert causal.frames == (0, 1, 5, 9, 13, 17)
    for cells in (plain, causal):
        assert cells.rows == (0, 8, 16, 20)
        assert cells.columns == (0, 16, 32)
        assert (cells.axes, cells.size) == ((5, 3, 2), (17, 20, 32))
    assert TokenCells.of(Shapes(), (1, 3, *SIZE)) == CELLS
    assert TokenCells.of(Shapes(alone=True), (1, 3, 1, 8, 8)).frames == (0, 1)
    with pytest.raises(ValueError, match="got 16 frames"):
        TokenCells.of(Shapes(alone=True), (1, 3, 16, 32, 32))
    with pytest.raises(ValueError, match=r"got rows \(0, 4, 4\), expected ascending numbers from 0"):
        TokenCells(frames=(0, 1), rows=(0, 4, 4), columns=(0, 1))


@given(data=st.data(), alone=st.booleans())
@settings(max_examples=20)
def test_a_token_is_a_draft_if_its_cell_holds_a_given_pixel(data: Any, alone: bool) -> None:
    """Against a plain loop over all tokens."""
    latents, height, width = data.draw(st.tuples(st.integers(1, 3), st.integers(4, 9), st.integers(4, 9)))
    length = 1 + 2 * (latents - 1) if alone else 2 * latents
    cells = TokenCells.of(Shapes((2, 4, 4), alone), (1, 3, length, height, width))
    share = data.draw(st.sampled_from([0.02, 0.2, 0.9]))
    seed = data.draw(st.integers(0, 99))
    pixels = torch.rand(length, height, width, generator=torch.Generator().manual_seed(seed)) < share
    expected = torch.zeros(cells.axes, dtype=torch.bool)
    for place in pixels.nonzero().tolist():
        frame = (place[0] + 1) // 2 if alone else place[0] // 2
        expected[frame, place[1] // 4, place[2] // 4] = True
    assert torch.equal(cells.holding(pixels), expected)


def test_masks_of_whole_frames_are_frame_prediction_and_interpolation() -> None:
    clip = noise()
    for label, places in (("FP", [0]), ("FI", [0, 15])):
        whole = torch.zeros(16, dtype=torch.bool)
        whole[places] = True
        found, task = condition_from_mask(clip, whole, CELLS), VIDEO_TASKS[label].condition(clip, CELLS)
        assert torch.equal(found.clip, task.clip)
        assert torch.equal(found.pixels, task.pixels)
        assert torch.equal(found.tokens, task.tokens)
    middle = torch.zeros(16, dtype=torch.bool)
    middle[[4, 8]] = True
    found = condition_from_mask(clip, middle, CELLS)
    assert torch.equal(found.clip[:, :, 0], clip[:, :, 4])
    assert torch.equal(found.clip[:, :, 15], clip[:, :, 8])
    torch.testing.assert_close(found.clip[:, :, 5], 0.75 * clip[:, :, 4] + 0.25 * clip[:, :, 8])


def test_other_masks_are_inpainting() -> None:
    clip = noise()
    hole = VIDEO_TASKS["IPC"].condition(clip, CELLS)
    for mask in (hole.pixels[0, 0, 0], hole.pixels[0, 0]):
        found = condition_from_mask(clip, mask, CELLS)
        assert torch.equal(found.clip, hole.clip)
        assert torch.equal(found.tokens, hole.tokens)
    # One whole frame and one pixel elsewhere: no mask of whole frames.
    mask = torch.zeros(SIZE, dtype=torch.bool)
    mask[0], mask[9, 3, 5] = True, True
    found = condition_from_mask(clip, mask, CELLS)
    assert not found.clip[:, :, 1:9].any()
    assert found.tokens.nonzero()[64:].tolist() == [[2, 0, 1]]


def test_prompts() -> None:
    assert [int(VIDEO_TASKS[label].prompt()) for label in PAPER] == [1, 2, 3, 3, 3, 3, 3, 3, 0, 1]
    assert VIDEO_TASKS["IPC"].prompt(inpainting_prompt=True) == Prompt.INPAINTING == 4
    assert VIDEO_TASKS["OPC"].prompt(inpainting_prompt=True) == Prompt.OUTPAINTING


def test_mistakes() -> None:
    clip, mask = noise(), torch.ones(16, dtype=torch.bool)
    with pytest.raises(ValueError, match="got 'XY', expected one of FP, FI, OPC"):
        named_task("XY")
    with pytest.raises(ValueError, match="got frames 0, latent_frames None; expected 1 or more"):
        named_task("FP0")
    with pytest.raises(ValueError, match="got 16 frames, 4 token frames; expected more than the 16 that are given"):
        named_task("FI8").condition(clip, CELLS)
    with pytest.raises(ValueError, match="at least 9 token frames"):
        VideoTask(kind=Prompt.FULL_GENERATION, region="latent", latent_frames=9).condition(clip, CELLS)
    with pytest.raises(ValueError, match=r"got clips of size \(8, 32, 32\), expected \(16, 32, 32\) as the cells"):
        VIDEO_TASKS["FP"].condition(clip[:, :, :8], CELLS)
    with pytest.raises(TypeError, match=r"got torch\.uint8, expected floating point values"):
        VIDEO_TASKS["FP"].condition(clip.to(torch.uint8), CELLS)
    with pytest.raises(TypeError, match="got torch.float32, expected bool, True where a pixel is given"):
        condition_from_mask(clip, mask.float(), CELLS)
    with pytest.raises(ValueError, match=r"got shape \(15,\), expected \(16, 32, 32\), \(32, 32\) for all frames"):
        condition_from_mask(clip, mask[:15], CELLS)
    with pytest.raises(ValueError, match="everything is given; expected True at some pixels and not at others"):
        condition_from_mask(clip, mask, CELLS)
    with pytest.raises(ValueError, match="nothing is given"):
        condition_from_mask(clip, ~mask, CELLS)
