"""The CIFAR-10 test set scored against its train set: the floor that every reader can compare with.

Real data of the same kind are as good as samples can be, so no generator can be expected below these distances at the same
number of samples (10,000). Two commands, which may as well be typed:

    maskgen train classifier --data maskgen.tasks.evaluation.sets.labelled.SampleImages --data.root TRAIN
    --data.test_root TEST \
        --data.flip true --out OUT/classifier
    maskgen evaluate samples --samples TEST --reference TRAIN \
        --features maskgen.tasks.evaluation.features.classifier.ClassifierFeatures --features.folder OUT/classifier
        --out OUT/classifier-floor

Features are those of a small classifier trained here, because Inception has to be downloaded: with ``--inception FILE``, the
file that torch-fidelity downloads, the floor of published FID comes as well. See ``--help``.
"""

import argparse
from pathlib import Path

from maskgen.tasks.cli import run

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def main() -> None:
    """Train the classifier, if it is not there yet, and write one report for each extractor."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, default=SHARED / "cifar10-train.zip", help="one folder a class inside")
    parser.add_argument("--test", type=Path, default=SHARED / "cifar10-test.zip", help="likewise")
    parser.add_argument("--out", type=Path, default=Path("runs/cifar10-floor"))
    parser.add_argument("--steps", type=int, default=2000, help="of the classifier's training")
    parser.add_argument("--inception", type=Path, help="torch-fidelity's weights of Inception")
    arguments = parser.parse_args()
    classifier = arguments.out / "classifier"
    train(arguments.train, arguments.test, classifier, arguments.steps)
    own = (
        "--features",
        "maskgen.tasks.evaluation.features.classifier.ClassifierFeatures",
        "--features.folder",
        str(classifier),
    )
    floor(arguments.train, arguments.test, arguments.out / "classifier-floor", *own)
    if arguments.inception:
        words = ("--features", "maskgen.tasks.evaluation.features.inception.InceptionFeatures")
        floor(
            *(arguments.train, arguments.test, arguments.out / "inception-floor"),
            *(*words, "--features.weights", str(arguments.inception)),
        )


def train(train_set: Path, test_set: Path, out: Path, steps: int) -> None:
    """The classifier whose features are compared."""
    run(
        [
            *("train", "classifier", "--data", "maskgen.tasks.evaluation.sets.labelled.SampleImages"),
            *("--data.root", str(train_set), "--data.test_root", str(test_set), "--data.flip", "true"),
            *("--settings.steps", str(steps), "--out", str(out)),
        ]
    )


def floor(train_set: Path, test_set: Path, out: Path, *features: str) -> None:
    """The report of one extractor."""
    run(
        [
            *("evaluate", "samples", "--samples", str(test_set), "--reference", str(train_set)),
            *(*features, "--settings.batch_size", "250", "--out", str(out)),
        ]
    )


if __name__ == "__main__":
    main()
