"""``maskgen tokenize``: any images or sounds to token shards, by several processes, resumable at each shard.

1. Example i of the shards is view i // M, example i % M of the data, with the seed ``seed`` + i.
2. Shard s holds the examples s x size to (s + 1) x size - 1. It is written whole or not at all.
3. The processes of ``accelerate launch`` take the missing shards in turn. After a kill the same command makes those that
   are missing: nothing is lost, nothing is there twice, and the files do not depend on how many processes there were.

Shapes: M examples of the data, N tokens, K codebooks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from maskgen.checkpoint import fingerprint, load_module, read_json, write_json
from maskgen.data import Batch, Source
from maskgen.precision import fast_matmul
from maskgen.tasks.data.base import AudioData, SignalData
from maskgen.tasks.data.broken import count_broken
from maskgen.tasks.data.images.hub import StreamedPictures
from maskgen.tasks.data.tokens.cache import probe, read_tokens, write_tokens
from maskgen.tasks.data.tokens.shards import TokenShards, shard_path, shard_stamp
from maskgen.tasks.evaluation.sets.processes import process_state
from maskgen.tasks.training.runs import Say, describe
from maskgen.tokenizers.audio.base import AudioTokenizer
from maskgen.tokenizers.base import Tokenizer

__all__ = ["tokenize_data"]

_Job = tuple[str, int, range]  # split, number of the shard, its examples


def tokenize_data(
    *,
    tokenizer: Path,
    data: SignalData,
    out: Path,
    views: int = 1,
    seed: int = 0,
    shard_size: int = 8192,
    batch_size: int = 64,
    workers: int = 0,
    device: str | None = None,
    say: Say = print,
) -> Path:
    """Turn images or sounds into token shards, which a transformer trains on without the tokenizer.

    Run it again after an interruption to go on; ``accelerate launch -m maskgen tokenize ...`` shares the work.

    Args:
        tokenizer: folder of the tokenizer, of ``maskgen train tokenizer`` for instance.
        data: what to turn into tokens.
        out: folder of the shards; read them with ``--data maskgen.tasks.data.tokens.shards.TokenShards --data.root OUT``.
        views: differently cropped and flipped views of each training example.
        seed: of crops and flips.
        shard_size: examples of a file.
        batch_size: examples that are encoded together.
        workers: processes that decode pictures, for each process that encodes.
        device: as ``cpu`` or ``cuda:1``; chosen by itself if left out.
        say: told what happens.

    Returns:
        ``out``.

    Raises:
        FileNotFoundError: no tokenizer there.
        ValueError: data that the tokenizer does not take, other tokens in ``out``, or settings out of range.
        OSError: the disk is full, for instance.
    """
    for name, value in (("views", views), ("shard_size", shard_size), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name}: got {value}, expected at least 1")
    codes = _load(tokenizer)
    _check_data(codes, data)
    state = process_state(device)
    place = torch.device(device) if device and state.num_processes == 1 else state.device
    train, test = data.train(), data.test()
    description = _describe(codes, data, views, seed, shard_size)
    counts = {"train": views * len(train), "test": 0 if test is None else len(test)}
    _check_same(out / "tokens.json", description)
    data.log_skipped(out / "skipped.jsonl")
    stamp = shard_stamp(description["tokenizer"], _hash(description))
    jobs = [
        (split, first // shard_size, range(first, min(first + shard_size, count)))
        for split, count in counts.items()
        for first in range(0, count, shard_size)
    ]
    missing = [job for job in jobs if not _is_whole(shard_path(out, *job[:2]), stamp, len(job[2]))]
    state.wait_for_everyone()  # all have looked before anyone writes, so all share the same list
    if state.is_main_process:
        for left in out.glob(".*.safetensors"):  # of a process that was killed while it wrote
            left.unlink(missing_ok=True)
        write_json(out / "tokens.json", description | counts | {"complete": False})
        say(f"tokenize: {len(missing)} of {len(jobs)} shards to make, {views} view(s) of {len(train)} examples")
    state.wait_for_everyone()
    mine = missing[state.process_index :: state.num_processes]
    _make(codes.to(place), data, mine, out, stamp, (seed, batch_size, workers), state)
    state.wait_for_everyone()
    if state.is_main_process:
        write_json(out / "tokens.json", description | counts | {"complete": True})
        TokenShards(out)
        skipped = count_broken(out / "skipped.jsonl")
        say(
            f"tokenize: {counts['train']} and {counts['test']} held-out examples in {out}, {skipped} broken ones skipped"
        )
    return out


def _load(folder: Path) -> Tokenizer:
    inner = folder / "tokenizer"
    chosen = folder if (folder / "config.json").is_file() or not (inner / "config.json").is_file() else inner
    if not (chosen / "config.json").is_file():
        raise FileNotFoundError(
            f"tokenizer: got {folder}, which holds none (no config.json); name a folder made by `maskgen train tokenizer`"
        )
    return load_module(chosen, Tokenizer)  # type: ignore[type-abstract]


def _check_data(codes: Tokenizer, data: SignalData) -> None:
    if isinstance(data, TokenShards):
        raise ValueError("data: got token shards, expected images or sounds: they are tokens already")
    if codes.modality == "video" or codes.modality != data.modality:
        raise ValueError(
            f"data: got {data.modality} data for a tokenizer of {codes.modality}; expected images or sounds for a tokenizer "
            "of the same (`maskgen train video-transformer` keeps its tokens itself)"
        )
    if isinstance(codes, AudioTokenizer) and isinstance(data, AudioData):
        sound, codec = (data.sample_rate, data.channels), (codes.sample_rate, codes.channels)
        if sound != codec:
            raise ValueError(
                f"data: got {sound[0]} Hz and {sound[1]} channel(s), but the codec has {codec[0]} Hz and {codec[1]}"
            )


def _is_stream(data: SignalData) -> bool:
    return isinstance(getattr(data.train(), "pictures", None), StreamedPictures)


def _describe(codes: Tokenizer, data: SignalData, views: int, seed: int, shard_size: int) -> dict[str, Any]:
    channels = codes.channels if isinstance(codes, AudioTokenizer) else 3
    content: dict[str, Any] = {
        "format": 1,
        "tokenizer": fingerprint(codes),
        "tokenizer_class": type(codes).__name__,
        "vocab_size": codes.vocab_size,
        "num_codebooks": codes.num_codebooks,
        "axes": codes.axes((1, channels, *data.size)),
        "modality": data.modality,
        "signal_size": data.size,
        "class_names": data.class_names,
        "views": views,
        "seed": seed,
        "shard_size": shard_size,
        # Three examples stand for all, unless looking at the last one means reading them all.
        "probe": "" if _is_stream(data) else probe(data.train(), data.key),
        **describe(data=data),
    }
    plain: dict[str, Any] = json.loads(json.dumps(content))  # as the file gives it back
    return plain


def _check_same(path: Path, description: dict[str, Any]) -> None:
    """Refuse to mix tokens of two kinds in one folder."""
    if not path.is_file():
        return
    found = read_json(path)
    before = found if isinstance(found, dict) else {}
    changed = [name for name, value in description.items() if before.get(name) != value]
    if changed:
        raise ValueError(
            f"{path.parent}: holds other tokens ({', '.join(changed)} differ); choose another folder or delete this one"
        )


def _hash(description: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:16]


def _is_whole(path: Path, stamp: dict[str, str], count: int) -> bool:
    if not path.is_file():
        return False
    try:
        tensors, metadata = read_tokens(path)
    except ValueError:
        return False
    return metadata == stamp and len(tensors["tokens"]) == count


class _Examples(Dataset[Batch]):
    """Batch number -> the examples of a shard that are encoded together."""

    def __init__(self, sources: dict[str, Source], blocks: Sequence[tuple[str, range]], seed: int) -> None:
        self.sources, self.blocks, self.seed = sources, blocks, seed

    def __getitem__(self, number: int) -> Batch:
        split, block = self.blocks[number]
        source = self.sources[split]
        return source.batch([index % len(source) for index in block], [self.seed + index for index in block])


@torch.no_grad()
def _make(
    codes: Tokenizer,
    data: SignalData,
    jobs: Sequence[_Job],
    out: Path,
    stamp: dict[str, str],
    how: tuple[int, int, int],
    state: PartialState,
) -> None:
    """Write some shards; ``how`` are seed, batch size and workers."""
    seed, batch_size, workers = how
    device = next((weight.device for weight in codes.parameters()), torch.device("cpu"))  # a toy has no weights
    sources = {"train": data.train()} | ({"test": test} if (test := data.test()) is not None else {})
    blocks = [
        (split, span[first : first + batch_size])
        for split, _, span in jobs
        for first in range(0, len(span), batch_size)
    ]
    # Its own generator: torch's global one must not depend on how often a loader was started.
    generator = torch.Generator().manual_seed(0)
    examples, numbers = _Examples(sources, blocks, seed), range(len(blocks))
    batches: Iterator[Batch] = iter(
        DataLoader(examples, batch_size=None, sampler=numbers, num_workers=workers, generator=generator)
    )
    with (
        fast_matmul(device),
        tqdm(
            total=sum(len(span) for _, _, span in jobs),
            desc="tokenize",
            unit="example",
            disable=not state.is_local_main_process or not jobs,
        ) as bar,
    ):
        for split, number, span in jobs:
            parts: list[Batch] = []
            for _ in range(0, len(span), batch_size):
                batch = next(batches)
                part = {"tokens": codes.encode(batch[data.key].to(device)).cpu()}
                parts.append(part | ({"labels": batch["labels"]} if "labels" in batch else {}))
                bar.update(len(part["tokens"]))
            whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            write_tokens(whole, shard_path(out, split, number), vocab_size=codes.vocab_size, metadata=stamp)
