"""What reading token shards costs beside a training step: at most 2 % of it.

Shards of random tokens as ``maskgen tokenize`` would write them are read in the random order of training, in this process,
by the very functions that training uses. The step is forward, backward and AdamW of a transformer on this machine's device;
with loader processes (``settings.workers``) reading happens beside it and costs less than what stands here.

    python benchmarks/files/token_reading.py --examples 1000000 --model small
"""

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch.nn import functional as F

from maskgen.checkpoint import write_json
from maskgen.conditioning import Cond
from maskgen.data import training_batches
from maskgen.models.modern import ModernConfig, ModernTransformer
from maskgen.precision import fast_matmul
from maskgen.tasks.data.tokens.cache import write_tokens
from maskgen.tasks.data.tokens.shards import TokenShards, shard_path, shard_stamp

SIZES = {"small": (128, 6, 4, 8), "base": (768, 24, 12, 16)}  # width, layers, heads, side of the grid


def main() -> None:
    """Write shards, read them, take steps, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=200_000)
    parser.add_argument("--shard-size", type=int, default=8192)
    parser.add_argument("--batch-size", type=int, default=64, help="of one process")
    parser.add_argument("--batches", type=int, default=200, help="that are read")
    parser.add_argument("--steps", type=int, default=3, help="that are taken")
    parser.add_argument("--model", choices=sorted(SIZES), default="small")
    parser.add_argument("--folder", type=Path, help="where the shards are written (and deleted again)")
    chosen = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    side = SIZES[chosen.model][3]
    folder = Path(tempfile.mkdtemp(dir=chosen.folder))
    try:
        size = write(folder, chosen.examples, chosen.shard_size, side * side)
        reading = read(folder, chosen.batch_size, chosen.batches)
    finally:
        shutil.rmtree(folder)
    step = train(chosen.model, chosen.batch_size, chosen.steps, device)
    place = torch.cuda.get_device_name() if device.type == "cuda" else f"cpu, {torch.get_num_threads()} thread(s)"
    print(
        f"{chosen.examples} examples of {side * side} tokens in {size / 1e6:.0f} MB of shards, {chosen.batch_size} a batch"
    )
    print(f"reading {reading * 1e3:.2f} ms a batch, a step of the {chosen.model} model {step * 1e3:.1f} ms on {place}")
    print(f"share {reading / step:.2%}, {'within' if reading <= 0.02 * step else 'ABOVE'} 2 %")


def write(folder: Path, examples: int, shard_size: int, tokens: int) -> int:
    """Shards of random tokens; returns their bytes."""
    description = {"tokenizer": "none", "modality": "image", "signal_size": [1, 1], "class_names": [], "views": 1}
    write_json(
        folder / "tokens.json", description | {"shard_size": shard_size, "train": examples, "test": 0, "complete": True}
    )
    generator = torch.Generator().manual_seed(0)
    for number, first in enumerate(range(0, examples, shard_size)):
        count = min(shard_size, examples - first)
        ids = torch.randint(0, 1024, (count, tokens, 1), generator=generator)
        labels = torch.randint(0, 1000, (count,), generator=generator)
        stamp = shard_stamp("none", "random")
        write_tokens(
            {"tokens": ids, "labels": labels}, shard_path(folder, "train", number), vocab_size=1024, metadata=stamp
        )
    return sum(path.stat().st_size for path in folder.iterdir())


def read(folder: Path, batch_size: int, batches: int) -> float:
    """Median seconds of a batch, after every shard has been opened once."""
    source = TokenShards(folder).train()
    for first in range(0, len(source), source.size):
        source.batch([first], [0])
    stream = training_batches(source, batch_size=batch_size, seed=0, stop=batches + 1)
    next(stream)  # draws the order of the epoch
    taken = []
    for _ in range(batches):
        started = time.perf_counter()
        next(stream)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def train(name: str, batch_size: int, steps: int, device: torch.device) -> float:
    """Seconds of the fastest step, bf16 on a GPU."""
    width, layers, heads, side = SIZES[name]
    config = ModernConfig(vocab_size=1024, num_classes=1000, axes=(side, side), width=width, layers=layers, heads=heads)
    model = ModernTransformer(config).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), fused=device.type == "cuda")
    ids = torch.randint(0, 1025, (batch_size, side * side, 1), device=device)
    cond = Cond(labels=torch.randint(0, 1000, (batch_size,), device=device))
    taken = []
    with fast_matmul(device):
        for _ in range(steps + 1):
            started = time.perf_counter()
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                logits = model(ids, cond)
            F.cross_entropy(logits.float().flatten(0, 2), ids.clamp(max=1023).flatten()).backward()
            optimizer.step()
            optimizer.zero_grad()
            if device.type == "cuda":
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - started)
    return min(taken[1:])


if __name__ == "__main__":
    main()
