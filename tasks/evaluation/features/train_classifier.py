"""``maskgen train classifier``: a small convolutional classifier on an image data set, through the house's one loop.

Shapes: B batch, H W pixels, C classes.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskgen.data import Batch, Source, draw_numbers
from maskgen.tasks.data.base import ImageData
from maskgen.tasks.evaluation.features.classifier import Classifier, ClassifierConfig
from maskgen.tasks.training.runs import Say, run_stage
from maskgen.training.objective import Objective
from maskgen.training.optim.optimizers import OptimizerSettings
from maskgen.training.settings import TrainSettings

CLASSIFIER_SETTINGS = TrainSettings(
    steps=2000,
    batch_size=128,
    optimizer=OptimizerSettings(lr=1e-3, warmup_steps=200, weight_decay=0.05),
    ema_decay=0.99,
    seed=0,
    validate_every=1000,
    show_every=0,
    tracker=None,
)
"""How a classifier is trained unless told otherwise: a quarter of an hour on two cores for images of 32 x 32."""

_SIZES = ClassifierConfig()

_HELD_OUT = 10_000  # examples that validation looks at, at most


class ClassifierTraining(Objective):
    """Cross-entropy of the classes. Batches hold ``images`` float ``[B, 3, H, W]`` in [0, 1] and ``labels`` long ``[B]``.

    Args:
        model: what is trained.
        held_out: examples for validation.
        label_smoothing: share of the target that all classes get.
    """

    def __init__(self, model: Classifier, held_out: Source | None = None, label_smoothing: float = 0.1) -> None:
        super().__init__(model)
        self.held_out, self.label_smoothing = held_out, label_smoothing

    def loss(
        self, network: str, modules: Mapping[str, nn.Module], batch: Batch, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``maskgen.training.trainer.Objective``; terms: ``accuracy``."""
        logits, labels = modules["model"](batch["images"]), batch["labels"]
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        return loss, {"accuracy": (logits.detach().argmax(1) == labels).float().mean()}

    def units(self, batch: Batch) -> int:
        """Images in the batch."""
        return len(batch["images"])

    @torch.no_grad()
    def validate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Held-out loss without smoothing (``score``) and accuracy."""
        if self.held_out is None:
            return {}
        numbers, totals = draw_numbers(len(self.held_out), _HELD_OUT), torch.zeros(2)
        for first in range(0, len(numbers), 256):
            indices = numbers[first : first + 256]
            batch = self.held_out.batch(indices, indices)
            logits, labels = model(batch["images"].to(device)).float().cpu(), batch["labels"]
            right = (logits.argmax(1) == labels).sum()
            totals += torch.stack((F.cross_entropy(logits, labels, reduction="sum"), right.float()))
        return {"score": float(totals[0]) / len(numbers), "accuracy": float(totals[1]) / len(numbers)}


def train_classifier(
    *,
    data: ImageData,
    out: Path,
    classifier: ClassifierConfig = _SIZES,
    settings: TrainSettings = CLASSIFIER_SETTINGS,
    again: bool = False,
    say: Say = print,
) -> Path:
    """Train an image classifier, for features of your own data and for the classification accuracy score.

    Args:
        data: labelled images.
        out: folder of the run, which becomes the classifier's folder; an interrupted run goes on, a finished one is reused.
        classifier: its sizes; classes and image size are those of the data.
        settings: how long and how wide.
        again: train anew even if ``out`` holds a run; that one is moved into ``earlier-1`` beside the new one's files.
        say: told what happens.

    Returns:
        ``out``.

    Raises:
        ValueError: fewer than two classes, sizes that are not the data's, or ``out`` holds another run.
    """
    classes, size = len(data.class_names), (data.size[0], data.size[1])
    if classes < 2:
        raise ValueError(
            f"data: got {classes} class(es), expected at least 2: images in one sub-folder a class, for instance"
        )
    given = classifier
    if given.num_classes not in (0, classes) or tuple(given.size) not in ((0, 0), size):
        raise ValueError(
            f"classifier: got {given.num_classes} classes of images {tuple(given.size)}, but the data have {classes} of "
            f"{size}; leave both out"
        )
    config = dataclasses.replace(given, num_classes=classes, size=size)

    def make() -> tuple[Objective, Source]:
        return ClassifierTraining(Classifier(config), data.test()), data.train()

    run_stage(out, "classifier", {"classifier": config, "data": data, "settings": settings}, make, again=again, say=say)
    return out
