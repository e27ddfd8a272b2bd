"""What training takes on 1 to 512 GPUs: memory of each, bytes that each sends, seconds of a step; for docs/scaling.md.

Weights, gradients, Adam's moments and averages are counted from the model's sizes; what autograd keeps is measured on small
models of the same proportions, by hooks, and scaled; ``--check`` compares both with a training on this machine.
``python benchmarks/scaling_plan.py`` prints the tables, ``--check`` the comparison (seconds on one core).

Shapes: P parameters, N GPUs, B images a GPU, S sequence, D width, L layers.
"""

import argparse
import dataclasses
import tempfile
from functools import cache
from pathlib import Path

import torch

from maskgen.conditioning import Cond
from maskgen.data import TensorSource
from maskgen.models.bert import BertConfig, BertTransformer
from maskgen.models.flops import training_flops
from maskgen.objectives.loss import masked_cross_entropy
from maskgen.objectives.masked import MaskedModeling, MaskingSettings
from maskgen.training.distributed.blocks import blocks_of, checkpoint_blocks
from maskgen.training.optim.averaging import local
from maskgen.training.settings import TrainSettings
from maskgen.training.trainer import Trainer

SIZES = {
    "170 M": (24, 768),
    "0.3 B": (24, 1024),
    "0.6 B": (28, 1280),
    "1 B": (36, 1536),
    "2 B": (40, 2048),
    "3 B": (48, 2304),
}
GPUS = (1, 8, 64, 512)
FLOAT, HALF = 4, 2
MFU, PEAK = 0.45, 989e12  # of an H100 or H200 in bf16, and what is hoped for
NVLINK, NETWORK = 450e9, 50e9  # bytes a second and GPU, one way: inside a machine of 8; 400 Gb/s a GPU between machines


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """A training: ``gpus`` of ``images`` each, with or without sharding and gradient checkpointing, in bf16 autocast."""

    layers: int
    width: int
    gpus: int
    images: int = 32
    side: int = 16
    sharded: bool = False
    checkpointed: bool = False


@cache
def shape_of(layers: int, width: int, side: int = 16) -> BertTransformer:
    """The model without memory for its weights."""
    return model(layers, width, side, "meta")


def model(layers: int, width: int, side: int, device: str) -> BertTransformer:
    """A ``bert`` model of official proportions, heads of 64."""
    with torch.device(device):
        return BertTransformer(
            BertConfig(
                width=width, layers=layers, heads=width // 64, mlp_width=4 * width, axes=(side, side), dropout=0.0
            )
        )


def parameters(layers: int, width: int, side: int = 16) -> int:
    """P."""
    return sum(weight.numel() for weight in shape_of(layers, width, side).parameters())


def static_bytes(plan: Plan) -> float:
    """Weights, gradients, two moments and averages, all float32: 20 P, spread over N if sharded.

    DDP keeps a second copy of the gradients in its buckets. Autocast keeps a bf16 copy of the weights over the forward pass;
    FSDP2 gathers two blocks at a time instead (the next one while one computes), and all that is in no block.
    """
    count = parameters(plan.layers, plan.width, plan.side)
    if not plan.sharded:
        return (5 * FLOAT + (FLOAT if plan.gpus > 1 else 0) + HALF) * count
    whole = shape_of(plan.layers, plan.width, plan.side)
    block = sum(weight.numel() for weight in blocks_of(whole)[0].parameters())
    rest = count - plan.layers * block
    return 5 * FLOAT * count / plan.gpus + (2 * block + rest) * (HALF + FLOAT)  # gathered in bf16, gradients in float32


def activation_bytes(plan: Plan) -> float:
    """What autograd keeps for the backward pass; with checkpointing all of one block more while it is computed again."""
    tokens = plan.images * (plan.side**2 + 1)
    each = _kept_a_token(checkpointed=plan.checkpointed) * plan.width
    again = _kept_a_token(checkpointed=False) * plan.width if plan.checkpointed else 0.0
    slope, constant = _rest_a_token()
    return tokens * (plan.layers * each + again + slope * plan.width + constant)


def _small(layers: int, width: int, *, checkpointed: bool = False) -> float:
    """Bytes a token that a small model keeps."""
    return kept_bytes(layers, width, images=3, side=8, checkpointed=checkpointed) / (3 * 65)


@cache
def _kept_a_token(*, checkpointed: bool) -> float:
    """Bytes that one block keeps for each token and unit of width: the difference of two and four blocks."""
    few, more = (_small(layers, 128, checkpointed=checkpointed) for layers in (2, 4))
    return (more - few) / 2 / 128


@cache
def _rest_a_token() -> tuple[float, float]:
    """What embeddings, head and loss keep for each token: bytes a unit of width, and bytes besides."""
    low, high = (_small(2, width) - 2 * _kept_a_token(checkpointed=False) * width for width in (128, 256))
    slope = (high - low) / 128
    return slope, low - 128 * slope


def kept_bytes(layers: int, width: int, *, images: int, side: int, checkpointed: bool) -> float:
    """Bytes of all that autograd keeps of one forward pass and loss in bf16 autocast, each storage once, without weights."""
    net = model(layers, width, side, "cpu").train()
    if checkpointed:
        checkpoint_blocks(net)
    weights = {weight.untyped_storage().data_ptr() for weight in net.parameters()}
    shapes = {tuple(weight.shape) for weight in net.parameters() if weight.ndim == 2}
    shapes |= {(net.vocab_size, width)}  # the part of the table that predicts
    shapes |= {shape[::-1] for shape in shapes}
    storages: dict[int, int] = {}
    alive = []  # so that no address is used twice

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and tuple(tensor.shape) not in shapes:  # nor autocast's copies of weights
            storages[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    tokens = torch.zeros(images, side**2, 1, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        logits = net(tokens, Cond(labels=torch.zeros(images, dtype=torch.long)))
        masked_cross_entropy(logits, tokens, torch.ones_like(tokens, dtype=torch.bool))
    return float(sum(storages.values()))


def sent_bytes(plan: Plan) -> float:
    """What a GPU sends in a step.

    DDP: a ring reduces float32 gradients, 2 x 4 P. FSDP2: bf16 weights gathered twice, bf16 gradients scattered, 3 x 2 P.
    """
    count, share = parameters(plan.layers, plan.width, plan.side), (plan.gpus - 1) / plan.gpus
    return share * count * (3 * HALF if plan.sharded else 2 * FLOAT)


def step_seconds(plan: Plan) -> tuple[float, float]:
    """Computing, and sending if nothing of it were hidden behind computing."""
    flops = training_flops(shape_of(plan.layers, plan.width, plan.side), plan.images) * (
        4 / 3 if plan.checkpointed else 1
    )
    return flops / (MFU * PEAK), sent_bytes(plan) / (NVLINK if plan.gpus <= 8 else NETWORK)


def tables() -> str:
    """All tables as markdown."""
    lines = ["| size | way | " + " | ".join(f"{gpus} GPU" for gpus in GPUS) + " |", "|---|---|" + "---|" * len(GPUS)]
    for name, (layers, width) in SIZES.items():
        for way, options in (
            ("DDP", {}),
            ("DDP, checkpointing", {"checkpointed": True}),
            ("FSDP2", {"sharded": True}),
            ("FSDP2, checkpointing", {"sharded": True, "checkpointed": True}),
        ):
            cells = []
            for gpus in GPUS:
                plan = Plan(layers=layers, width=width, gpus=gpus, **options)
                memory = (static_bytes(plan) + activation_bytes(plan)) / 2**30
                compute, send = step_seconds(plan)
                cells.append(f"{memory:.0f} GiB, {sent_bytes(plan) / 2**30:.1f} GiB, {compute:.2f} + {send:.2f} s")
            lines.append(f"| {name} {layers} x {width} | {way} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def check() -> list[tuple[str, float, float]]:
    """Name, planned and measured bytes of small models on this machine."""
    rows = []
    for layers, width, images in ((3, 192, 4), (6, 320, 3)):
        for checkpointed in (False, True):
            plan = Plan(layers=layers, width=width, gpus=1, images=images, side=8, checkpointed=checkpointed)
            measured = kept_bytes(layers, width, images=images, side=8, checkpointed=checkpointed)
            # What a checkpointed block keeps while it is computed again comes later.
            again = images * 65 * _kept_a_token(checkpointed=False) * width if checkpointed else 0.0
            name = f"activations of {layers} x {width}{', checkpointed' if checkpointed else ''}"
            rows.append((name, activation_bytes(plan) - again, measured))
    with tempfile.TemporaryDirectory() as folder:
        rows.append(
            ("weights, moments, averages of 3 x 192", 4 * FLOAT * parameters(3, 192, 8), held_bytes(Path(folder)))
        )
    return rows


def held_bytes(out: Path) -> float:
    """Bytes of weights, moments and averages of this process after a step of training; gradients are gone by then."""
    net = model(3, 192, 8, "cpu")
    source = TensorSource(tokens=torch.zeros(4, 64, 1, dtype=torch.long), labels=torch.zeros(4, dtype=torch.long))
    settings = TrainSettings(steps=1, batch_size=4, tracker=None, validate_every=0, show_every=0, checkpoint_every=0)
    trainer = Trainer(MaskedModeling(net, MaskingSettings(label_dropout=0.0)), source, settings, out)
    trainer.fit()
    held = [*trainer.modules["model"].parameters(), *trainer.ema.module.parameters()]
    held += [value for state in trainer.optimizers["model"].state.values() for value in state.values()]
    return float(sum(local(tensor).nbytes for tensor in held if tensor.ndim))


def main(arguments: list[str] | None = None) -> None:
    """Print the tables, or the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with what this machine measures")
    if not parser.parse_args(arguments).check:
        print(tables())
        return
    for name, planned, measured in check():
        print(
            f"{name}: planned {planned / 2**20:.2f} MiB, measured {measured / 2**20:.2f} MiB: {measured / planned:.2f}"
        )


if __name__ == "__main__":
    main()
