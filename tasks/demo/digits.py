"""``maskgen demo``: the reference task from nothing, on real handwritten digits, in minutes on a CPU.

The two training stages run through the very command line that trains ImageNet, with two YAML files; then the model
generates, inpaints, outpaints and swaps classes, and is measured. Interrupted, it goes on; finished stages are reused.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskgen.data import TensorSource
from maskgen.tasks.data.images.digits import Digits
from maskgen.tasks.demo.figures.digits import plot_digits
from maskgen.tasks.demo.stages import Demo, say
from maskgen.tasks.evaluation.features.base import pixel_features
from maskgen.tasks.evaluation.metrics.manifold import copies
from maskgen.tasks.evaluation.metrics.reconstruction import CodeUse, frame_psnr
from maskgen.tasks.evaluation.metrics.scores import classifier_scores, within_class_variance
from maskgen.tasks.image.generation import generate
from maskgen.tasks.media.images import to_tensor
from maskgen.tasks.media.report import Figure
from maskgen.tasks.pipeline import Pipeline

_INTRODUCTION = (
    "A VQGAN turned 1,437 real handwritten digits into tokens, and a masked-token transformer learned to predict masked "
    "tokens from visible ones. Everything below is that one model: generating is predicting when all tokens are masked, "
    "editing is predicting when some are."
)

_SETS = 2

_NOTES = {
    "cas": "accuracy on real test digits of a classifier trained on generated digits only; mean over the sets",
    "cas_real": "the same classifier trained on the real training digits",
    "cas_over_real": "cas / cas_real; the goal is 0.95 or more",
    "label_agreement": "share of generated digits that the real classifier reads as their own class; goal 0.97 or more",
    "variance_ratio": "within-class variance of 8x8 grey pixels, generated over real; the goal is 0.7 to 1.3",
    "reconstruction_psnr": "dB, tokenizer on test digits: mean over images",
    "reconstruction_variance_ratio": "variance ratio that the tokenizer alone leaves, on training digits",
    "codebook_usage": "share of codes that occur in the training digits",
    "codebook_perplexity": "exp of the entropy of the code frequencies",
    "neighbour_generated_to_train": "median distance of a generated digit to the nearest training digit (8x8 grey pixels)",
    "neighbour_test_to_train": "the same for real test digits: copies would be far nearer than this",
    "copies": "share of generated digits nearer to a training digit than the nearest 1 % of test digits are",
}


def demo(
    *, out: Path = Path("runs/demo"), tokenizer_config: Path | None = None, transformer_config: Path | None = None
) -> None:
    """Train on handwritten digits, generate, edit, measure, and write a report.

    Args:
        out: folder for the model, ``report.html``, ``metrics.json`` and ``pictures/``; run again to go on after a stop.
        tokenizer_config: settings of stage 1 instead of ``configs/demo/digits_tokenizer.yaml``.
        transformer_config: settings of stage 2 instead of ``configs/demo/digits_transformer.yaml``.
    """
    _DEMO.run(out, tokenizer_config, transformer_config)


@dataclass(frozen=True)
class _Made:
    """Real digits, and sets of generated ones with the labels of ``train``."""

    train: TensorSource
    test: TensorSource
    sets: list[Tensor]


def _make(pipe: Pipeline, out: Path) -> _Made:
    data = Digits(size=pipe.config.signal_size[0])
    train, test = data.train(), data.test()
    assert isinstance(train, TensorSource), "digits without shifts are held in memory"
    say(f"demo: generating {_SETS} sets of as many digits as there are training digits")
    labels, count = train.tensors["labels"].tolist(), len(train)
    sets = [to_tensor(generate(pipe, labels, seeds=range(n * count, (n + 1) * count))) for n in range(_SETS)]
    return _Made(train, test, sets)


def _show(pipe: Pipeline, made: _Made, folder: Path) -> list[Figure]:
    return plot_digits(pipe, made.train, made.test, made.sets[0], made.train.tensors["labels"], folder)


def _measure(pipe: Pipeline, found: _Made) -> dict[str, Any]:
    """Every number of ``metrics.json`` but the times.

    360 test digits resolve an accuracy to a third of a percent and two sets of the same model differ by one: hence means.
    """
    train, test, sets = found.train, found.test, found.sets
    labels = train.tensors["labels"].numpy()
    real, held_out = (pixel_features(source.tensors["images"]) for source in (train, test))
    made = [pixel_features(images) for images in sets]
    test_pair = (held_out, test.tensors["labels"].numpy())
    each = [classifier_scores((real, labels), test_pair, (features, labels)) for features in made]
    scores = {name: float(np.mean([one[name] for one in each])) for name in each[0]}
    train_codes = pipe.encode(train.tensors["images"]).cpu()
    rebuilt_train = pixel_features(pipe.decode(train_codes))
    rebuilt = pipe.decode(pipe.encode(test.tensors["images"]))
    use = CodeUse(pipe.tokenizer.vocab_size)
    use.update(train_codes)
    real_variance = within_class_variance(real, labels)
    near = copies(*map(torch.from_numpy, (np.concatenate(made), held_out, real)))
    return {
        **scores,
        "cas_over_real": scores["cas"] / scores["cas_real"],
        "variance_ratio": float(np.mean([within_class_variance(one, labels) for one in made])) / real_variance,
        "reconstruction_psnr": float(frame_psnr(test.tensors["images"], rebuilt).mean()),
        "reconstruction_variance_ratio": within_class_variance(rebuilt_train, labels) / real_variance,
        **{name: metric.value for name, metric in use.metrics().items()},
        "neighbour_generated_to_train": near.generated,
        "neighbour_test_to_train": near.held_out,
        "copies": near.share,
        "generated": len(sets[0]),
        "generated_sets": len(sets),
        "sampling_steps": pipe.config.sampling.steps,
    }


_DEMO = Demo(
    title="maskgen: handwritten digits",
    introduction=_INTRODUCTION,
    notes=_NOTES,
    configs=("digits_tokenizer", "digits_transformer"),
    making="generate",
    make=_make,
    measure=_measure,
    showing="pictures",
    show=_show,
)
