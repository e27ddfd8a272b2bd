"""Image to image and mask-free editing; aMUSEd's own numbers are compared in tests/parity."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maskgen.published.amused.editing import OFFICIAL, hidden_places
from maskgen.sampling.settings import Sampling
from maskgen.tasks.image import edit, revise
from maskgen.tasks.pipeline import Pipeline
from tests.support import text_encoder_folder, text_pipeline, tiny_pipeline, toy_pipeline

SIZE = (16, 16)


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    grey = np.random.default_rng(0).integers(0, 256, SIZE, dtype=np.uint8)
    return Image.fromarray(grey).resize((8, 8)).resize(SIZE, Image.Resampling.NEAREST).convert("RGB")


def tokens(pipe: Pipeline, image: Image.Image) -> torch.Tensor:
    return pipe.encode(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255)


def kept(pipe: Pipeline, one: Image.Image, two: Image.Image) -> float:
    """Share of equal tokens; the toy tokenizer is lossless, so tokens of results are those that were decided."""
    return (tokens(pipe, one) == tokens(pipe, two)).float().mean().item()


def test_the_stronger_the_less_stays(picture: Image.Image) -> None:
    pipe = toy_pipeline()
    shares = [
        np.mean(
            [
                kept(pipe, picture, made)
                for made in edit(pipe, picture, strength=strength, label=1, steps=8, seeds=range(4))
            ]
        )
        for strength in (0.125, 0.5, 1.0)
    ]
    assert shares[0] > shares[1] > shares[2]
    # cos(7/8 pi/2) = 0.195 is masked at the start, of which an eighth comes back by chance.
    assert shares[0] > 0.7
    assert shares[2] < 0.4


def test_only_what_was_hidden_is_new(picture: Image.Image) -> None:
    pipe = toy_pipeline()
    (made,) = edit(pipe, picture, strength=0.5, label=1, steps=8, seeds=[5])
    hidden = hidden_places(np.cos(0.5 * np.pi / 2), (1, 64, 1), [5])
    changed = tokens(pipe, picture) != tokens(pipe, made)
    assert changed.any()
    assert not (changed & ~hidden).any()


def test_a_result_depends_on_its_own_seed_alone(picture: Image.Image) -> None:
    pipe = toy_pipeline()
    for task in (edit, revise):
        options = {"label": 2, "guidance": 1.0} | ({"rounds": 3} if task is revise else {})
        together = task(pipe, picture, seeds=[3, 4, 5], **options)  # type: ignore[operator]
        (alone,) = task(pipe, picture, seeds=[4], **options)  # type: ignore[operator]
        assert np.array_equal(together[1], alone)
        assert not np.array_equal(together[0], together[1])


def test_strength_one_masks_everything_and_officially_nothing(picture: Image.Image) -> None:
    pipe = toy_pipeline()
    options = {"strength": 1.0, "label": 1, "steps": 4, "seeds": range(8), "guidance": 0.0}
    sane = edit(pipe, picture, **options)  # type: ignore[arg-type]
    official = edit(pipe, picture, sampling=OFFICIAL["image-to-image"], **options)  # type: ignore[arg-type]
    assert np.mean([kept(pipe, picture, made) for made in sane]) < 0.4
    assert np.mean([kept(pipe, picture, made) for made in official]) > 0.9  # one token a step


def test_a_strength_below_one_step(picture: Image.Image) -> None:
    pipe = toy_pipeline()
    options = {"strength": 0.05, "label": 1, "steps": 4, "seeds": range(6), "guidance": 0.0}
    sane = edit(pipe, picture, **options)  # type: ignore[arg-type]
    assert any(kept(pipe, picture, made) < 1 for made in sane)  # a step is run
    official = edit(pipe, picture, sampling=OFFICIAL["image-to-image"], **options)  # type: ignore[arg-type]
    assert all(kept(pipe, picture, made) == 1 for made in official)


@pytest.mark.parametrize("sampler", ["maskgit", "halton", "maskbit", "amused", "openmuse"])
def test_every_loop(picture: Image.Image, sampler: str) -> None:
    pipe = toy_pipeline()
    made = edit(pipe, picture, label=1, sampling=Sampling(sampler=sampler, steps=6), seeds=range(2))  # type: ignore[arg-type]
    assert [image.size for image in made] == [SIZE, SIZE]
    assert 0.2 < kept(pipe, picture, made[0]) < 1


def test_by_a_text(picture: Image.Image, tmp_path: Path) -> None:
    pipe = text_pipeline(text_encoder_folder(tmp_path))
    texts = ["a red cat", "a blue dog"]
    for red, blue in (
        edit(pipe, picture, prompt=texts, strength=1.0, seeds=[1]),
        revise(pipe, picture, prompt=texts, rounds=20, seeds=[1]),
    ):
        assert not np.array_equal(red, blue)


def test_revising_changes_a_few_tokens_a_round(picture: Image.Image) -> None:
    pipe = toy_pipeline()
    once, often = (revise(pipe, picture, rounds=rounds, label=1, guidance=0.0, seeds=range(4)) for rounds in (1, 40))
    assert np.mean([kept(pipe, picture, made) for made in once]) > 0.8
    assert np.mean([kept(pipe, picture, made) for made in often]) < 0.5
    same = revise(pipe, picture, rounds=1, share=1.0, label=1, guidance=0.0, seeds=[0], sampling=Sampling(steps=1))
    assert kept(pipe, picture, same[0]) < 0.5


def test_the_original_size_and_mode_come_back() -> None:
    picture = Image.new("RGBA", (90, 60), (200, 30, 30, 77))
    (made,) = edit(tiny_pipeline(), picture, label=1, steps=2)
    assert (made.size, made.mode) == ((90, 60), "RGBA")
    assert made.getchannel("A").getextrema() == (255, 255)  # what is repainted can be seen


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": 0.0}, "strength: got 0.0, expected a number over 0"),
        ({"strength": 1.5}, "strength: got 1.5"),
        ({"label": 77}, "label: got 77, expected 0 to 9"),
    ],
)
def test_mistakes(picture: Image.Image, options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        edit(toy_pipeline(), picture, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"rounds": 0}, {"share": 0.0}, {"share": 1.2}])
def test_mistakes_of_revising(picture: Image.Image, options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected 1 or more rounds and a share over 0, at most 1"):
        revise(toy_pipeline(), picture, label=1, **options)  # type: ignore[arg-type]
