"""Signals as tokens to train on: in memory, and on disk for a run that goes on, because encoding them takes long.

Shapes: B batch, N tokens, K codebooks, V vocabulary.
"""

import contextlib
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from maskgen.checkpoint import atomic_file, code_fingerprint
from maskgen.data import Batch, Source, TensorSource
from maskgen.precision import fast_matmul
from maskgen.tasks.data.captions import is_captioned
from maskgen.tasks.data.identity import differences, in_words, source_identity
from maskgen.tasks.data.texts import TEXT_TENSORS, Texts, distinct
from maskgen.tasks.data.tokens.coarse import SmallPictures
from maskgen.tokenizers.audio.base import AudioTokenizer
from maskgen.tokenizers.base import Tokenizer

_QUIET = 2  # seconds before the progress bar shows


@torch.no_grad()
def tokenize(
    source: Source,
    tokenizer: Tokenizer,
    *,
    key: str = "images",
    views: int = 1,
    seed: int = 0,
    batch_size: int = 64,
    coarse: SmallPictures | None = None,
) -> TensorSource:
    """All tokens of a source, in memory.

    Args:
        source: batches with the signal and, where there are classes, ``labels``.
        tokenizer: turns the signal into tokens, on the device it is on.
        key: name of the signal in a batch.
        views: passes over the source, each with seeds of its own.
        seed: of the augmentation.
        batch_size: examples at a time.
        coarse: gives the tokens ``coarse`` of the same pictures, made smaller.

    Returns:
        ``tokens`` long ``[views x len, N, K]`` and, where there are classes, ``labels`` long; where there are captions,
        ``CaptionedTokens``: each view draws its own.
    """
    if views < 1:
        raise ValueError(f"views: got {views}, expected at least 1")
    device = next((weight.device for weight in tokenizer.parameters()), torch.device("cpu"))  # a toy has no weights
    parts: list[Batch] = []
    said: list[str] = []
    blocks = [range(first, min(first + batch_size, len(source))) for first in range(0, len(source), batch_size)]
    quiet = os.environ.get("LOCAL_RANK", "0") != "0"
    with fast_matmul(device), tqdm(total=views * len(source), desc="tokens", disable=quiet, delay=_QUIET) as bar:
        for view, indices in itertools.product(range(views), blocks):
            seeds = [seed + view * len(source) + index for index in indices]
            batch = source.batch(indices, seeds)
            part = {"tokens": tokenizer.encode(batch[key].to(device)).cpu()}
            if coarse is not None:
                part["coarse"] = coarse.encode(batch[key]).cpu()
            parts.append(part | ({"labels": batch["labels"]} if "labels" in batch else {}))
            said += source.captions(indices, seeds) if is_captioned(source) else []
            bar.update(len(indices))
    tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    if not is_captioned(source):
        return TensorSource(**tensors)
    texts, tensors["caption"] = distinct(said)
    return CaptionedTokens(texts, **tensors)


class CaptionedTokens(TensorSource):
    """Tokens with captions; batches hold ``caption`` long ``[B]``, numbers of ``texts``.

    Args:
        texts: each different caption once.
        **tensors: see ``TensorSource``.
    """

    def __init__(self, texts: Texts, **tensors: Tensor) -> None:
        super().__init__(**tensors)
        self.texts = texts

    def captions(self, indices: Sequence[int], seeds: Sequence[int]) -> list[str]:
        """See ``maskgen.tasks.data.captions.Captioned``: those that were drawn when the tokens were made."""
        return [self.texts[int(self.tensors["caption"][index])] for index in indices]


def cached_tokens(
    source: Source,
    tokenizer: Tokenizer,
    path: Path,
    *,
    key: str,
    views: int = 1,
    seed: int = 0,
    coarse: SmallPictures | None = None,
    again: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> TensorSource:
    """``tokenize`` with all codebooks, kept in a file, so that a run that goes on does not encode everything again.

    Of several processes on a machine one encodes, and the others wait for its file.

    Args:
        source: see ``tokenize``.
        tokenizer: see ``tokenize``; its name and a fingerprint of its weights are written into the file.
        path: the file, written whole or not at all. One of other data, views or seed is made anew.
        key: see ``tokenize``.
        views: see ``tokenize``.
        seed: see ``tokenize``.
        coarse: see ``tokenize``.
        again: make them anew, whatever the file holds.
        say: told why a file is made anew.

    Returns:
        See ``tokenize``.

    Raises:
        ValueError: the file holds the tokens of another tokenizer, or is damaged.
    """
    weights = code_fingerprint(tokenizer)
    named = tokenizer.identity() if isinstance(tokenizer, AudioTokenizer) else f"{type(tokenizer).__name__}-{weights}"
    wanted = {"tokenizer": named, **token_record(source, tokenizer, key, views, seed)}
    if coarse is not None:
        wanted["coarse"] = coarse.identity()
    path.parent.mkdir(parents=True, exist_ok=True)
    alone = os.environ.get("LOCAL_WORLD_SIZE", "1") == "1"
    with contextlib.nullcontext() if alone else FileLock(path.with_name(f".{path.name}.lock")):
        written = None if again or not path.is_file() else read_tokens(path)[1]
        if written is not None and written.get("tokenizer") != wanted["tokenizer"]:
            raise ValueError(
                f"{path}: holds tokens of {written.get('tokenizer', 'an unknown tokenizer')}, but this one is "
                f"{wanted['tokenizer']}; choose another output folder, or give --again to make them anew"
            )

        def make() -> Mapping[str, Tensor]:
            found = tokenize(source, tokenizer, key=key, views=views, seed=seed, coarse=coarse)
            return {**found.tensors, **(found.texts.tensors() if isinstance(found, CaptionedTokens) else {})}

        fresh = again and os.environ.get("LOCAL_RANK", "0") == "0"  # once: the others take what the first makes
        tensors = kept_tokens(path, wanted, make, vocab_size=tokenizer.vocab_size, again=fresh, say=say)
        texts = Texts.among(tensors)
        rows = {name: tensor.long() for name, tensor in tensors.items() if name not in TEXT_TENSORS}
        return TensorSource(**rows) if texts is None else CaptionedTokens(texts, **rows)


def token_record(source: Source, tokenizer: Tokenizer, key: str, views: int, seed: int) -> dict[str, Any]:
    """What decides tokens: see ``maskgen.tasks.data.identity``; sources that cannot say what they are show three examples.

    Args:
        source: of the signals.
        tokenizer: that encodes them.
        key: name of the signal in a batch.
        views: passes over the source.
        seed: of the augmentation.
    """
    asked = {"weights": code_fingerprint(tokenizer), "data": probe(source, key), "views": str(views), "seed": str(seed)}
    known = source_identity(source)
    return asked | ({"source": known} if known else {})


def kept_tokens(
    path: Path,
    wanted: Mapping[str, Any],
    make: Callable[[], Mapping[str, Tensor]],
    *,
    vocab_size: int,
    again: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Mapping[str, Tensor]:
    """The tokens of a file if they are the wanted ones; else they are made, and written there.

    Args:
        path: the file.
        wanted: record of what decides them.
        make: makes them.
        vocab_size: see ``write_tokens``.
        again: make them anew, whatever the file holds.
        say: told why a file is made anew.

    Raises:
        ValueError: a damaged file.
    """
    if path.is_file() and not again:
        tensors, metadata = read_tokens(path)
        before = {name: json.loads(value) if name == "source" else value for name, value in metadata.items()}
        changed = differences(before, wanted)
        if not changed:
            return tensors
        say(f"{path}: tokens are made anew, the kept ones are of other data or settings ({in_words(changed)})")
    made = make()
    metadata = {name: json.dumps(value) if name == "source" else str(value) for name, value in wanted.items()}
    write_tokens(made, path, vocab_size=vocab_size, metadata=metadata)
    return made


def first_codebooks(source: TensorSource, codebooks: int) -> TensorSource:
    """The same examples with their first codebooks only.

    Args:
        source: holds ``tokens`` ``[B, N, K]``.
        codebooks: how many to keep, 1 to K.
    """
    tokens = source.tensors["tokens"]
    if codebooks == tokens.shape[-1]:
        return source
    tensors = {**source.tensors, "tokens": tokens[..., :codebooks].contiguous()}
    return CaptionedTokens(source.texts, **tensors) if isinstance(source, CaptionedTokens) else TensorSource(**tensors)


def write_tokens(tensors: Mapping[str, Tensor], path: Path, *, vocab_size: int, metadata: dict[str, str]) -> None:
    """A file of tokens, labels and texts, whole or not at all; tokens are kept as small as V allows.

    Args:
        tensors: long, by name; those of ``Texts`` as they are.
        path: the file.
        vocab_size: V.
        metadata: what the tokens came of.

    Raises:
        OSError: the place cannot be written to.
    """
    kind = torch.int16 if vocab_size <= 1 << 15 else torch.int32
    whole = {"labels", "caption", *TEXT_TENSORS}
    kinds = {name: torch.int32 if name == "coarse" else kind for name in tensors}  # V is not that of the smaller grid
    small = {name: tensor if name in whole else tensor.to(kinds[name]) for name, tensor in tensors.items()}
    with atomic_file(path) as temporary:
        try:
            save_file(small, temporary, metadata=metadata)
        except SafetensorError as error:
            raise OSError(f"{path}: cannot be written ({error})") from None


def read_tokens(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What ``write_tokens`` wrote: tensors in their small types, and the metadata.

    Raises:
        ValueError: a damaged or foreign file.
    """
    try:
        with safe_open(path, framework="pt") as handle:
            return {name: handle.get_tensor(name) for name in handle.keys()}, handle.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: truncated or not a file of tokens ({error}); delete it") from None


def probe(source: Source, key: str) -> str:
    """Number of examples and a hash of three of them: another folder of as many files must not pass for this one."""
    count = len(source)
    digest = hashlib.sha256()
    for index in sorted({0, count // 2, count - 1}) if count else []:
        signal = source.batch([index], [0])[key]
        digest.update(json.dumps(list(signal.shape)).encode() + signal.float().contiguous().numpy().tobytes())
        if is_captioned(source):
            digest.update(source.captions([index], [0])[0].encode())
    return f"{count}-{digest.hexdigest()[:16]}"
