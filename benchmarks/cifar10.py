"""A real run at a small scale: both stages on CIFAR-10 with the committed configs, measured, drawn, written down.

    python benchmarks/cifar10.py --data ../shared/data --out runs/cifar10

Everything goes through the command line; what is finished is not done again, so an interrupted run goes on. At the end
``--out`` holds the model, ``curves.svg``, ``pictures/``, ``evaluation/`` and ``cifar10.md``, whose numbers are those that
other runs of these configs can be held against. Training takes 80 minutes of processor time.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from parts.comparison_report import markdown_table, write_text
from parts.measuring import machine

from maskgen.checkpoint import read_json
from maskgen.data import TensorSource
from maskgen.tasks.cli import run
from maskgen.tasks.data.images.cifar10 import Cifar10
from maskgen.tasks.demo.figures.digits import plot_digits
from maskgen.tasks.image.generation import generate
from maskgen.tasks.media.clock import Clock
from maskgen.tasks.media.images import to_tensor
from maskgen.tasks.media.plots import Curve, Panel, plot_curves, save_plot
from maskgen.tasks.pipeline import Pipeline

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["curves", "main", "read_log"]

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
CONFIGS = Path(__file__).resolve().parents[1] / "configs"
MEASURES = ("fid", "kid", "prdc", "cas", "masked")
CURVES = {  # heading, name of y, file, {label: key}
    "Tokenizer": ("squared error", "tokenizer", {"training": "pixel", "held out": "validation/score"}),
    "Use of the 512 codes": (
        "codes",
        "tokenizer",
        {"perplexity, training": "codebook_perplexity", "perplexity, held out": "validation/codebook_perplexity"},
    ),
    "Transformer": ("loss", "transformer", {"training": "loss", "held out": "validation/score"}),
    "Hidden tokens guessed right": (
        "share",
        "transformer",
        {"training": "accuracy", "held out": "validation/accuracy"},
    ),
}


def main(words: Sequence[str] | None = None) -> None:
    """Train, measure, draw, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED, help="see maskgen.tasks.data.images.cifar10.Cifar10")
    parser.add_argument("--out", type=Path, default=Path("runs/cifar10"))
    parser.add_argument("--tokenizer-config", type=Path, default=CONFIGS / "cifar10_vqgan.yaml")
    parser.add_argument("--transformer-config", type=Path, default=CONFIGS / "cifar10_maskgit.yaml")
    parser.add_argument("--count", type=int, default=10_000, help="generated images that are measured")
    parser.add_argument("--cas-steps", "--judge-steps", type=int, default=600, help="of each classifier's training")
    chosen = parser.parse_args(words)
    out = chosen.out
    clock = Clock(out / "seconds.json")
    data = (f"--data.root={chosen.data}",)
    stages = {
        "train tokenizer": (
            *("train", "tokenizer", f"--config={chosen.tokenizer_config}", *data, f"--out={out / 'tokenizer'}"),
        ),
        "train transformer": (
            *("train", "transformer", f"--config={chosen.transformer_config}", *data),
            *(f"--tokenizer={out / 'tokenizer'}", f"--out={out}"),
        ),
        "train classifier": (
            *("train", "classifier", "--data=maskgen.tasks.data.images.cifar10.Cifar10", *data),
            *(f"--settings.steps={chosen.cas_steps}", f"--out={out / 'classifier'}"),
        ),
        "evaluate": (
            *("evaluate", "model", f"--model={out}", "--data=maskgen.tasks.data.images.cifar10.Cifar10", *data),
            "--features=maskgen.tasks.evaluation.features.classifier.ClassifierFeatures",
            f"--features.folder={out / 'classifier'}",
            f"--settings.count={chosen.count}",
            f"--settings.metrics=[{','.join(MEASURES)}]",
            *(f"--settings.cas.settings.steps={chosen.cas_steps}", "--settings.cas.flip=true"),
            f"--out={out / 'evaluation'}",
        ),
    }
    for name, command in stages.items():
        with clock(name):
            run(list(command))
    with clock("pictures"):
        draw(out, chosen.data)
    save_plot(curves(out), out / "curves.svg")
    write_text(out / "cifar10.md", report(out, clock))
    print(out / "cifar10.md")


def draw(out: Path, root: Path) -> None:
    """Ten images of each class, decoding step by step, reconstructions, edits, and the nearest training images."""
    pipe, data = Pipeline.from_pretrained(out), Cifar10(root, flip=False)
    train, test = (
        TensorSource(**source.batch(range(len(source)), range(len(source)))) for source in (data.train(), data.test())
    )
    labels = torch.arange(100) // 10
    made = to_tensor(generate(pipe, labels.tolist(), seeds=range(100)))
    plot_digits(pipe, train, test, made, labels, out / "pictures")


def read_log(path: Path, key: str) -> list[tuple[float, float]]:
    """Steps and values of one quantity of a ``log.jsonl``, where it was written; only what is above 0."""
    entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [(entry["step"], entry[key]) for entry in entries if entry.get(key, 0) > 0]


def curves(out: Path) -> Figure:
    """All curves of a run, both axes logarithmic."""
    panels = []
    for heading, (name, folder, keys) in CURVES.items():
        log = out / folder / "log.jsonl"
        shown = [Curve(label=label, points=read_log(log, key)) for label, key in keys.items()]
        panels.append(Panel(x="steps", y=name, curves=shown, heading=heading, log=True))
    return plot_curves(panels, "maskgen on CIFAR-10")


def report(out: Path, clock: Clock) -> str:
    """The numbers of a run in Markdown."""
    found: dict[str, Any] = read_json(out / "evaluation" / "evaluation.json")
    logs = {"tokenizer": out / "tokenizer" / "log.jsonl", "transformer": out / "transformer" / "log.jsonl"}
    ends = [
        [stage, key.removeprefix("validation/"), f"{values[-1][1]:.4g}", f"{values[-1][0]:.0f}"]
        for stage, key in (
            ("tokenizer", "validation/psnr"),
            ("tokenizer", "validation/codebook_usage"),
            ("tokenizer", "validation/codebook_perplexity"),
            ("transformer", "validation/score"),
            ("transformer", "validation/accuracy"),
        )
        if (values := read_log(logs[stage], key))
    ]
    floor = found["floor"]
    scores = [
        [name, f"{metric['value']:.4g}", f"{floor[name]['value']:.4g}" if name in floor else ""]
        for name, metric in found["metrics"].items()
    ]
    times = [[name, f"{seconds:.0f}"] for name, seconds in clock.seconds.items()]
    return (
        "\n\n".join(
            (
                f"# CIFAR-10\n\n{json.dumps(machine())}",
                markdown_table(["stage", "held out", "at the end", "step"], ends),
                markdown_table(["measure", "generated", "real test set"], scores),
                markdown_table(["part", "seconds"], times),
            )
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
