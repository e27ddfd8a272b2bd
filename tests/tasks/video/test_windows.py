"""The engine of the video tasks: what each window is shown, how windows follow each other, and what of it all is kept.

Shapes: T frames, t token frames.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from maskgen.conditioning import Cond
from maskgen.models.modern import ModernConfig, ModernTransformer
from maskgen.sampling.commit import Prompt, commit_guided_logits, sample_commit
from maskgen.sampling.guidance import Guidance
from maskgen.sampling.settings import Sampling
from maskgen.tasks.conditions.request import Options, Request
from maskgen.tasks.conditions.trained import TrainedTasks
from maskgen.tasks.conditions.video import VIDEO_TASKS, TokenCells
from maskgen.tasks.media.windows import Piece
from maskgen.tasks.model_folder import PipelineConfig
from maskgen.tasks.pipeline import Pipeline
from maskgen.tasks.video.completion import clip_cells, complete, paste_given, video_request
from maskgen.tasks.video.regions import MemoryMask
from maskgen.tasks.video.source import MemoryFrames
from maskgen.tasks.video.windows import (
    between_pieces,
    context_frames,
    generated_pieces,
    given_ends,
    painted_pieces,
    predicted_pieces,
    predicted_total,
)
from maskgen.tokenizers.magvit2.tokenizer import Magvit2Video, Magvit2VideoConfig
from tests.selections import flat_sampling
from tests.tasks.video.toys import COMMIT, LENGTH, LEVELS, SIDE, boxes, noise, pipeline, spy_pipeline, tensor, tokenizer

SIZE = (SIDE, SIDE)
PLACES = SIDE * SIDE // 4  # tokens of a token frame


class Watched(MemoryFrames):
    """Notes how many frames are read at a time."""

    def __init__(self, clip: Any) -> None:
        super().__init__(clip, SIZE)
        self.most = 0

    def read(self, start: int, stop: int) -> Tensor:
        self.most = max(self.most, stop - start)
        return super().read(start, stop)


def request(pipe: Pipeline, seeds: Sequence[int], **options: Any) -> Request:
    return pipe.request(Options(seeds=seeds, **options))


def joined(pieces: Iterator[Piece]) -> Tensor:
    """All pieces, which must follow each other."""
    found = []
    for start, piece in pieces:
        assert start == sum(part.shape[2] for part in found)
        assert piece.shape[2] > 0
        found.append(piece)
    return torch.cat(found, dim=2)


def close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() < 1e-6)


def test_a_window_is_shown_the_tokens_of_the_padded_clip() -> None:
    pipe, spy = spy_pipeline(boxes())
    clip = tensor(noise(LENGTH, seed=3))
    task = VIDEO_TASKS["FP"]
    complete(pipe, clip, task, request(pipe, [1], sampling=Sampling(sampler="commit", steps=2)))
    condition = task.condition(clip, clip_cells(pipe))
    expected = tokenizer().encode(condition.clip)
    first, second = spy.seen
    known = condition.tokens.flatten()[None, :, None]
    assert torch.equal(first, torch.where(known, expected, LEVELS))
    assert known.sum() == PLACES
    # Later the answer stands where it is decided, and the draft where it is not: known tokens are refined.
    answer = tokenizer().encode(tensor(boxes()))
    assert bool((second == torch.where(known, expected, LEVELS)).logical_or(second == answer).all())
    assert not torch.equal(second, first)
    assert spy.tasks == [[Prompt.FRAME_PREDICTION]] * 2


def test_the_condition_is_refined_by_commit_and_kept_by_the_others() -> None:
    """The model's answer differs from the condition everywhere."""
    answer = boxes(1)
    clip = tensor(255 - answer)
    condition = VIDEO_TASKS["IPC"].condition(clip, clip_cells(pipeline()))
    made = {}
    for sampler in ("commit", "maskgit"):
        pipe, _ = spy_pipeline(answer, sampling=Sampling(sampler=sampler, steps=2))  # type: ignore[arg-type]
        made[sampler] = complete(pipe, clip, VIDEO_TASKS["IPC"], request(pipe, [1]), paste=False)
    hole = ~condition.pixels.expand_as(clip)
    assert close(made["commit"], tensor(answer))
    assert close(made["maskgit"][hole], tensor(answer)[hole])
    kept = tokenizer().decode(tokenizer().encode(condition.clip), pipeline().axes)
    assert close(made["maskgit"][~hole], kept[~hole])


@pytest.mark.parametrize("official", [True, False])
def test_inpaintings_prompt(official: bool) -> None:
    pipe, spy = spy_pipeline(boxes())
    pipe.config = dataclasses.replace(pipe.config, video=TrainedTasks(inpainting_prompt=not official))
    complete(pipe, tensor(noise(LENGTH)), VIDEO_TASKS["IPC"], request(pipe, [1]))
    assert spy.tasks[0] == [Prompt.OUTPAINTING if official else Prompt.INPAINTING]


def test_a_single_task_has_no_prompt() -> None:
    pipe = pipeline(num_tasks=0)
    assert complete(pipe, tensor(noise(LENGTH)), VIDEO_TASKS["FP"], request(pipe, [1])).shape[0] == 1
    few = pipeline(num_tasks=2)
    with pytest.raises(ValueError, match=r"num_tasks 2, expected 5 or more: task 4 is asked of it \(inpainting\)"):
        complete(
            pipeline(num_tasks=2, inpainting_prompt=True), tensor(noise(LENGTH)), VIDEO_TASKS["IPC"], request(few, [1])
        )


def test_going_on_in_windows() -> None:
    """Every window answers with the same clip A; they overlap by two frames, over which they fade."""
    answer = boxes(2)
    pipe, spy = spy_pipeline(answer)
    a, given_frames = tensor(answer)[0], noise(3)
    source = MemoryFrames(given_frames, SIZE)
    made = joined(predicted_pieces(pipe, source, 18, 2, request(pipe, [1])))[0]
    assert made.shape[1] == 18
    assert torch.equal(made[:, :3], tensor(given_frames)[0])  # the given frames, bit for bit
    # Windows begin at frames 1, 7 and 13; of the first, two frames are given.
    expected = torch.cat((tensor(given_frames)[0], a[:, 2:6]), dim=1)
    fade = torch.stack((a[:, 6], (a[:, 7] + a[:, 1]) / 2), dim=1)
    expected = torch.cat((expected, fade, a[:, 2:6], fade, a[:, 2:5]), dim=1)
    assert close(made, expected)
    # Each window is shown the last two frames of the one before, padded by the last of them.
    assert len(spy.seen) == 3
    padded = torch.cat((a[:, 6:], a[:, 7:].expand(-1, 6, -1, -1)), dim=1)[None]
    assert torch.equal(spy.seen[1][:, :PLACES], tokenizer().encode(padded)[:, :PLACES])
    assert bool((spy.seen[1][:, PLACES:] == LEVELS).all())


def test_a_longer_prediction_begins_like_a_shorter_one() -> None:
    pipe = pipeline(names=["FP2"])
    source = MemoryFrames(noise(2), SIZE)
    asked = request(pipe, [1, 2])
    short, long = (joined(predicted_pieces(pipe, source, total, None, asked)) for total in (14, 30))
    assert torch.equal(long[:, :, :12], short[:, :, :12])
    assert not torch.equal(long[:, :, 14:20], long[:, :, 20:26]), "each window has noise of its own"


def test_memory_is_bounded() -> None:
    pipe = pipeline(names=["FP2"])
    source = Watched(noise(200))
    pieces = predicted_pieces(pipe, source, 260, None, request(pipe, [1]))
    assert max(piece.shape[2] for _, piece in pieces) <= 16
    assert source.most <= 16
    source = Watched(noise(40))
    mask = np.zeros((SIDE, SIDE), bool)
    mask[2:5, 2:5] = True
    task = VIDEO_TASKS["IPC"]
    region = MemoryMask(mask, source, SIZE)
    pieces = painted_pieces(pipe, source, region, task, request(pipe, [1]))
    assert max(piece.shape[2] for _, piece in pieces) <= LENGTH
    assert source.most == LENGTH


def test_how_many_frames_are_shown() -> None:
    plain, known = pipeline(), pipeline(names=["FP", "CFP5", "FI2", "IPC"], classes=2)
    assert [context_frames(plain, count) for count in (1, 3, 4, 100)] == [1, 3, 4, 4]
    assert [context_frames(known, count) for count in (1, 3, 5, 100)] == [1, 1, 5, 5]
    assert context_frames(pipeline(names=["FP5"]), 2) == 2
    assert [context_frames(known, count, 7) for count in (3, 100)] == [3, 7]
    for wrong in (0, LENGTH):
        with pytest.raises(
            ValueError, match=f"context: got {wrong}, expected 1 to 7: the model makes clips of 8 frames"
        ):
            context_frames(known, 3, wrong)
    assert [predicted_total(known, count, None, None) for count in (1, 5, 7)] == [8, 8, 10]
    with pytest.raises(ValueError, match="total: got 7, expected more than the 7 frames that are given"):
        predicted_total(known, 7, 7, None)


@settings(max_examples=12)
@given(total=st.integers(3, 120), first=st.integers(1, 20), last=st.integers(1, 20))
def test_any_gap_is_filled(total: int, first: int, last: int) -> None:
    head, tail = noise(first, seed=1), noise(last, seed=2)
    whole = first + last + total
    asked = request(PIPE, [4], sampling=Sampling(sampler="commit", steps=1))
    sources = MemoryFrames(head, SIZE), MemoryFrames(tail, SIZE)
    made = joined(between_pieces(PIPE, *sources, given_ends(PIPE, first, last, whole), asked))
    assert made.shape == (1, 3, whole, SIDE, SIDE)
    assert torch.equal(made[:, :, :first], tensor(head))
    assert torch.equal(made[:, :, -last:], tensor(tail))


PIPE = pipeline()


def test_a_gap_longer_than_the_model_is_spanned_first() -> None:
    """One window over the whole gap, then one for each gap between its eight frames."""
    answer = boxes(3)
    pipe, spy = spy_pipeline(answer)
    head, tail = tensor(noise(1, seed=1)), tensor(noise(1, seed=2))
    sources = MemoryFrames(head, SIZE), MemoryFrames(tail, SIZE)
    made = joined(between_pieces(pipe, *sources, (1, 22), request(pipe, [1])))[0]
    assert len(spy.seen) == 1 + 7
    a = tensor(answer)[0]
    assert torch.equal(made[:, :1], head[0])
    for number in range(1, 7):
        assert close(made[:, 3 * number], a[:, number]), "the frames of the first window are those of the result"
    for place in (4, 5, 7, 8):
        # A gap of three takes the frames of its window at one and two thirds.
        assert close(made[:, place], a[:, [0, 2, 5][place % 3]])


def test_a_short_gap_takes_evenly_spaced_frames() -> None:
    answer = boxes(4)
    pipe, _ = spy_pipeline(answer)
    head, tail = MemoryFrames(noise(1, seed=1), SIZE), MemoryFrames(noise(1, seed=2), SIZE)
    made = joined(between_pieces(pipe, head, tail, (1, 4), request(pipe, [1])))[0]
    assert close(made[:, 1:3], tensor(answer)[0, :, [2, 5]])


def test_how_many_frames_of_each_end_are_shown() -> None:
    known = pipeline(names=["FI", "FI2"])
    assert given_ends(known, 5, 2, None) == (2, 5 + 2 + 4)
    assert given_ends(known, 5, 1, None) == (1, 5 + 1 + 6)
    assert given_ends(known, 5, 2, 11) == (2, 11)
    assert given_ends(known, 5, 2, 12) == (1, 12)
    assert given_ends(pipeline(), 3, 3, None) == (1, 12)
    with pytest.raises(ValueError, match="total: got 4, expected more than the 4 frames that are given"):
        given_ends(known, 2, 2, 4)


def test_windows_of_an_edit_hear_of_each_other() -> None:
    """The overlap is given to the next window as the one before it made it; all else only where it is kept."""
    answer = boxes(5)
    pipe, spy = spy_pipeline(answer)
    clip = noise(14)
    mask = np.zeros((SIDE, SIDE), bool)
    mask[:4] = True
    source = MemoryFrames(clip, SIZE)
    region, task = MemoryMask(mask, source, SIZE), VIDEO_TASKS["IPC"]
    made = joined(painted_pieces(pipe, source, region, task, request(pipe, [1])))[0]
    assert torch.equal(made[:, :, 4:], tensor(clip)[0, :, :, 4:])
    a = tensor(answer)[0, :, :, :4]
    # Windows begin at 0 and 6 and share two frames.
    fade = torch.stack((a[:, 6], (a[:, 7] + a[:, 1]) / 2), dim=1)
    assert close(made[:, :, :4], torch.cat((a[:, :6], fade, a[:, 2:]), dim=1))
    hidden = (spy.seen[1][0, :, 0] == LEVELS).view(pipe.axes)
    assert not hidden[0].any()
    assert hidden[1:, :2].all()
    assert not hidden[1:, 2:].any()


def test_windows_with_nothing_to_paint_are_left_alone() -> None:
    pipe, spy = spy_pipeline(boxes())
    clip, mask = noise(20), np.zeros((20, SIDE, SIDE), bool)
    mask[15, 2, 2] = True
    source = MemoryFrames(clip, SIZE)
    made = joined(painted_pieces(pipe, source, MemoryMask(mask, source, SIZE), VIDEO_TASKS["IPC"], request(pipe, [1])))
    kept = ~torch.from_numpy(mask)
    assert torch.equal(made[0][:, kept], tensor(clip)[0][:, kept])
    assert len(spy.seen) == 1


def test_whole_frames_to_paint() -> None:
    """With frames before and after, what is missing is a fade; with none at all, there is no condition."""
    pipe, spy = spy_pipeline(boxes(6))
    clip, mask = boxes(1), np.zeros((LENGTH, SIDE, SIDE), bool)
    mask[2:6] = True
    source = MemoryFrames(clip, SIZE)
    made = joined(painted_pieces(pipe, source, MemoryMask(mask, source, SIZE), VIDEO_TASKS["IPC"], request(pipe, [1])))[
        0
    ]
    assert close(made[:, 2:6], tensor(boxes(6))[0, :, 2:6])
    assert torch.equal(made[:, :2], tensor(clip)[0, :, :2])
    long = noise(20)
    mask = np.zeros((20, SIDE, SIDE), bool)
    mask[:9] = True
    source = MemoryFrames(long, SIZE)
    list(painted_pieces(pipe, source, MemoryMask(mask, source, SIZE), VIDEO_TASKS["IPC"], request(pipe, [1])))
    assert bool((spy.seen[1] == LEVELS).all())


def test_generating_goes_on_as_a_prediction() -> None:
    pipe, spy = spy_pipeline(boxes())
    made = joined(generated_pieces(pipe, 12, request(pipe, [1])))
    assert made.shape[2] == 12
    assert spy.tasks == [[Prompt.FULL_GENERATION], [Prompt.FRAME_PREDICTION]]
    assert bool((spy.seen[0] == LEVELS).all())


@pytest.mark.parametrize("alone", [False, True])
def test_rows_do_not_depend_on_each_other(alone: bool) -> None:
    pipe = pipeline(alone=alone)
    cells = clip_cells(pipe)
    assert isinstance(cells, TokenCells)
    clips = torch.cat([tensor(noise(cells.size[0], seed=seed)) for seed in range(3)])
    for label in ("FP", "FI", "OPC", "OPD", "IPD"):
        task = VIDEO_TASKS[label]
        whole = complete(pipe, clips, task, request(pipe, [5, 6, 7]))
        one = complete(pipe, clips[1:2], task, request(pipe, [6]))
        assert torch.equal(whole[1:2], one)
        pixels = task.condition(clips, cells).pixels
        assert torch.equal(torch.where(pixels, whole, 0), torch.where(pixels, clips, 0))


def test_guidance() -> None:
    clips = tensor(noise(LENGTH))
    names, guided_by = ["FP", "CG"], flat_sampling(sampler="commit", steps=2, guidance=2.0)
    plain, guided = (
        complete(pipe, clips, VIDEO_TASKS["FP"], request(pipe, [1], sampling=chosen))
        for pipe in [pipeline(names=names, unconditional=True)]
        for chosen in (guided_by.override(guidance=0.0), guided_by)
    )
    assert not torch.equal(plain, guided)
    guided_options = Options(seeds=[1], sampling=guided_by)
    with pytest.raises(ValueError, match=r"guidance: got 2, but this model never saw an example without a condition"):
        video_request(pipeline(names=["FP"]), guided_options, Prompt.FRAME_PREDICTION, "prediction")
    video_request(pipeline(), guided_options, Prompt.FRAME_PREDICTION, "prediction")  # nobody knows


def test_requests_refuse() -> None:
    wrong: tuple[tuple[Pipeline, Options, str], ...] = (
        (PIPE, {"seeds": []}, "got 1 labels, 0 seeds"),
        (PIPE, {"seeds": [-1]}, "seeds: got -1"),
        (pipeline(classes=2), {"seeds": [1, 2, 3], "label": [0, 1]}, "got 2 labels, 3 seeds; expected the same number"),
        (PIPE, {"label": 0}, "no classes"),
        (pipeline(names=["FI"]), {}, "prediction: this model was trained on FI"),
    )
    for pipe, options, message in wrong:
        with pytest.raises(ValueError, match=message):
            video_request(pipe, options, Prompt.FRAME_PREDICTION, "prediction")


def test_putting_pixels_back() -> None:
    made, clip = tensor(noise(4)), tensor(noise(4, seed=1))
    pixels = tensor(noise(4, seed=2))[:, :1] < 0.5
    found, keep = paste_given(made, clip, pixels), pixels.expand_as(clip)
    assert torch.equal(found[keep], clip[keep])
    assert torch.equal(found[~keep], made[~keep])


def test_the_settings_reach_the_loop() -> None:
    """``Pipeline.fill`` with the sampler ``commit`` is ``sample_commit``, all of its settings included."""
    pipe = pipeline(classes=2)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(LEVELS, (2, 64, 1), generator=generator)
    hidden = torch.rand(2, 64, 1, generator=generator) < 0.7
    labels, tasks, seeds = [0, -1], [1, 4], [5, 6]
    numbers = {"steps": 4, "schedule": "exp", "temperature": 0.7, "choice_temperature": 2.0}
    chosen = flat_sampling(sampler="commit", guidance=1.5, guidance_ramp="linear", top_k=3, **numbers)  # type: ignore[arg-type]
    cond = Cond(labels=torch.tensor(labels), task=torch.tensor(tasks))
    logits_fn = commit_guided_logits(
        pipe.transformer, cond, Guidance(scale=1.5, ramp="linear"), steps=4, null_task=Prompt.FULL_GENERATION
    )
    expected = sample_commit(logits_fn, tokens, ~hidden, mask_id=LEVELS, seeds=seeds, keep=chosen.filter, **numbers)  # type: ignore[arg-type]
    request = Request(cond=cond, seeds=seeds, sampling=chosen)
    found = pipe.fill(tokens, hidden, request)
    assert torch.equal(found, expected)
    parts = pipe.fill(tokens, hidden, request, batch_size=1)
    assert torch.equal(parts, expected)
    assert not torch.equal(found[~hidden], tokens[~hidden]), "what is known is decided, too"


def test_decoded_video_is_clamped() -> None:
    class Loud(type(tokenizer())):  # type: ignore[misc]
        def decode(self, tokens: Tensor, axes: Any) -> Tensor:
            return super().decode(tokens, axes) * 3 - 1

    pipe = pipeline()
    pipe.tokenizer = Loud(tokenizer().config)
    made = pipe.decode(torch.arange(64).remainder(LEVELS).view(1, 64, 1))
    assert (made.min(), made.max()) == (0, 1)


def test_several_codebooks_and_a_first_frame_of_its_own() -> None:
    """MAGVIT-v2's tokenizer: two sub-tokens a place, five frames are three token frames."""
    sizes: dict[str, Any] = {"channels": 8, "multipliers": (1, 1), "res_blocks": 1, "token_bits": (2, 2), "groups": 4}
    codec = Magvit2Video(Magvit2VideoConfig(strides=((2, 2, 2),), **sizes))
    config = ModernConfig(
        vocab_size=4, num_codebooks=2, num_classes=0, axes=(3, 4, 4), width=24, layers=1, heads=2, num_tasks=5
    )
    pipe = Pipeline(codec, ModernTransformer(config), PipelineConfig(signal_size=(5, 8, 8), sampling=COMMIT), "cpu")
    source = MemoryFrames(noise(3), SIZE)
    made = joined(predicted_pieces(pipe, source, 9, 2, request(pipe, [1, 2])))
    assert made.shape == (2, 3, 9, 8, 8)
    assert torch.equal(made[:, :, :3], tensor(noise(3)).expand(2, -1, -1, -1, -1))
