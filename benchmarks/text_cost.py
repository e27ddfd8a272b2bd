"""What a text costs in the sampling loop: guided text beside guided class, two transformers of the same size.

Random weights of the family ``modern`` at the ImageNet-256 size. Both loops run in turns, the one model told a class, the
other 77 tokens of a text in every fourth block; prompts are encoded before, as every call does. The ratio of the medians,
by processor time and by the clock, is held against a goal of 1.05. ``python benchmarks/text_cost.py --help``.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from parts.measuring import machine, processor_seconds, seconds
from torch import Tensor

from maskgen.conditioning import Cond
from maskgen.models.context import ContextConfig
from maskgen.models.flops import forward_flops
from maskgen.models.modern import ModernConfig, ModernTransformer
from maskgen.precision import fast_matmul
from maskgen.sampling.guidance import Guidance, guided_logits
from maskgen.sampling.loop import sample

GOAL = 1.05


def main() -> None:
    """Measure and print; write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--every", type=int, default=4, help="blocks 0, every, 2 every... look at the text")
    parser.add_argument("--words", type=int, default=77, help="tokens of the text")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the numbers here")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loops = {name: build(name == "text", arguments, device) for name in ("class", "text")}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in loops}
    for turn in range(arguments.turns + 1):
        for name, (run, _) in loops.items():
            measured = processor_seconds(run, device), seconds(run, device)
            if turn:  # the first is for warming up
                times[name].append(measured)
    processor, clock = (
        {name: statistics.median(one[kind] for one in found) for name, found in times.items()} for kind in (0, 1)
    )
    report: dict[str, Any] = {
        "machine": machine(),
        **{name: value for name, value in vars(arguments).items() if name != "json"},
        "processor_seconds": processor,
        "seconds": clock,
        "flops": loops["text"][1] / loops["class"][1],
        "by_processor_time": processor["text"] / processor["class"],
        "by_the_clock": clock["text"] / clock["class"],
        "goal": GOAL,
    }
    print(json.dumps(report, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def build(told: bool, arguments: argparse.Namespace, device: str) -> tuple[Callable[[], Tensor], float]:
    """A guided loop, and the operations of one forward of its model."""
    torch.manual_seed(0)
    batch, text = arguments.batch, ContextConfig(width=768, pooled=768, every=arguments.every)
    config = ModernConfig(
        layers=arguments.layers, width=arguments.width, heads=12, context=text if told else ContextConfig()
    )
    model = ModernTransformer(config).eval().requires_grad_(False).to(device)
    cond = Cond(labels=torch.arange(batch))
    if told:
        null = Cond(context=torch.randn(1, arguments.words, 768).repeat(batch, 1, 1), pooled=torch.randn(batch, 768))
        cond = Cond(context=torch.randn(batch, arguments.words, 768), pooled=torch.randn(batch, 768), null=null)
    count = torch.Size(config.axes).numel()
    tokens = torch.full((batch, count, 1), config.vocab_size, device=device)
    mask, here = torch.ones_like(tokens, dtype=torch.bool), cond.to(device)

    def run() -> Tensor:
        guided = guided_logits(model, here, Guidance(scale=3.0), steps=arguments.steps, axes=config.axes)
        with fast_matmul(device), torch.no_grad():
            return sample(guided, tokens, mask, steps=arguments.steps, seeds=range(batch))

    return run, forward_flops(model, batch)


if __name__ == "__main__":
    main()
