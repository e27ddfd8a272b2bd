"""How fast clips are read, become tokens, and are predicted at MAGVIT's sizes, and how much memory that takes.

Random weights. Reading compares ``VideoFile`` (decord's batches, PyAV) with plain loops over frames of a clip that the
script writes itself, or of ``--video``. MAGVIT-B's transformer decides 4 x 16 x 16 tokens in 12 steps beside as many bare
forwards; then one clip of 16 x 128 x 128 goes through the L tokenizer, the L transformer and back.
``python benchmarks/video_speed.py --help``.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from parts.measuring import machine, seconds

from maskgen.conditioning import Cond
from maskgen.models.bert import BertTransformer
from maskgen.precision import fast_matmul
from maskgen.published.magvit import PUBLISHED as TRANSFORMERS
from maskgen.sampling.commit import commit_logits, sample_commit
from maskgen.tasks.conditions.trained import named_task
from maskgen.tasks.conditions.video import TokenCells
from maskgen.tasks.media.video.files import VideoFile, save_video
from maskgen.tokenizers.published.video.magvit import PUBLISHED as TOKENIZERS
from maskgen.tokenizers.video.vq3d import VQ3D


def main(arguments: list[str] | None = None) -> None:
    """Measure and print; write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", type=Path, help="a clip to read instead of one made for the purpose")
    parser.add_argument("--frames", type=int, default=300, help="of the clip that is made")
    parser.add_argument("--repeats", type=int, default=3, help="of each measurement; the median counts")
    parser.add_argument("--steps", type=int, default=12, help="decoding steps")
    parser.add_argument("--size", default="b-and-l", choices=["b-and-l", "b", "none"], help="models to run")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    chosen = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        print("no CUDA device: only the CPU was measured")
    with tempfile.TemporaryDirectory() as folder:
        path = chosen.video or _made(Path(folder) / "clip.mp4", chosen.frames)
        rows: list[dict[str, Any]] = [measure_reading(path, chosen.repeats)]
    if chosen.size != "none":
        rows.append(measure_loop("magvit-ucf101-b", device, chosen.steps, chosen.repeats))
    if chosen.size == "b-and-l":
        rows.append(measure_clip("magvit-ucf101-l", "magvit-ucf101-l", device, chosen.steps))
    for row in rows:
        print(json.dumps(row, indent=2))
    if chosen.json:
        chosen.json.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"machine": machine(), "results": rows}, indent=2) + "\n"
        chosen.json.write_text(text, encoding="utf-8")


def _made(path: Path, frames: int) -> Path:
    """A clip of moving stripes, 240 x 320."""
    down, across = np.mgrid[0:240, 0:320]
    clip = [((down + 2 * across + 5 * number) % 256).astype(np.uint8) for number in range(frames)]
    save_video(np.repeat(np.stack(clip)[..., None], 3, axis=-1), path, 30)
    return path


def measure_reading(path: Path, repeats: int) -> dict[str, Any]:
    """Frames a second of every way to read a whole clip, and every tenth frame of it."""
    import av
    import decord

    def plain_decord() -> None:
        reader = decord.VideoReader(str(path), num_threads=1)
        for number in range(len(reader)):
            reader[number].asnumpy()

    def plain_pyav() -> None:
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                frame.to_ndarray(format="rgb24")

    def ours(step: int, reader: Any) -> Callable[[], None]:
        def read() -> None:
            with VideoFile(path, reader=reader) as file:
                file.read(step=step)

        return read

    with VideoFile(path) as file:
        frames, shape = file.frames, (file.height, file.width)
    ways: dict[str, tuple[Callable[[], None], int]] = {
        "VideoFile, decord": (ours(1, "decord"), frames),
        "VideoFile, PyAV": (ours(1, "pyav"), frames),
        "decord frame by frame": (plain_decord, frames),
        "PyAV frame by frame": (plain_pyav, frames),
        "VideoFile, decord, every tenth": (ours(10, "decord"), -(-frames // 10)),
        "VideoFile, PyAV, every tenth": (ours(10, "pyav"), -(-frames // 10)),
    }
    rates = {}
    for name, (work, count) in ways.items():
        work()
        rates[name] = round(count / statistics.median(seconds(work, "cpu") for _ in range(repeats)))
    return {"reading": path.name, "frames": frames, "height_width": shape, "frames_per_second": rates}


@torch.no_grad()
def measure_loop(name: str, device: str, steps: int, repeats: int) -> dict[str, Any]:
    """Tokens a second of COMMIT's loop; loops and bare forwards take turns, for the machine's speed drifts."""
    torch.manual_seed(0)
    model = BertTransformer(TRANSFORMERS[name]).eval().to(device)
    tokens = torch.zeros(1, torch.Size(model.config.axes).numel(), 1, dtype=torch.long, device=device)
    known = torch.zeros_like(tokens, dtype=torch.bool)
    known[:, : known.shape[1] // 4] = True
    cond = Cond(labels=torch.zeros(1, dtype=torch.long, device=device))
    shape = {"mask_id": model.vocab_size, "steps": steps, "seeds": [0]}
    loops, forwards = [], []
    with fast_matmul(device):
        model(tokens, cond)
        for _ in range(repeats):
            forwards.append(seconds(lambda: [model(tokens, cond) for _ in range(steps)], device))
            loops.append(seconds(lambda: sample_commit(commit_logits(model, cond), tokens, known, **shape), device))
    loop = statistics.median(loops)
    return {
        "transformer": name,
        "device": device,
        "parameters": sum(p.numel() for p in model.parameters()),
        "axes": model.config.axes,
        "steps": steps,
        "loop_seconds": round(loop, 3),
        "tokens_per_second": round(tokens.numel() / loop, 1),
        "loop_over_bare_forwards": round(statistics.median(a / b for a, b in zip(loops, forwards, strict=True)), 3),
        "peak_resident_mb": _peak_mb(),
    }


@torch.no_grad()
def measure_clip(tokenizer_name: str, transformer_name: str, device: str, steps: int) -> dict[str, Any]:
    """One clip: the condition through the tokenizer, all tokens decided, and back to frames."""
    torch.manual_seed(0)
    tokenizer = VQ3D(TOKENIZERS[tokenizer_name]).eval().to(device)
    model = BertTransformer(TRANSFORMERS[transformer_name]).eval().to(device)
    clip = torch.rand(1, 3, 16, 128, 128, device=device)
    condition = named_task("FP5").condition(clip, TokenCells.of(tokenizer, clip.shape))
    axes = tokenizer.axes(clip.shape)
    known = condition.tokens.flatten()[None, :, None]
    cond = Cond(labels=torch.zeros(1, dtype=torch.long, device=device))
    found: dict[str, torch.Tensor] = {}

    def decide() -> None:
        logits_fn = commit_logits(model, cond)
        found["tokens"] = sample_commit(
            logits_fn, found["condition"], known, mask_id=model.vocab_size, steps=steps, seeds=[0]
        )

    with fast_matmul(device):
        encode = seconds(lambda: found.update(condition=tokenizer.encode(condition.clip)), device)
        loop = seconds(decide, device)
        decode = seconds(lambda: found.update(clip=tokenizer.decode(found["tokens"], axes)), device)
    assert found["clip"].shape == clip.shape
    return {
        "clip": "16 x 128 x 128, 5 frames given",
        "device": device,
        "parameters": [sum(p.numel() for p in part.parameters()) for part in (tokenizer, model)],
        "steps": steps,
        "encode_seconds": round(encode, 2),
        "decide_seconds": round(loop, 2),
        "decode_seconds": round(decode, 2),
        "peak_resident_mb": _peak_mb(),
    }


def _peak_mb() -> int:
    """Largest resident memory of this process so far; on CUDA, the largest that torch held there."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / (1 << 20))
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


if __name__ == "__main__":
    main()
