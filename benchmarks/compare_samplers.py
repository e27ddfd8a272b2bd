"""Every way to sample, side by side in one run: one table, as text, JSON and a plot.

    python benchmarks/compare_samplers.py

Random weights at the official ImageNet-256 size (24 layers of width 768, 1,024 codes) unless told otherwise. For 256 and
1,024 tokens at batch 1, 8 and 64: images a second, latency at batch 1, FLOPs an image, share of the matmul peak, peak
memory. ``--minutes`` bounds the run: every load gets an even share of what is left, every contestant an even share of
that. Who takes part stands in ``contestants.py``. On a machine that other work shares, set OMP_WAIT_POLICY=passive: threads
that wait in a loop for one another would count as processor time.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from parts.comparison import measure_load, verdicts
from parts.comparison_report import Report
from parts.contestants import CONTESTANTS
from parts.goals import GOALS
from parts.loads import Load, Models
from parts.measuring import machine
from parts.meters import square_grid

from maskgen.models.bert import BertConfig

NO_GPU = "no CUDA device: rows in bf16 and with torch.compile were not measured; that code has not run on a GPU yet"


def main(words: Sequence[str] | None = None) -> None:
    """Measure, print, and write the three files."""
    arguments = _parser().parse_args(words)
    taking_part = [contestant for contestant in CONTESTANTS if contestant.name in arguments.contestants]
    report = Report(machine=machine(), settings=_settings(arguments), contestants=taking_part)
    if not torch.cuda.is_available():
        report.remarks.append(NO_GPU)
    loads = _loads(arguments)
    ends = time.monotonic() + 60 * arguments.minutes
    models = None
    for index, load in enumerate(loads):
        if models is None or _weights(models.load) != _weights(load):
            models = None  # before the next are made: two sets at once may not fit
            models = Models(load)
        minutes = max(0.0, ends - time.monotonic()) / 60 / (len(loads) - index)
        print(f"{load.device}, {load.places:,} tokens, batch {load.batch}: {minutes:.1f} min", flush=True)
        report.rows += measure_load(
            load, taking_part, models, minutes=minutes, turns=arguments.turns, say=lambda line: _remark(report, line)
        )
    report.verdicts = verdicts(report.rows, GOALS)
    print(report.text())
    for path in report.write(arguments.out):
        print(path)


def _parser() -> argparse.ArgumentParser:
    names = [contestant.name for contestant in CONTESTANTS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60, help="for the whole run, about")
    parser.add_argument("--turns", type=int, default=3, help="how often each is measured, where there is time")
    parser.add_argument("--tokens", type=int, nargs="+", default=[256, 1024], help="tokens of an image")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64], help="images at a time")
    parser.add_argument("--steps", type=int, default=8, help="of parallel decoding")
    parser.add_argument("--contestants", nargs="+", default=names, choices=names, metavar="NAME", help="default: all")
    parser.add_argument("--layers", type=int, default=24, help="fewer for a quick look")
    parser.add_argument(
        "--width", type=int, default=768, help="of the transformer; the feed-forward has four times that"
    )
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--vocab", type=int, default=1024, help="codes")
    parser.add_argument("--out", type=Path, default=Path("out/compare_samplers"), help="folder for .md, .json and .svg")
    return parser


def _settings(arguments: argparse.Namespace) -> dict[str, object]:
    told = ("minutes", "turns", "steps", "layers", "width", "heads", "vocab")
    return {name: getattr(arguments, name) for name in told} | {"threads": torch.get_num_threads()}


def _loads(arguments: argparse.Namespace) -> list[Load]:
    """The CPU in float32, and a GPU in bf16 where there is one; small grids first."""
    devices = [("cpu", torch.float32), *([("cuda", torch.bfloat16)] if torch.cuda.is_available() else [])]
    found = []
    for device, dtype in devices:
        for tokens in arguments.tokens:
            config = BertConfig(
                vocab_size=arguments.vocab,
                axes=square_grid(tokens),
                width=arguments.width,
                layers=arguments.layers,
                heads=arguments.heads,
                mlp_width=4 * arguments.width,
                null_class=True,
            )
            found += [
                Load(config=config, batch=batch, steps=arguments.steps, device=device, dtype=dtype)
                for batch in arguments.batches
            ]
    return found


def _weights(load: Load) -> tuple[BertConfig, str]:
    return load.config, load.device


def _remark(report: Report, line: str) -> None:
    """Say it once, however many loads it concerns."""
    if line not in report.remarks:
        report.remarks.append(line)
        print(line, flush=True)


if __name__ == "__main__":
    main()
