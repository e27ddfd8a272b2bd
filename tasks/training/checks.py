"""What must fit before a training or a measurement begins: tokenizer, data and transformer.

Shapes: B batch, C channels.
"""

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path

from maskgen.checkpoint import load_module
from maskgen.models.base import MaskedTransformer
from maskgen.tasks.conditions.preparation import Preparation
from maskgen.tasks.data.base import AudioData, SignalData
from maskgen.tasks.data.tokens.shards import TokenShards
from maskgen.tokenizers.audio.base import AudioTokenizer
from maskgen.tokenizers.base import Tokenizer


def tokenizer_folder(folder: Path, name: str = "tokenizer") -> Path:
    """The folder of a tokenizer: this one, or ``tokenizer/`` in that of a model.

    Args:
        folder: as the user gave it.
        name: of the argument, for the error.

    Raises:
        FileNotFoundError: neither holds one.
    """
    for found in (folder, folder / "tokenizer"):
        if (found / "config.json").is_file():
            return found
    raise FileNotFoundError(
        f"{name}: got {folder}, which holds none (no config.json); name a folder made by `maskgen train tokenizer`"
    )


def load_tokenizer(folder: Path, name: str = "tokenizer") -> Tokenizer:
    """The tokenizer of ``tokenizer_folder``, on the CPU.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is something else, or damaged.
    """
    return load_module(tokenizer_folder(folder, name), Tokenizer)  # type: ignore[type-abstract]


def token_grid(tokenizer: Tokenizer, data: SignalData) -> tuple[int, ...]:
    """Token grid of a training signal.

    Raises:
        ValueError: a size that the tokenizer cannot take.
    """
    return tuple(tokenizer.axes((1, getattr(tokenizer, "channels", 3), *data.size)))


def check_signals(tokenizer: Tokenizer, data: SignalData) -> None:
    """Refuse data of another modality, or sounds that the codec does not take.

    Raises:
        ValueError: naming both sides.
    """
    if tokenizer.modality != data.modality:
        raise ValueError(f"data: got {data.modality} data, but the tokenizer's modality is {tokenizer.modality}")
    if isinstance(tokenizer, AudioTokenizer) and isinstance(data, AudioData):
        sound, codec = (data.sample_rate, data.channels), (tokenizer.sample_rate, tokenizer.channels)
        if sound != codec:
            raise ValueError(
                f"data: got {sound[0]} Hz and {sound[1]} channel(s), but the codec has {codec[0]} Hz and {codec[1]}; set "
                "sample_rate and channels of one to those of the other"
            )


def check_preparation(what: str, trained: Preparation | None, data: SignalData) -> None:
    """Warn of data that are louder, or run at another rate, than what something was trained on.

    Args:
        what: was trained.
        trained: on which data; None if nobody wrote it down.
        data: at hand.
    """
    found = "" if trained is None else trained.differences(data.prepared)
    if found:
        warnings.warn(
            f"data: not as those that the {what} was trained on ({found}, its own first; None: as they are); give "
            f"{type(data).__name__} the same settings unless this is meant",
            stacklevel=3,
        )


def check_shards(data: SignalData, identity: str, views: int) -> None:
    """Refuse token shards of another tokenizer, and views that nobody can give.

    Args:
        data: any; only ``TokenShards`` are looked at.
        identity: fingerprint of the tokenizer.
        views: what the user chose, which shards cannot give.

    Raises:
        ValueError: another tokenizer's shards, views of shards, or none at all.
    """
    if views < 1:
        raise ValueError(f"views: got {views}, expected at least 1")
    if not isinstance(data, TokenShards):
        return
    data.check(identity)
    if views != 1:
        raise ValueError(f"views: got {views}, but the token shards hold {data.views} view(s) already; leave it out")


def with_classes(transformer: MaskedTransformer, classes: int, say: Callable[[str], None]) -> MaskedTransformer:
    """The transformer, untrained, for as many classes as the data have.

    Args:
        transformer: as its settings say; one without classes stays so, and ``misfits`` tells where that is wrong.
        classes: of the data; 0 changes nothing either.
        say: told of another number.
    """
    found = transformer.num_classes
    if not (found and classes) or found == classes:
        return transformer
    say(f"transformer: num_classes {classes}, as many as the data have; its settings say {found}")
    return type(transformer)(dataclasses.replace(transformer.config, num_classes=classes))


def misfits(
    tokenizer: Tokenizer, transformer: MaskedTransformer, data: SignalData, *, codebooks: int, classes: int
) -> list[str]:
    """What of a transformer is not as a tokenizer and data need it, in words.

    Args:
        tokenizer: gives the tokens.
        transformer: to be trained on them.
        data: gives the signals.
        codebooks: how many it must predict.
        classes: how many it must tell apart.
    """
    got = {
        "vocab_size": transformer.vocab_size,
        "num_codebooks": transformer.num_codebooks,
        "axes": tuple(transformer.config.axes),
        "num_classes": transformer.num_classes,
    }
    expected = {
        "vocab_size": tokenizer.vocab_size,
        "num_codebooks": codebooks,
        "axes": token_grid(tokenizer, data),
        "num_classes": classes,
    }
    return [f"{name} is {got[name]}, expected {expected[name]}" for name in got if got[name] != expected[name]]
