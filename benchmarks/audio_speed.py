"""How fast sound becomes tokens and back, and how fast VampNet's full size fills ten seconds of them.

Random weights. Each codec turns ``--seconds`` of noise into tokens and back (real-time factor: time over duration, below 1
is faster than real time). Then the published coarse size (336 M with its LoRA factors, 575 frames = 10 s, 4 codebooks)
runs its sampler beside as many bare forwards. ``python benchmarks/audio_speed.py --help``.
"""

import argparse
import json
import resource
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from parts.measuring import machine, processor_seconds, seconds, sustained_matmul
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from maskgen.conditioning import Cond
from maskgen.precision import default_matmul, fast_matmul
from maskgen.published.vampnet.blocks import VampNetConfig
from maskgen.published.vampnet.sampler import VampNetSampling, sample_vampnet
from maskgen.published.vampnet.transformer import VampNetTransformer
from maskgen.sampling.guidance import model_logits
from maskgen.tokenizers.audio.base import AudioTokenizer
from maskgen.tokenizers.audio.codec import AudioCodec, AudioCodecConfig
from maskgen.tokenizers.published.audio.dac import PUBLISHED as DAC
from maskgen.tokenizers.published.audio.dac import DACTokenizer
from maskgen.tokenizers.published.audio.encodec import EncodecTokenizer, EncodecTokenizerConfig
from maskgen.tokenizers.published.audio.lac import LACConfig, LACTokenizer

CODECS: dict[str, Callable[[], AudioTokenizer]] = {
    "maskgen codec": lambda: AudioCodec(AudioCodecConfig()),
    "encodec_24khz": lambda: EncodecTokenizer(EncodecTokenizerConfig.encodec_24khz()),
    "encodec_48khz": lambda: EncodecTokenizer(EncodecTokenizerConfig.encodec_48khz()),
    "encodec_32khz": lambda: EncodecTokenizer(EncodecTokenizerConfig.encodec_32khz()),
    "dac_16khz": lambda: DACTokenizer(DAC["dac_16khz"]),
    "dac_44khz": lambda: DACTokenizer(DAC["dac_44khz"]),
    "lac": lambda: LACTokenizer(LACConfig()),
}


def main() -> None:
    """Measure and print; write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="of sound for each codec")
    parser.add_argument("--codecs", nargs="*", default=list(CODECS), choices=list(CODECS))
    parser.add_argument("--steps", type=int, default=12, help="decoding steps of the coarse model")
    parser.add_argument(
        "--repeats", type=int, default=2, help="loops measured, each beside its bare forwards; 0 for none"
    )
    parser.add_argument("--layers", type=int, default=20, help="fewer for a quick look; the published size is 20")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    arguments = parser.parse_args()
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    rows = [measure_codec(name, device, arguments.seconds) for device in devices for name in arguments.codecs]
    if arguments.repeats:
        rows += [measure_coarse(device, arguments.steps, arguments.repeats, arguments.layers) for device in devices]
    if len(devices) == 1:
        print("no CUDA device: only the CPU was measured")
    for row in rows:
        print(json.dumps(row, indent=2))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"machine": machine(), "results": rows}, indent=2) + "\n"
        arguments.json.write_text(text, encoding="utf-8")


@torch.no_grad()
def measure_codec(name: str, device: str, length: float) -> dict[str, Any]:
    """Encoding and decoding of one codec at batch 1; the second of two passes counts."""
    torch.manual_seed(0)
    codec = CODECS[name]().eval().to(device)
    signal = torch.randn(1, codec.channels, round(length * codec.sample_rate), device=device) * 0.1
    axes = codec.axes(signal.shape)
    tokens = codec.encode(signal)
    codec.decode(tokens, axes)
    encode = seconds(lambda: codec.encode(signal), device)
    decode = seconds(lambda: codec.decode(tokens, axes), device)
    return {
        "codec": name,
        "device": device,
        "parameters": sum(p.numel() for p in codec.parameters()),
        "sample_rate": codec.sample_rate,
        "channels": codec.channels,
        "codebooks": codec.num_codebooks,
        "frames_per_second": round(float(codec.frame_rate), 3),
        "seconds_of_sound": length,
        "encode_real_time_factor": round(encode / length, 4),
        "decode_real_time_factor": round(decode / length, 4),
        "real_time_factor": round((encode + decode) / length, 4),
    }


@torch.no_grad()
def measure_coarse(device: str, steps: int, repeats: int, layers: int) -> dict[str, Any]:
    """Ten seconds of coarse tokens; loops and bare forwards take turns, for the machine's speed drifts."""
    torch.manual_seed(0)
    model = VampNetTransformer(VampNetConfig(layers=layers)).eval().to(device)
    tokens = torch.full((1, *model.config.axes, model.num_codebooks), model.vocab_size, device=device)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    logits_fn = model_logits(model, Cond())
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # fused kernels are not counted
        model(tokens, Cond())
    flops = counter.get_total_flops()
    inside, loops, rates, shares = [], [], [], []
    with fast_matmul(device):
        model(tokens, Cond())
        for repeat in range(repeats):
            forwards: list[float] = []

            def timed(current: torch.Tensor, step: int, forwards: list[float] = forwards) -> torch.Tensor:
                found: list[torch.Tensor] = []
                forwards.append(seconds(lambda: found.append(logits_fn(current, step)), device))
                return found[0]

            bare = processor_seconds(lambda: [model(tokens, Cond()) for _ in range(steps)], device)
            loop = seconds(
                lambda: sample_vampnet(timed, tokens, mask, VampNetSampling(steps=steps), seeds=[repeat]),  # noqa: B023
                device,
            )
            loops.append(loop)
            inside.append(loop / sum(forwards))
            rates.append(flops * steps / bare)
            with default_matmul():
                shares.append(rates[-1] / sustained_matmul(device))
    return {
        "model": "VampNet coarse, random weights",
        "device": device,
        "parameters": sum(p.numel() for p in model.parameters()),
        "layers": layers,
        "frames": model.config.axes[0],
        "steps": steps,
        "gflop_per_forward": round(flops / 1e9, 1),
        "gflops": round(statistics.median(rates) / 1e9, 1),
        "share_of_default_matmul": round(statistics.median(shares), 3),
        "loop_seconds": round(statistics.median(loops), 3),
        "real_time_factor": round(statistics.median(loops) / 10, 3),
        "loop_over_forwards_inside": round(statistics.median(inside), 4),
        "loop_over_forwards_inside_all": [round(ratio, 4) for ratio in inside],
        "peak_resident_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


if __name__ == "__main__":
    main()
