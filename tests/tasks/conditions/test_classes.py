"""What a label means: names before numbers, whole words only, and said when it was not the whole name."""

import dataclasses
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from maskgen.conditioning import NO_LABEL
from maskgen.models.modern import ModernConfig, ModernTransformer
from maskgen.tasks.conditions.classes import (
    check_class_order,
    class_id,
    class_places,
    imagenet_classes,
    label_list,
    split_labels,
)
from maskgen.tasks.model_folder import PipelineConfig
from maskgen.tasks.pipeline import Pipeline
from maskgen.tokenizers.image.toy import ToyTokenizer, ToyTokenizerConfig

# Ids that other people's code and papers use.
KNOWN = {
    0: "tench",
    1: "goldfish",
    207: "golden retriever",
    388: "giant panda",
    817: "sports car",
    999: "toilet tissue",
}


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    model = ModernTransformer(ModernConfig(vocab_size=4, num_classes=1000, axes=(4, 4), width=16, layers=1, heads=2))
    config = PipelineConfig(signal_size=(8, 8), class_names=imagenet_classes())
    return Pipeline(ToyTokenizer(ToyTokenizerConfig()), model, config, "cpu")


def test_names_are_in_the_order_of_the_ids() -> None:
    names = imagenet_classes()
    assert len(names) == 1000
    assert {number: names[number] for number in KNOWN} == KNOWN
    assert all(name and "," not in name for name in names)  # commas separate labels on the command line


def test_every_name_finds_its_class_or_its_namesakes(pipe: Pipeline) -> None:
    names = imagenet_classes()
    folded = [name.casefold() for name in names]
    for number, name in enumerate(names):
        if names.count(name) == 1:
            assert pipe.class_ids(name) == [number]
        if folded.count(name.casefold()) == 1:
            assert pipe.class_ids(name.upper()) == [number]
        else:
            with pytest.raises(ValueError, match=rf"it could be .*{name} \({number}\)"):
                pipe.class_ids(name.upper())


def test_parts_of_names(pipe: Pipeline) -> None:
    assert pipe.class_ids(["golden retriever", "Giant Panda", "388"]) == [207, 388, 388]
    assert pipe.class_ids("tench") == [0]
    with pytest.raises(ValueError, match=r"it could be .*golden retriever \(207\)") as error:
        pipe.class_ids("retriever")
    assert "Labrador retriever (208)" in str(error.value)
    with pytest.raises(ValueError, match=r"it could be ([^,]+ \(\d+\), ){8}\.\.\.$"):
        pipe.class_ids("terrier")
    with pytest.raises(ValueError, match="known: tench, goldfish, .*"):
        pipe.class_ids("qqqqqq")


@pytest.mark.parametrize("piece", ["bed", "flower", "deer"])
def test_a_piece_of_a_word_is_no_label(piece: str, pipe: Pipeline) -> None:
    """Bedlington terrier, cauliflower, Scottish deerhound."""
    with pytest.raises(ValueError, match=f"got '{piece}', expected a number from 0 to 999 or a class name"):
        pipe.class_ids(piece)


def test_namesakes_are_told_apart_by_number(pipe: Pipeline) -> None:
    """Older lists call both the bird and the machine a crane."""
    names = list(imagenet_classes())
    names[134] = names[517] = "crane"
    twins = dataclasses.replace(pipe.config, class_names=tuple(names))
    other = Pipeline(pipe.tokenizer, pipe.transformer, twins, "cpu")
    with pytest.raises(ValueError, match=r"got 'crane', .*; it could be crane \(134\), crane \(517\)$"):
        other.class_ids("crane")
    assert other.class_ids([134, 517]) == [134, 517]


def test_torchvision_is_only_asked_when_needed() -> None:
    import subprocess

    code = "import sys, maskgen.tasks.conditions.classes; print('torchvision' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr


NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        *((3, 3), ("nine", 9), ("FOUR", 4), (" seven ", 7), ("2", 2), ("+5", 5), ("007", 7)),
        *((np.int64(3), 3), (np.uint8(4), 4), (torch.tensor(5), 5), (np.array(6), 6)),
    ],
)
def test_names_and_numbers(label: Any, expected: int) -> None:
    assert class_id(label, 10, NAMES) == expected


@pytest.mark.parametrize(
    ("label", "error", "message"),
    [
        (10, ValueError, "label: got 10, expected 0 to 9"),
        (-1, ValueError, "label: got -1, expected 0 to 9"),
        ("-1", ValueError, "label: got -1, expected 0 to 9"),
        ("--5", ValueError, "label: got '--5', expected a number from 0 to 9 or a class name; known: zero, one"),
        ("²", ValueError, "label: got '²', expected a number from 0 to 9 or a class name"),
        ("1.5", ValueError, "label: got '1.5'"),
        ("", ValueError, "label: got '', expected a number"),
        ("e", ValueError, "known: zero, one, two"),
        ("sevn", ValueError, "the nearest names are seven"),
        (2.0, TypeError, r"label: got 2.0 \(float\), expected a class number \(an integer\) or name"),
        (True, TypeError, "label: got True, expected a class number or name"),
        (torch.tensor(2.0), TypeError, r"\(Tensor\), expected a class number"),
    ],
)
def test_labels_that_are_refused(label: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        class_id(label, 10, NAMES)
    assert "\n" not in str(caught.value)


def test_the_whole_name_wins_and_a_word_is_told() -> None:
    birds = ("House sparrow", "Tree sparrow", "Sparrow")
    assert class_id("sparrow", 3, birds) == 2
    with pytest.warns(UserWarning, match="label: 'HOUSE' is taken as class 0, 'House sparrow'"):
        assert class_id("HOUSE", 3, birds) == 0
    assert [class_id(name, 2, ("crane", "Crane")) for name in ("crane", "Crane")] == [0, 1]
    with pytest.raises(ValueError, match=r"it could be crane \(0\), Crane \(1\)$"):
        class_id("CRANE", 2, ("crane", "Crane"))
    assert class_id("Cafe\u0301", 1, ("Caf\u00e9",)) == 0


FOLDERS = st.sampled_from([[str(n) for n in range(12)], ["2019", "2020", "2021"], [f"{n:02d}" for n in range(1, 13)]])


@given(FOLDERS, st.data())
def test_folders_named_by_numbers(folders: list[str], data: st.DataObject) -> None:
    names = sorted(folders)
    name = data.draw(st.sampled_from(names))
    assert names[class_id(name, len(names), names)] == name
    assert class_id(len(names) - 1, len(names), names) == len(names) - 1
    with pytest.raises(ValueError, match="which is no class; the names are numbers themselves"):
        class_id("77", len(names), names)


def test_lists_of_labels() -> None:
    names = ("tench, Tinca tinca", "cat", "a,b,c")
    assert split_labels("cat,1", names) == ["cat", "1"]
    assert split_labels("tench, tinca tinca,cat, a,b,c", names) == ["tench, tinca tinca", "cat", "a,b,c"]
    assert split_labels(["a", 3]) == ["a", 3]
    assert split_labels(7) == [7]
    for wrong in ("", "cat,,1", ",", "cat,"):
        with pytest.raises(ValueError, match="expected class numbers or names separated by commas"):
            split_labels(wrong, names)
    assert label_list(torch.tensor([1, 2])) == [1, 2]
    assert label_list(np.int64(4)) == [4]


def test_labels_of_a_pipeline(pipe: Pipeline) -> None:
    assert pipe.class_ids((1, 1)) == [1, 1]
    assert pipe.class_ids(np.array([3, 4])) == [3, 4]
    assert pipe.class_ids([]) == []
    assert pipe.class_ids(None) == [NO_LABEL]


WNIDS = tuple(f"n{number:08d}" for number in range(1000))


@pytest.mark.parametrize(
    ("used", "names", "others", "expected"),
    [
        ([0, 2], ("zero", "one", "two"), ("one", "two", "zero"), {0: 2, 2: 1}),
        ([0, 3], (), (), {0: 0, 3: 3}),
        ([1, 1, 0], ("a", "a"), ("a", "a"), {0: 0, 1: 1}),  # equal lists, namesakes or not
        ([2], ("", "", "two"), ("one", "two"), {2: 1}),  # a generated set knows the names of its own classes
        ([2, 10], tuple(map(str, range(12))), tuple(sorted(map(str, range(12)))), {2: 4, 10: 2}),
        ([0, 9], (), tuple(map(str, range(10))), {0: 0, 9: 9}),
        ([0, 9], tuple(map(str, range(10))), (), {0: 0, 9: 9}),
        ([0, 999], (), WNIDS, {0: 0, 999: 999}),
        ([0, 999], imagenet_classes(), WNIDS, {0: 0, 999: 999}),
        ([0, 1], imagenet_classes()[:2], WNIDS, {0: 0, 1: 1}),
        ([5], tuple(map(str, range(1000))), WNIDS, {5: 5}),
    ],
)
def test_classes_of_two_sides(used: list[int], names: tuple[str, ...], others: tuple[str, ...], expected: Any) -> None:
    assert class_places(used, names, others, "made", "real") == expected


@pytest.mark.parametrize(
    ("names", "others"),
    [
        (("Zero", "ONE"), ("one", "zero")),
        (("Caf\u00e9", "b"), ("Cafe\u0301", "b")),
        (("red panda", "b"), ("b", "red_panda")),
    ],
)
def test_names_that_are_written_otherwise_are_told(names: tuple[str, ...], others: tuple[str, ...]) -> None:
    with pytest.warns(UserWarning, match="classes: of made taken for those of real: '"):
        found = class_places([0, 1], names, others, "made", "real")
    assert sorted(found.values()) == [0, 1]
    assert all(others[place][0].casefold() == names[number][0].casefold() for number, place in found.items())


@pytest.mark.parametrize(
    ("names", "others", "message"),
    [
        (
            (),
            ("eight", "five"),
            r"made only numbers its classes and real names them \(eight, five\), so which is which",
        ),
        (("five", "eight"), (), r"real only numbers its classes and made names them \(five, eight\)"),
        ((), tuple(sorted(map(str, range(12)))), "made only numbers its classes and real names them"),
        ((), ("01", "02"), "made only numbers its classes and real names them"),
        (
            ("cat", "dog"),
            ("cat", "fox"),
            r"classes: made has dog, which real lacks \(it has cat, fox\); expected the same",
        ),
        (("cat", "dog"), ("cat", "cat", "dog"), "cat is the name of more than one class in made or real"),
        (("cat", "cat"), ("cat", "dog"), "cat is the name of more than one class"),
        (("CAT", "Cat"), ("cat", "dog"), "cat is the name of more than one class"),
        (("CAT", "dog"), ("cat", "Cat", "dog"), "CAT is the name of more than one class"),
        (("tench", "fox"), WNIDS, "made has tench, fox, which real lacks"),
    ],
)
def test_classes_that_do_not_match(names: tuple[str, ...], others: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        class_places([0, 1], names, others, "made", "real")
    assert "\n" not in str(caught.value)


def test_underscores_are_spaces() -> None:
    assert class_id("red_panda", 2, ("red panda", "panda")) == 0
    assert [class_id(name, 2, ("a_b", "a b")) for name in ("a_b", "a b")] == [0, 1]


def test_training_needs_the_same_order() -> None:
    check_class_order(("a", "b"), ("a", "b"), "the data", "the model")
    with pytest.raises(ValueError, match="classes: 'a' is number 0 in the data, but 1 in the model; expected the same"):
        check_class_order(("a", "b"), ("b", "a"), "the data", "the model")
