"""How much time the sampling loop adds to the bare forwards, and how near the forward is to this machine's matmul peak.

Random weights at the official ImageNet-256 size (24 layers of width 768, 256 tokens, 1,024 codes). Run with
``make bench`` or ``python benchmarks/sampling_speed.py --help``; on a machine with CUDA both devices are measured.
"""

import argparse
import dataclasses
import json
import resource
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from parts.measuring import count_flops, machine, matmul_peak, seconds, sustained_matmul

from maskgen.conditioning import Cond
from maskgen.models.base import MaskedTransformer
from maskgen.models.bert import BertConfig, BertTransformer
from maskgen.models.modern import ModernConfig, ModernTransformer
from maskgen.precision import default_matmul, fast_matmul
from maskgen.sampling.guidance import model_logits
from maskgen.sampling.loop import sample
from maskgen.sampling.settings import Sampling
from maskgen.tasks.image.generation import generate
from maskgen.tasks.model_folder import PipelineConfig
from maskgen.tasks.pipeline import Pipeline
from maskgen.tokenizers.image.vqgan import VQGAN, VQGANConfig

FAMILIES = {"bert": (BertConfig, BertTransformer), "modern": (ModernConfig, ModernTransformer)}


def main() -> None:
    """Measure and print; write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8, help="images at a time")
    parser.add_argument("--steps", type=int, default=8, help="decoding steps")
    parser.add_argument("--repeats", type=int, default=3, help="whole loops measured, each beside its bare forwards")
    parser.add_argument("--layers", type=int, default=24, help="fewer for a quick look; the official size is 24")
    parser.add_argument("--families", nargs="+", default=["bert", "modern"], choices=list(FAMILIES))
    parser.add_argument("--json", type=Path, help="write the numbers here")
    arguments = parser.parse_args()
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    rows = [
        measure(family, device, arguments.batch, arguments.steps, arguments.repeats, arguments.layers)
        for device in devices
        for family in arguments.families
    ]
    rows += [measure_images(device, arguments.batch) for device in devices if arguments.layers == 24]
    if len(devices) == 1:
        print("no CUDA device: only the CPU was measured")
    for row in rows:
        print(json.dumps(row, indent=2))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(
            json.dumps({"machine": machine(), "results": rows}, indent=2) + "\n", encoding="utf-8"
        )


@torch.no_grad()
def measure(family: str, device: str, batch: int, steps: int, repeats: int, layers: int) -> dict[str, Any]:
    """One family on one device.

    Bare forwards, loops and matmuls take turns, so that a machine whose speed drifts is seen by all alike; ratios are
    medians over the turns. On the CPU the share of peak is by processor time, as the peers' figures are.
    """
    config_class, model_class = FAMILIES[family]
    torch.manual_seed(0)
    model: MaskedTransformer = model_class(dataclasses.replace(config_class(), layers=layers)).eval().to(device)
    n_tokens = torch.Size(model.config.axes).numel()
    tokens = torch.full((batch, n_tokens, 1), model.vocab_size, device=device)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    cond = Cond(labels=torch.arange(batch, device=device))
    flops = count_flops(model, tokens[:1], Cond(labels=torch.zeros(1, dtype=torch.long, device=device))) * batch
    forwards, loops, ratios, shares, default_shares = [], [], [], [], []
    with fast_matmul(device):
        model(tokens, cond)  # warm-up
        for repeat in range(repeats):
            seeds = range(repeat * batch, (repeat + 1) * batch)
            used = time.process_time()
            bare = seconds(lambda: [model(tokens, cond) for _ in range(steps)], device)
            used = (time.process_time() - used) / torch.get_num_threads() if device == "cpu" else bare
            rate = flops * steps / used
            loop = seconds(lambda: sample(model_logits(model, cond), tokens, mask, steps=steps, seeds=seeds), device)  # noqa: B023
            forwards.append(bare / steps)
            loops.append(loop)
            ratios.append(loop / bare)
            shares.append(rate / sustained_matmul(device))
            with default_matmul():
                default_shares.append(rate / sustained_matmul(device))
        peak = matmul_peak(device)
    forward, loop = statistics.median(forwards), statistics.median(loops)
    return {
        "family": family,
        "device": device,
        "parameters": sum(p.numel() for p in model.parameters()),
        "batch": batch,
        "steps": steps,
        "tokens": n_tokens,
        "gflop_per_forward": round(flops / 1e9, 1),
        "forward_seconds": round(forward, 4),
        "loop_seconds": round(loop, 4),
        "loop_over_bare_forwards": round(statistics.median(ratios), 4),
        "loop_over_bare_forwards_all": [round(ratio, 4) for ratio in ratios],
        "images_per_second": round(batch / loop, 4),
        "gflops": round(flops / forward / 1e9, 1),
        "share_of_sustained_matmul": round(statistics.median(shares), 3),
        "share_of_sustained_matmul_all": [round(share, 3) for share in shares],
        "share_of_default_matmul": round(statistics.median(default_shares), 3),
        "best_matmul_gflops": round(peak / 1e9, 1),
        "wall_share_of_best_matmul": round(flops / forward / peak, 3),
    }


@torch.no_grad()
def measure_images(device: str, batch: int) -> dict[str, Any]:
    """The official preset from labels to pixels: 24 layers, 8 steps, then the official decoder; random weights."""
    torch.manual_seed(0)
    config = PipelineConfig(signal_size=(256, 256), sampling=Sampling(steps=8))
    pipe = Pipeline(VQGAN(VQGANConfig()), BertTransformer(BertConfig()), config, device)
    tokens: list[torch.Tensor] = []
    whole = seconds(
        lambda: generate(pipe, list(range(batch)), callback=lambda step: tokens.append(step.tokens)), device
    )
    decode = seconds(lambda: pipe.decode(tokens[-1]), device)
    return {
        "preset": "maskgit-imagenet256, random weights",
        "device": device,
        "images": batch,
        "seconds": round(whole, 3),
        "images_per_second": round(batch / whole, 4),
        "decoder_seconds": round(decode, 3),
        "peak_resident_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


if __name__ == "__main__":
    main()
