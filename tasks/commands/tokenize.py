"""``maskgen tokenize``: any images or sounds to token shards, by several processes, resumable at each shard.

1. Example i of the shards is view i // M, example i % M of the data, with the seed ``seed`` + i.
2. Shard s holds the examples s x size to (s + 1) x size - 1. It is written whole or not at all.
3. The processes of ``accelerate launch`` take the missing shards in turn. After a kill the same command makes those that
   are missing: nothing is lost, nothing is there twice, and the files do not depend on how many processes there were.

Shapes: M examples of the data, N tokens, K codebooks.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from maskgen.checkpoint import code_fingerprint, read_json, write_json
from maskgen.data import Batch, Source
from maskgen.precision import fast_matmul
from maskgen.tasks.conditions.text.base import TextEncoder
from maskgen.tasks.data.base import SignalData
from maskgen.tasks.data.broken import count_broken
from maskgen.tasks.data.captions import is_captioned
from maskgen.tasks.data.identity import describe, refuse_others, short_hash
from maskgen.tasks.data.images.hub import StreamedPictures
from maskgen.tasks.data.texts import distinct
from maskgen.tasks.data.tokens.cache import probe, read_tokens, write_tokens
from maskgen.tasks.data.tokens.embeddings import all_texts, check_encoder, encode_texts
from maskgen.tasks.data.tokens.shards import UNDECISIVE, TokenShards, made_by, shard_path, shard_stamp
from maskgen.tasks.evaluation.sets.processes import process_state
from maskgen.tasks.training.checks import check_signals, load_tokenizer, token_grid
from maskgen.tasks.training.runs import Say
from maskgen.tasks.training.text import text_encoder
from maskgen.tokenizers.base import Tokenizer

_Shard = tuple[str, int, range]  # split, number, its examples


@dataclass(frozen=True, kw_only=True)
class ShardSettings:
    """What token shards hold.

    Attributes:
        views: differently cropped and flipped views of each training example.
        seed: of crops and flips.
        shard_size: examples of a file.
    """

    views: int = 1
    seed: int = 0
    shard_size: int = 8192

    def __post_init__(self) -> None:
        for name in ("views", "shard_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 1")


_PLAIN = ShardSettings()


def tokenize_data(
    shards: ShardSettings = _PLAIN,
    *,
    tokenizer: Path,
    data: SignalData,
    out: Path,
    batch_size: int = 64,
    workers: int = 0,
    device: str | None = None,
    text: TextEncoder | str | None = None,
    again: bool = False,
    say: Say = print,
) -> Path:
    """Turn images or sounds into token shards, which a transformer trains on without the tokenizer.

    Run it again after an interruption to go on; ``accelerate launch -m maskgen tokenize ...`` shares the work.

    Args:
        shards: see ``ShardSettings``.
        tokenizer: folder of the tokenizer, of ``maskgen train tokenizer`` for instance.
        data: what to turn into tokens.
        out: folder of the shards; read them with ``--data maskgen.tasks.data.tokens.shards.TokenShards --data.root OUT``.
        batch_size: examples that are encoded together.
        workers: processes that decode pictures, for each process that encodes.
        device: as ``cpu`` or ``cuda:1``; chosen by itself if left out.
        text: for data with captions, the text encoder to keep their features of in ``out/text``, so that a training need
            not encode them: by its class, or a folder or name on the Hub for
            ``maskgen.tasks.conditions.text.PretrainedText``.
        again: make them anew even if ``out`` holds other tokens, which are lost.
        say: told what happens.

    Returns:
        ``out``.

    Raises:
        FileNotFoundError: no tokenizer there.
        ValueError: data that the tokenizer does not take, other tokens in ``out``, a text encoder for data without
            captions or other than the one of ``out/text``, or settings out of range.
        OSError: the disk is full, for instance.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: got {batch_size}, expected at least 1")
    codes, views, size = load_tokenizer(tokenizer), shards.views, shards.shard_size
    _check_data(codes, data)
    encoder = text_encoder(text)
    _check_encoder(encoder, data, out, again)
    state = process_state(device)
    place = torch.device(device) if device and state.num_processes == 1 else state.device
    train, test = data.train(), data.test()
    description = _describe(codes, data, shards)
    counts = {"train": views * len(train), "test": 0 if test is None else len(test)}
    description["made"] = _made(out, description, again)
    if again and state.is_main_process:
        (out / "skipped.jsonl").unlink(missing_ok=True)
    state.wait_for_everyone()
    data.log_skipped(out / "skipped.jsonl")
    stamp = shard_stamp(description["tokenizer"], description["made"])
    planned = [
        (split, first // size, range(first, min(first + size, count)))
        for split, count in counts.items()
        for first in range(0, count, size)
    ]
    missing = [shard for shard in planned if not _is_whole(shard_path(out, *shard[:2]), stamp, len(shard[2]))]
    state.wait_for_everyone()  # all have looked before anyone writes, so all share the same list
    if state.is_main_process:
        for left in out.glob(".*.safetensors"):  # of a process that was killed while it wrote
            left.unlink(missing_ok=True)
        for old in set(out.glob("t*-*.safetensors")) - {shard_path(out, *shard[:2]) for shard in planned}:
            old.unlink(missing_ok=True)  # of other tokens, or of more of them
        write_json(out / "tokens.json", description | counts | {"complete": False})
        say(f"tokenize: {len(missing)} of {len(planned)} shards to make, {views} view(s) of {len(train)} examples")
    state.wait_for_everyone()
    mine = missing[state.process_index :: state.num_processes]
    _make(codes.to(place), data, mine, out, stamp, (shards.seed, batch_size, workers), state)
    state.wait_for_everyone()
    if state.is_main_process:
        write_json(out / "tokens.json", description | counts | {"complete": True})
    state.wait_for_everyone()
    if encoder is not None:
        _keep_features(TokenShards(out), encoder, out / "text", again, say, state)
    if state.is_main_process:
        skipped = count_broken(out / "skipped.jsonl")
        say(
            f"tokenize: {counts['train']} and {counts['test']} held-out examples in {out}, {skipped} broken ones skipped"
        )
    return out


def _check_data(codes: Tokenizer, data: SignalData) -> None:
    if isinstance(data, TokenShards):
        raise ValueError("data: got token shards, expected images or sounds: they are tokens already")
    if codes.modality == "video":
        raise ValueError(
            "tokenizer: got one of video; expected images or sounds (`maskgen train video-transformer` keeps its tokens "
            "itself)"
        )
    check_signals(codes, data)


def _check_encoder(encoder: TextEncoder | None, data: SignalData, out: Path, again: bool) -> None:
    if encoder is None:
        return
    if not data.has_captions:
        raise ValueError("text: got a text encoder, but the data have no captions; say where they are (captions: txt)")
    if not again:
        check_encoder(out / "text", encoder)


def _keep_features(
    made: TokenShards, encoder: TextEncoder, folder: Path, again: bool, say: Say, state: PartialState
) -> None:
    """Features of the captions of finished shards; the processes share the work."""
    told = say if state.is_main_process else lambda text: None
    texts, _ = all_texts((made.train(), made.test()))
    share = (state.process_index, state.num_processes)
    encode_texts(texts, encoder, folder, again=again, say=told, share=share)
    state.wait_for_everyone()


def _is_stream(data: SignalData) -> bool:
    return isinstance(getattr(data.train(), "pictures", None), StreamedPictures)


def _describe(codes: Tokenizer, data: SignalData, shards: ShardSettings) -> dict[str, Any]:
    content: dict[str, Any] = {
        "format": 1,
        "tokenizer": code_fingerprint(codes),
        "tokenizer_class": type(codes).__name__,
        "vocab_size": codes.vocab_size,
        "num_codebooks": codes.num_codebooks,
        "axes": token_grid(codes, data),
        "modality": data.modality,
        "signal_size": data.size,
        "class_names": data.class_names,
        **({"captions": True} if data.has_captions else {}),
        **dataclasses.asdict(shards),
        # Three examples stand for all, unless looking at the last one means reading them all.
        "probe": "" if _is_stream(data) else probe(data.train(), data.key),
        "data": data,
    }
    return describe(**content)


def _made(out: Path, description: dict[str, Any], again: bool) -> str:
    """What all shards of the folder bear: those that are there go on being right while what decides them is the same.

    Raises:
        ValueError: tokens of two kinds would be mixed in one folder.
    """
    place = out / "tokens.json"
    if again or not place.is_file():
        return short_hash(description)
    found = read_json(place)
    before = found if isinstance(found, dict) else {}
    decisive = {name: value for name, value in before.items() if name not in UNDECISIVE}
    remedy = "give --again to make them anew, or name another folder"
    refuse_others(out, decisive, description, "other tokens", remedy)
    return made_by(before)


def _is_whole(path: Path, stamp: dict[str, str], count: int) -> bool:
    if not path.is_file():
        return False
    try:
        tensors, metadata = read_tokens(path)
    except ValueError:
        return False
    return metadata == stamp and len(tensors["tokens"]) == count


class _Examples(Dataset[tuple[Batch, list[str]]]):
    """Batch number -> the examples of a shard that are encoded together, and their captions if they have any."""

    def __init__(self, sources: dict[str, Source], blocks: Sequence[tuple[str, range]], seed: int) -> None:
        self.sources, self.blocks, self.seed = sources, blocks, seed

    def __getitem__(self, number: int) -> tuple[Batch, list[str]]:
        split, block = self.blocks[number]
        source = self.sources[split]
        rows = [index % len(source) for index in block], [self.seed + index for index in block]
        return source.batch(*rows), source.captions(*rows) if is_captioned(source) else []


@torch.no_grad()
def _make(
    codes: Tokenizer,
    data: SignalData,
    planned: Sequence[_Shard],
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
        for split, _, span in planned
        for first in range(0, len(span), batch_size)
    ]
    # Its own generator: torch's global one must not depend on how often a loader was started.
    generator = torch.Generator().manual_seed(0)
    examples, numbers = _Examples(sources, blocks, seed), range(len(blocks))
    batches: Iterator[tuple[Batch, list[str]]] = iter(
        DataLoader(examples, batch_size=None, sampler=numbers, num_workers=workers, generator=generator)
    )
    with (
        fast_matmul(device),
        tqdm(
            total=sum(len(span) for _, _, span in planned),
            desc="tokenize",
            unit="example",
            disable=not state.is_local_main_process or not planned,
        ) as bar,
    ):
        for split, number, span in planned:
            parts: list[Batch] = []
            said: list[str] = []
            for _ in range(0, len(span), batch_size):
                batch, captions = next(batches)
                said += captions
                part = {"tokens": codes.encode(batch[data.key].to(device)).cpu()}
                parts.append(part | ({"labels": batch["labels"]} if "labels" in batch else {}))
                bar.update(len(part["tokens"]))
            whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            if said:
                texts, whole["caption"] = distinct(said)
                whole |= texts.tensors()
            write_tokens(whole, shard_path(out, split, number), vocab_size=codes.vocab_size, metadata=stamp)
