"""How fast stage 2 trains: tokens and images a second, use of the device (MFU), waiting for data, memory, stalls of saving.

Both families at 24 layers of width 768 on 16 x 16 tokens, random tokens, the trainer itself. Beside each row the forward and
backward pass alone, as a share of the best matrix product. On a CPU: float32, a few steps; on CUDA: bf16 with and without
``torch.compile``, and with gradient checkpointing. Run it on a quiet machine:
``python benchmarks/training_speed.py --json benchmarks/reports/<date>-training.json`` (under 10 minutes on two cores).
"""

import argparse
import dataclasses
import json
import resource
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from parts.measuring import machine, matmul_peak, seconds

from maskgen.data import TensorSource
from maskgen.models.base import MaskedTransformer
from maskgen.models.bert import BertConfig, BertTransformer
from maskgen.models.flops import training_flops
from maskgen.models.modern import ModernConfig, ModernTransformer
from maskgen.objectives.masked import MaskedModeling, MaskingSettings
from maskgen.precision import fast_matmul
from maskgen.training.heap import kept_heap
from maskgen.training.settings import TrainSettings
from maskgen.training.trainer import Trainer

DEFAULT_INTERVAL = TrainSettings().checkpoint_every


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """What is measured once."""

    family: str
    precision: str = "no"
    compile: bool = False
    gradient_checkpointing: bool = False


CPU_ROWS = [Row(family=family) for family in ("bert", "modern")]
CUDA_ROWS = [
    Row(family=family, precision="bf16", compile=compiled, gradient_checkpointing=checkpointed)
    for family in ("bert", "modern")
    for compiled, checkpointed in ((False, False), (True, False), (True, True))
]


def main(arguments: list[str] | None = None) -> None:
    """Measure and print; write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--side", type=int, default=16, help="of the token grid")
    parser.add_argument("--batch", type=int, help="images a step; 256 on CUDA, 4 on a CPU if left out")
    parser.add_argument("--steps", type=int, help="measured steps; 50 on CUDA, 5 on a CPU if left out")
    parser.add_argument("--family", choices=["bert", "modern"], action="append", help="one of them only")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    chosen = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        print("no CUDA device: only the CPU was measured")
    chosen.batch = chosen.batch or (256 if device == "cuda" else 4)
    chosen.steps = chosen.steps or (50 if device == "cuda" else 5)
    results = []
    for row in CUDA_ROWS if device == "cuda" else CPU_ROWS:
        if chosen.family and row.family not in chosen.family:
            continue
        results.append(measure(row, chosen, device))
        print(json.dumps(results[-1], indent=2))
    if chosen.json:
        chosen.json.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"machine": machine(), "results": results}, indent=2) + "\n"
        chosen.json.write_text(text, encoding="utf-8")


def build(family: str, sizes: Any) -> MaskedTransformer:
    """A model of the chosen sizes, without dropout: what is timed is what an MFU counts."""
    torch.manual_seed(0)
    axes = (sizes.side, sizes.side)
    plain = {"axes": axes, "width": sizes.width, "layers": sizes.layers, "heads": sizes.heads, "dropout": 0.0}
    if family == "bert":
        return BertTransformer(BertConfig(**plain, mlp_width=4 * sizes.width, null_class=True))
    return ModernTransformer(ModernConfig(**plain))


def measure(row: Row, sizes: Any, device: str) -> dict[str, Any]:
    """One row: the trainer's own numbers, then the passes alone."""
    model = build(row.family, sizes)
    source = TensorSource(
        tokens=torch.randint(model.vocab_size, (4 * sizes.batch, sizes.side**2, 1)),
        labels=torch.randint(model.num_classes, (4 * sizes.batch,)),
    )
    warmup = 3 if device == "cuda" else 1
    settings = TrainSettings(
        **{"steps": warmup + sizes.steps, "batch_size": sizes.batch, "log_every": 1, "tracker": None},
        **{"validate_every": 0, "show_every": 0, "checkpoint_every": 0, "mixed_precision": row.precision},
        **{"compile": row.compile, "gradient_checkpointing": row.gradient_checkpointing},
    )
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(MaskedModeling(model, MaskingSettings()), source, settings, Path(folder))
        trainer.fit()
        log = (Path(folder) / "log.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in log.splitlines()][warmup:]
    AcceleratorState._reset_state(reset_partial_state=True)  # the next row may have another precision

    def median(name: str) -> float:
        return statistics.median(line[name] for line in lines)

    step = sizes.batch / median("examples_per_second")
    result = {
        **dataclasses.asdict(row),
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "batch": sizes.batch,
        "tokens_per_second": median("tokens_per_second"),
        "images_per_second": median("examples_per_second"),
        "mfu": median("mfu"),
        "data_wait": median("data_wait"),
        "step_seconds": step,
        "peak_memory_gib": _peak_memory(device),
        # The only checkpoint of this run, as if one came every ``checkpoint_every`` steps.
        "save_stall_seconds": trainer.state.stalled,
        "save_stall_share": trainer.state.stalled / (trainer.state.stalled + step * DEFAULT_INTERVAL),
    }
    if not row.compile:
        result |= passes_alone(build(row.family, sizes).to(device), source, sizes.batch, row.precision, device)
    return result


def passes_alone(
    model: MaskedTransformer, source: TensorSource, batch: int, precision: str, device: str
) -> dict[str, Any]:
    """Forward and backward pass with the loss, no optimiser: share of the best matrix product of the same precision."""
    objective = MaskedModeling(model.train(), MaskingSettings())
    examples = {name: tensor.to(device) for name, tensor in source.batch(range(batch), range(batch)).items()}

    def work() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            loss, _ = objective.loss("model", {"model": model}, examples, 0)
        loss.backward()
        model.zero_grad()

    turns = []
    with fast_matmul(device), kept_heap(device):  # as the trainer
        work()
        for _ in range(5):  # each beside its product: a shared machine is faster in one minute than in the next
            alone = seconds(work, device)
            peak = _bf16_peak() if precision == "bf16" and device == "cuda" else matmul_peak(device)
            turns.append((training_flops(model, batch) / alone / peak, alone, peak))
    share, alone, peak = statistics.median_low(turns)
    return {
        "passes_seconds": alone,
        "matmul_peak": peak,
        "passes_share_of_matmul_peak": share,
        "passes_shares": sorted(each for each, _, _ in turns),
    }


def _bf16_peak() -> float:
    a = torch.ones(8192, 8192, device="cuda", dtype=torch.bfloat16)
    return max(2 * 8192**3 / seconds(lambda: torch.mm(a, a), "cuda") for _ in range(10))


def _peak_memory(device: str) -> float:
    """Of the GPU since the row began; of a CPU process since it started, which the largest row so far decides."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
