"""The video tasks as people call them: what comes back is what was given, the rest depends on seed and condition alone."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from maskgen.sampling.settings import Sampling
from maskgen.tasks.conditions.trained import TrainedTasks, named_task
from maskgen.tasks.conditions.video import VIDEO_TASKS
from maskgen.tasks.pipeline import Pipeline
from maskgen.tasks.video.completion import complete_clips
from maskgen.tasks.video.generation import generate_video
from maskgen.tasks.video.inpainting import inpaint_video
from maskgen.tasks.video.interpolation import interpolate
from maskgen.tasks.video.outpainting import outpaint_video
from maskgen.tasks.video.prediction import predict_frames
from tests.support import toy_pipeline
from tests.tasks.video.toys import CLASS_NAMES, LENGTH, SIDE, Frames, boxes, noise, pipeline, spy_pipeline, tensor

PIPE = pipeline()
BY_CLASS = pipeline(classes=2)
MASK = np.zeros((SIDE, SIDE), bool)
MASK[2:5, 3:7] = True


def calls(pipe: Pipeline, clip: Frames, **options: Any) -> dict[str, list[Frames]]:
    """Every task on one clip."""
    return {
        "predict": predict_frames(pipe, clip[:3], **options),
        "interpolate": interpolate(pipe, clip[:1], clip[-1:], **options),
        "inpaint": inpaint_video(pipe, clip, MASK, **options),
        "outpaint": outpaint_video(pipe, clip, region="central", **options),
    }


def kept(task: str) -> np.ndarray[Any, Any]:
    """Where a result of ``calls`` must be the clip's own pixels: bool ``[T, H, W]``."""
    found = np.zeros((LENGTH, SIDE, SIDE), bool)
    if task == "predict":
        found[:3] = True
    elif task == "interpolate":
        found[[0, -1]] = True
    elif task == "inpaint":
        found[:] = ~MASK
    else:
        found[:, 2:6, 2:6] = True
    return found


def test_what_is_given_comes_back() -> None:
    clip = noise(LENGTH)
    for task, results in calls(PIPE, clip, seeds=[1, 2]).items():
        for result in results:
            assert (result.shape, result.dtype) == (clip.shape, np.uint8), task
            assert (result[kept(task)] == clip[kept(task)]).all(), task
            assert (result != clip).any(), task
        assert (results[0] != results[1]).any(), task


def test_a_result_depends_on_its_seed_alone() -> None:
    clip = noise(LENGTH)
    both, alone = calls(PIPE, clip, seeds=[1, 2]), calls(PIPE, clip, seeds=[2])
    for task, results in both.items():
        assert (results[1] == alone[task][0]).all(), task


def test_what_is_not_given_has_no_part_in_it() -> None:
    clip, other = noise(LENGTH), noise(LENGTH, seed=9)
    for task in ("inpaint", "outpaint"):
        changed = np.where(kept(task)[..., None], clip, other)
        assert (calls(PIPE, clip)[task][0] == calls(PIPE, changed)[task][0]).all(), task


def test_a_model_that_knows_the_clip_restores_it() -> None:
    clip = boxes(7)
    pipe, _ = spy_pipeline(clip)
    for task, (result,) in calls(pipe, clip).items():
        assert (result == clip).all(), task


def test_without_pasting_all_is_the_models() -> None:
    clip, answer = noise(LENGTH), boxes(8)
    pipe, _ = spy_pipeline(answer)
    for task, (result,) in calls(pipe, clip, paste=False).items():
        assert (result == answer).all(), task


def test_clips_come_in_many_forms() -> None:
    clip = noise(4)
    expected = predict_frames(PIPE, clip)[0]
    pictures = [Image.fromarray(frame) for frame in clip]
    for form in (pictures, tuple(pictures), tensor(clip), tensor(clip)[0], tensor(clip).double()):
        assert (predict_frames(PIPE, form)[0] == expected).all()
    clip.flags.writeable = False
    assert (predict_frames(PIPE, clip)[0] == expected).all()
    one = predict_frames(PIPE, clip[:1])[0]
    for form in (clip[0], pictures[0], pictures[:1]):
        assert (predict_frames(PIPE, form)[0] == one).all()
    between = interpolate(PIPE, clip[:1], clip[-1:])[0]
    assert (interpolate(PIPE, pictures[0], clip[3])[0] == between).all()


def test_other_sizes_are_covered_and_their_middle_is_taken() -> None:
    clip = noise(LENGTH)
    wide = np.pad(clip, ((0, 0), (0, 0), (3, 3), (0, 0)))
    for task, (result,) in calls(PIPE, clip).items():
        if task != "inpaint":
            assert (calls_of(task, wide) == result).all(), task
    doubled = clip.repeat(2, axis=1).repeat(2, axis=2)
    found = predict_frames(PIPE, doubled[:3])[0]
    assert found.shape == clip.shape
    assert np.abs(found[:3].astype(int).mean((1, 2)) - clip[:3].astype(int).mean((1, 2))).max() < 4
    mask = np.zeros(wide.shape[1:3], bool)
    mask[:, 3:11] = MASK
    assert (inpaint_video(PIPE, wide, mask)[0] == inpaint_video(PIPE, clip, MASK)[0]).all()
    fine = np.zeros((2 * SIDE, 2 * SIDE), bool)
    fine[7, 7] = True  # a pixel that shows any part of a marked one is painted anew
    made = inpaint_video(PIPE, doubled, fine, paste=True)[0]
    plain = predict_frames(PIPE, doubled)[0]
    changed = (made != plain[:LENGTH]).any((0, 3))
    assert changed.nonzero()[0].tolist() == [3]
    assert changed.nonzero()[1].tolist() == [3]


def calls_of(task: str, clip: Frames) -> Frames:
    if task == "predict":
        return predict_frames(PIPE, clip[:3])[0]
    if task == "interpolate":
        return interpolate(PIPE, clip[:1], clip[-1:])[0]
    return outpaint_video(PIPE, clip, region="central")[0]


def test_any_length() -> None:
    long, short = noise(21), noise(5)
    assert predict_frames(PIPE, long, total=30)[0].shape[0] == 30
    assert predict_frames(PIPE, long)[0].shape[0] == 21 - 4 + LENGTH
    assert predict_frames(PIPE, short, total=6)[0].shape[0] == 6
    assert (predict_frames(PIPE, long, total=30)[0][:21] == long).all()
    for clip in (long, short):
        static = inpaint_video(PIPE, clip, MASK)[0]
        each = inpaint_video(PIPE, clip, np.broadcast_to(MASK, (len(clip), SIDE, SIDE)))[0]
        assert static.shape == clip.shape
        assert (static == each).all()
        assert (static[:, ~MASK] == clip[:, ~MASK]).all()
        for region in ("central", "vertical", "horizontal", "dynamic"):
            assert outpaint_video(PIPE, clip, region=region)[0].shape == clip.shape
        for region in ("central", "dynamic"):
            assert inpaint_video(PIPE, clip, region)[0].shape == clip.shape


@pytest.mark.parametrize("form", ["bool", "white", "ones", "tensor"])
def test_masks_come_in_many_forms(form: str) -> None:
    mask: Any = {
        "bool": MASK,
        "white": MASK.astype(np.uint8) * 255,
        "ones": MASK.astype(np.uint8),
        "tensor": torch.from_numpy(MASK),
    }[form]
    clip = noise(LENGTH)
    assert (inpaint_video(PIPE, clip, mask)[0] == inpaint_video(PIPE, clip, MASK)[0]).all()


@pytest.mark.parametrize("label", ["IPC", "IPD", "OPC", "OPV", "OPH", "OPD"])
def test_regions_by_name_are_the_tasks(label: str) -> None:
    """At the model's length they are the official tasks, token for token."""
    names = {"C": "central", "V": "vertical", "H": "horizontal", "D": "dynamic"}
    clip = noise(LENGTH)
    region = names[label[2]]
    made = inpaint_video(PIPE, clip, region) if label[0] == "I" else outpaint_video(PIPE, clip, region=region)
    expected = complete_clips(PIPE, tensor(clip), label, seeds=[0])
    assert torch.allclose(tensor(made[0]), expected, atol=1 / 500)


def test_the_moving_region_crosses_a_long_clip_once() -> None:
    clip = noise(20)
    made = outpaint_video(PIPE, clip, region="dynamic")[0]
    same = (made == clip).all(3)
    for place in range(20):
        left = round(4 * place / 19)
        assert same[place, :, left : left + 4].all()


def test_outpainting_keeps_the_whole_clip() -> None:
    clip = noise(LENGTH, 4, 4)
    made = outpaint_video(PIPE, clip, left=1, right=3, top=2, bottom=2)[0]
    assert (made[:, 2:6, 1:5] == clip).all()
    portrait = noise(LENGTH, 8, 4)
    assert (outpaint_video(PIPE, portrait)[0][:, :, 2:6] == portrait).all(), "what is left over goes to both sides"
    assert (outpaint_video(PIPE, portrait, right=4)[0][:, :, :4] == portrait).all()
    large = np.full((LENGTH, 32, 32, 3), 100, np.uint8)
    small = outpaint_video(PIPE, large, right=32)[0]
    assert (small[:, 2:6, :4] == 100).all(), "half as large to fit in, and in the middle of the other axis"


def test_outpainting_draws_the_border_outwards() -> None:
    """What the model is shown beyond the clip are its edges, in the clip's own token grid."""
    clip = boxes(2)[:, :4, :4]
    pipe, spy = spy_pipeline(boxes())
    outpaint_video(pipe, clip, right=4, bottom=4)
    padded = np.pad(clip, ((0, 0), (0, 4), (0, 4), (0, 0)), mode="edge")
    expected = pipe.encode(tensor(padded)).view(4, 4, 4)
    shown = spy.seen[0].view(4, 4, 4)
    assert torch.equal(shown[:, :2, :2], expected[:, :2, :2])
    assert int((shown != 4).sum()) == 4 * 2 * 2


def test_classes() -> None:
    clip = noise(LENGTH)
    plain, left, right = (calls(BY_CLASS, clip, label=label) for label in (None, "left", 1))
    for task in plain:
        assert (plain[task][0] != left[task][0]).any(), task
        assert (left[task][0] != right[task][0]).any(), task
    with pytest.raises(ValueError, match="label: got 'up', expected a number from 0 to 1 or a class name"):
        predict_frames(BY_CLASS, clip[:1], label="up")


def test_generating() -> None:
    made = generate_video(BY_CLASS, ["left", "right"])
    assert [clip.shape for clip in made] == [(LENGTH, SIDE, SIDE, 3)] * 2
    assert (generate_video(BY_CLASS, "right", seeds=[1])[0] == made[1]).all()
    assert len(generate_video(BY_CLASS, 1, seeds=range(3))) == 3
    assert [clip.shape[0] for total in (1, 5, 19) for clip in generate_video(PIPE, total=total)] == [1, 5, 19]
    assert (generate_video(PIPE, total=5)[0] == generate_video(PIPE)[0][:5]).all()
    with pytest.raises(ValueError, match="total: got 0, expected at least 1 frame"):
        generate_video(PIPE, total=0)
    with pytest.raises(ValueError, match="got 2 labels, 3 seeds"):
        generate_video(BY_CLASS, [0, 1], seeds=[1, 2, 3])


@pytest.mark.parametrize("label", list(VIDEO_TASKS))
def test_every_task_of_the_paper_on_a_batch(label: str) -> None:
    clips = torch.cat([tensor(noise(LENGTH, seed=seed)) for seed in range(2)])
    made = complete_clips(BY_CLASS, clips, label, label=["left", 1], seeds=[3, 4])
    assert made.shape == clips.shape
    assert made.min() >= 0
    assert made.max() <= 1
    again = complete_clips(BY_CLASS, clips[1:], label, label=1, seeds=[4])
    assert torch.equal(made[1:], again)
    with pytest.raises(ValueError, match=r"clips: got \(2, 3, 8, 8, 8\) and 1 seeds, expected"):
        complete_clips(BY_CLASS, clips, label, seeds=[1])


def test_other_samplers() -> None:
    clip = noise(LENGTH)
    for sampler in ("maskgit", "vampnet", "codebook"):
        settings = Sampling(sampler=sampler, steps=2)  # type: ignore[arg-type]
        for task, (result,) in calls(PIPE, clip, sampling=settings).items():
            assert (result[kept(task)] == clip[kept(task)]).all(), (sampler, task)


def test_steps_are_seen() -> None:
    seen: list[int] = []
    predict_frames(PIPE, noise(3), total=13, context=3, callback=lambda step: seen.append(step.step))
    assert seen == [0, 1, 2] * 2


def test_models_that_learned_other_tasks() -> None:
    clip = noise(LENGTH)
    known = pipeline(names=["OPC", "FP5"])
    predict_frames(known, clip[:5])
    outpaint_video(known, clip, region="vertical")
    for call, what in (
        (lambda: interpolate(known, clip[:1], clip[-1:]), "interpolation"),
        (lambda: inpaint_video(known, clip, MASK), "inpainting"),
        (lambda: generate_video(known), "generate"),
        (lambda: complete_clips(known, tensor(clip), "CG", seeds=[0]), "CG"),
    ):
        with pytest.raises(ValueError, match=f"{what}: this model was trained on OPC, FP5; expected one that was"):
            call()
    generate_video(pipeline(names=["FP"], unconditional=True))
    with pytest.raises(ValueError, match="generating more than the model's 8 frames: this model was trained on CG"):
        generate_video(pipeline(names=["CG"]), total=9)


def test_names_of_tasks() -> None:
    assert named_task("fp5").frames == 5
    assert named_task("CFP").class_conditional
    for wrong, message in (
        ("XY", "got 'XY', expected one of FP, FI"),
        ("FP-5", "got 'FP-5', expected one of"),
        ("FP0", "got frames 0"),
        ("IPC3", "IPC gives no whole frames; leave the number out"),
    ):
        with pytest.raises(ValueError, match=message):
            TrainedTasks(names=(wrong,))


@pytest.mark.parametrize(
    ("frames", "error", "message"),
    [
        (noise(3).astype(np.float32), TypeError, "frames: got float32, expected uint8"),
        (noise(3)[..., :1], ValueError, r"frames: got shape \(3, 8, 8, 1\)"),
        (noise(3)[:0], ValueError, "at least one frame"),
        (torch.zeros(3, 4, 8, 8, dtype=torch.uint8), TypeError, "got a tensor of torch.uint8, expected floating point"),
        (torch.zeros(4, 8, 8, 3), ValueError, r"got a tensor of shape \(4, 8, 8, 3\), expected \[3, T, H, W\]"),
        (torch.full((3, 4, 8, 8), 2.0), ValueError, "got values from 2 to 2, expected 0 to 1"),
        (torch.full((3, 4, 8, 8), torch.nan), ValueError, "got values from nan to nan"),
        ([], ValueError, "at least one"),
        ([1], TypeError, "got int, expected PIL images"),
    ],
)
def test_no_clips(frames: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        predict_frames(PIPE, frames)


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (MASK[:4], ValueError, r"mask: got shape \(4, 8\), expected \(8, 8\) for all frames alike or \(8, 8, 8\)"),
        (np.zeros((SIDE, SIDE), bool), ValueError, "nothing is marked to be painted anew"),
        (np.full((SIDE, SIDE), 100, np.uint8), ValueError, "nothing is marked"),
        (np.ones((SIDE, SIDE), bool), ValueError, "everything is marked, nothing of the video is kept"),
        (MASK.astype(float), TypeError, "mask: got torch.float64, expected bool or uint8"),
        (MASK.tolist(), TypeError, "mask: got list, expected an array or a tensor"),
        ("middle", ValueError, "mask: got 'middle', expected central, dynamic"),
    ],
)
def test_no_masks(mask: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        inpaint_video(PIPE, noise(LENGTH), mask)


def test_other_refusals() -> None:
    clip = noise(LENGTH)
    for options, message in (
        ({}, "outpaint: nothing to add: left, right, top and bottom are 0"),
        ({"left": -1}, "got left -1, right 0"),
        ({"left": 1, "region": "central"}, "got left 1, .* region central; expected pixels of 0 or more, or a region"),
        ({"region": "left"}, "region: got 'left', expected central, vertical, horizontal, dynamic"),
        ({"left": 999}, "would show less than a pixel; add less"),
    ):
        with pytest.raises(ValueError, match=message):
            outpaint_video(PIPE, clip, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="total: got 3, expected more than the 8 frames that are given"):
        predict_frames(PIPE, clip, total=3)
    images = toy_pipeline()
    for call in (
        lambda: predict_frames(images, clip),
        lambda: interpolate(images, clip, clip),
        lambda: inpaint_video(images, clip, MASK),
        lambda: outpaint_video(images, clip, left=1),
        lambda: generate_video(images),
        lambda: complete_clips(images, tensor(clip), "FP", seeds=[0]),
    ):
        with pytest.raises(ValueError, match="needs a video model, but this model's modality is image"):
            call()
    assert BY_CLASS.config.class_names == CLASS_NAMES
