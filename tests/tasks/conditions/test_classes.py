"""ImageNet's class names as labels."""

import dataclasses
import sys

import pytest

from maskgen.models.modern import ModernConfig, ModernTransformer
from maskgen.tasks.conditions.classes import imagenet_classes
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
        if folded.count(name.casefold()) == 1:
            assert pipe.class_ids(name.upper()) == [number]
        else:
            with pytest.raises(ValueError, match=rf"it could be .*{name} \({number}\)"):
                pipe.class_ids(name)


def test_parts_of_names(pipe: Pipeline) -> None:
    assert pipe.class_ids(["golden retriever", "Giant Panda", "388"]) == [207, 388, 388]
    assert pipe.class_ids("tench") == [0]
    with pytest.raises(ValueError, match=r"it could be .*golden retriever \(207\)") as error:
        pipe.class_ids("retriever")
    assert "Labrador retriever (208)" in str(error.value)
    with pytest.raises(ValueError, match=r"it could be ([^,]+ \(\d+\), ){8}\.\.\.$"):
        pipe.class_ids("terrier")
    with pytest.raises(ValueError, match="known: tench, goldfish, .*"):
        pipe.class_ids("unicorn")


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
