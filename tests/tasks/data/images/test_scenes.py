"""Scenes with captions: what stands in a caption is in the picture, and what training must not see it does not see."""

import random
import re
from collections import Counter
from itertools import product

import pytest
import torch

from maskgen.tasks.data import Scenes
from maskgen.tasks.data.captions import is_captioned
from maskgen.tasks.data.identity import describe
from maskgen.tasks.data.images.scenes import (
    COLOURS,
    GROUNDS,
    PLACES,
    SEEN_WORDS,
    UNSEEN_WORDS,
    Figure,
    Scene,
    describe_scene,
    paint_scenes,
)

COUNT = 300


@pytest.fixture(scope="module")
def data() -> Scenes:
    return Scenes(count=COUNT, test_count=COUNT)


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z0-9-]+", text))


def test_a_tenth_of_the_combinations_is_left_out_and_no_pair_often() -> None:
    out = [one for one in (Figure(d, c, 0, p) for d, c, p in product(range(10), range(5), range(4))) if one.left_out]
    assert len(out) == 20
    for pair in (("digit", "colour"), ("digit", "place"), ("colour", "place")):
        assert max(Counter(tuple(getattr(one, name) for name in pair) for one in out).values()) == 1


def test_training_shows_no_left_out_combination_and_tests_can_ask_for_them(data: Scenes) -> None:
    seen = [figure for scene in data.train().scenes(range(COUNT)) for figure in scene.figures]
    assert {figure.digit for figure in seen} == set(range(10))
    assert not any(figure.left_out for figure in seen)
    assert not any(figure.left_out for scene in data.test().scenes(range(COUNT)) for figure in scene.figures)
    asked = Scenes(test_count=COUNT, left_out=True).test().scenes(range(COUNT))
    assert all(sum(figure.left_out for figure in scene.figures) == 1 for scene in asked)


def test_scenes_have_one_or_two_digits_at_different_places(data: Scenes) -> None:
    scenes = data.train().scenes(range(COUNT))
    assert {len(scene.figures) for scene in scenes} == {1, 2}
    assert all(len({figure.place for figure in scene.figures}) == len(scene.figures) for scene in scenes)


def test_captions_say_what_is_there(data: Scenes) -> None:
    source = data.test()
    numbers = range(COUNT)
    captions = source.captions(numbers, numbers)
    assert is_captioned(source)
    assert data.has_captions
    for scene, caption in zip(source.scenes(numbers), captions, strict=True):
        said = words(caption)
        assert GROUNDS[scene.ground] in said
        for figure in scene.figures:
            assert said & {str(figure.digit), data_names()[figure.digit]}
            assert said & {COLOURS[figure.colour], *SEEN_WORDS[COLOURS[figure.colour]].split()}
            assert PLACES[figure.place].split()[1] in said
    assert len(set(captions)) > 0.9 * COUNT


def data_names() -> tuple[str, ...]:
    return ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def test_words_never_seen_are_in_no_training_caption(data: Scenes) -> None:
    unseen = {word for listed in UNSEEN_WORDS.values() for word in listed.split()}
    known = {word for name, listed in SEEN_WORDS.items() for word in [name, *listed.split()]}
    assert {"crimson", "navy"} <= unseen
    assert not unseen & known
    assert not any(colour in word for word in unseen for colour in COLOURS)
    assert not unseen & set().union(*map(words, data.train().captions(range(COUNT), range(COUNT))))
    captions = Scenes(test_count=COUNT, unseen_words=True).test().captions(range(COUNT), range(COUNT))
    assert all(words(caption) & unseen and not words(caption) & known for caption in captions)


def test_a_share_of_the_colours_stays_untold_in_training_alone(data: Scenes) -> None:
    colours = {word for name, listed in SEEN_WORDS.items() for word in [name, *listed.split()]}

    def told(source: object) -> float:
        captions = source.captions(range(COUNT), range(COUNT))  # type: ignore[attr-defined]
        figures = sum(len(scene.figures) for scene in source.scenes(range(COUNT)))  # type: ignore[attr-defined]
        return sum(sum(word in colours for word in re.findall("[a-z0-9-]+", caption)) for caption in captions) / figures

    assert told(data.train()) == pytest.approx(0.9, abs=0.05)
    assert told(data.test()) == 1


def test_colours_and_silence_leave_the_wording_as_it_is() -> None:
    red, blue = (Scene((Figure(3, colour, 1, 0),), 0) for colour in (0, 1))
    for seed in range(20):
        one, other, silent = (
            describe_scene(scene, random.Random(seed), silent=share).split()
            for scene, share in ((red, 0.0), (blue, 0.0), (red, 1.0))
        )
        changed = [number for number, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1]]
        assert len(changed) in (0, 1)
        assert len(silent) == len(one) - 1


def test_pictures_show_the_scene() -> None:
    scene = Scene((Figure(1, 0, 1, 0), Figure(8, 4, 0, 3)), 2)
    picture = paint_scenes([scene], [[torch.ones(8, 8), torch.ones(8, 8)]], 24)[0]
    wanted = torch.tensor([0.32, 0.16, 0.06])[:, None, None].expand(3, 24, 24).clone()  # brown
    wanted[:, :12, :12] = torch.tensor([1.0, 0.2, 0.2])[:, None, None]  # a big one fills its quarter
    wanted[:, 14:22, 14:22] = 1.0
    torch.testing.assert_close(picture, wanted)


def test_handwriting_is_drawn_by_the_seed_in_training_alone(data: Scenes) -> None:
    def pictures(source: object, seed: int) -> torch.Tensor:
        return source.batch(range(20), [seed] * 20)["images"]  # type: ignore[attr-defined,no-any-return]

    train, test = data.train(), data.test()
    assert pictures(train, 1).shape == (20, 3, 24, 24)
    assert torch.equal(pictures(train, 1), pictures(train, 1))
    assert (pictures(train, 1) != pictures(train, 2)).flatten(1).any(1).sum() > 15
    assert torch.equal(pictures(test, 1), pictures(test, 2))
    assert train.captions(range(20), [1] * 20) == train.captions(range(20), [2] * 20)
    assert not set(map(bytes, (train._strokes * 16).byte().numpy())) & set(
        map(bytes, (test._strokes * 16).byte().numpy())
    )


def test_identity_and_mistakes(data: Scenes) -> None:
    assert describe(data=data) == describe(data=Scenes(count=COUNT, test_count=COUNT))
    assert describe(data=data) != describe(data=Scenes(count=COUNT, test_count=COUNT, seed=1))
    assert data.train().identity() != Scenes(count=COUNT, seed=1).train().identity()
    for wrong, message in (
        ({"size": 36}, "size: got 36, expected a multiple of 24"),
        ({"count": 0}, "got count 0"),
        ({"silent": 1.0}, "silent: got 1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            Scenes(**wrong)  # type: ignore[arg-type]
