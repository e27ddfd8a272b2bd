"""Training on captions: what must fit before it begins, and captions as features that batches carry."""

from pathlib import Path

from maskgen.conditioning import Cond
from maskgen.data import Source, draw_numbers
from maskgen.models.base import MaskedTransformer
from maskgen.tasks.conditions.text.base import TextEncoder
from maskgen.tasks.conditions.text.pretrained import PretrainedText, PretrainedTextConfig
from maskgen.tasks.data.base import SignalData
from maskgen.tasks.data.captions import is_captioned
from maskgen.tasks.data.tokens.embeddings import (
    TextSource,
    TextTable,
    all_texts,
    check_encoder,
    empty_number,
    empty_prompt,
    encode_texts,
    fields_of,
)
from maskgen.tasks.data.tokens.shards import TokenShards
from maskgen.tasks.model_folder import check_text
from maskgen.tasks.training.runs import Say


def text_encoder(given: TextEncoder | str | None) -> TextEncoder | None:
    """A text encoder as a command takes it: built, or by its folder or name on the Hub, with the usual settings.

    Raises:
        FileNotFoundError: no such encoder.
    """
    return PretrainedText(PretrainedTextConfig(source=given)) if isinstance(given, str) else given


def check_captions(
    text: TextEncoder | None, transformer: MaskedTransformer, data: SignalData, folder: Path, *, again: bool
) -> None:
    """Refuse captions that nobody reads, an encoder without captions or other than before, and widths that do not fit.

    Args:
        text: the encoder, if there is one.
        transformer: to be trained.
        data: to train on.
        folder: see ``with_captions``.
        again: whether what ``folder`` holds is made anew.

    Raises:
        ValueError: naming what is missing, or both sides.
    """
    shards = isinstance(data, TokenShards)
    if data.has_captions and text is None:
        remedy = "set captions: false of the tokens" if shards else "leave captions of the data out"
        raise ValueError(f"text: got no text encoder, but the data have captions; name one, or {remedy}")
    if text is not None and not data.has_captions:
        remedy = "make tokens of data with captions" if shards else "say where they are (captions: txt)"
        raise ValueError(f"text: got a text encoder, but the data have no captions; {remedy}, or leave it out")
    check_text(text, transformer)
    if text is None and transformer.takes_text:
        raise ValueError(
            f"transformer: got a {type(transformer).__name__} that takes a text (context {transformer.context_width}, "
            f"pooled {transformer.pooled_width}), but there is no text encoder; give data with captions and an encoder, or "
            "take both widths out"
        )
    place = features_folder(data, folder)
    if text is not None and not (again and place == folder):
        check_encoder(place, text)


def some_captions(data: SignalData, count: int) -> tuple[list[str], list[int] | None]:
    """Captions of some examples, the same ones every time, held out where any are, and their labels if they have any."""
    source = data.test() or data.train()
    numbers = draw_numbers(len(source), count)
    batch = source.batch(numbers, numbers)
    assert is_captioned(source), "see check_captions"
    return source.captions(numbers, numbers), batch["labels"].tolist() if "labels" in batch else None


def features_folder(data: SignalData, folder: Path) -> Path:
    """Where the features of captions are: beside token shards if ``maskgen tokenize`` made them, else in ``folder``."""
    beside = Path(data.root) / "text" if isinstance(data, TokenShards) else folder
    return beside if beside.is_dir() else folder


def with_captions(
    text: TextEncoder,
    transformer: MaskedTransformer,
    sources: tuple[Source, Source | None],
    data: SignalData,
    folder: Path,
    *,
    again: bool,
    say: Say,
) -> tuple[tuple[Source, Source | None], Cond]:
    """Tokens with captions as tokens with the features of their captions, and the features of the empty prompt.

    Args:
        text: encodes each different caption once.
        transformer: says which features it takes.
        sources: training examples and held-out ones.
        data: that they are from; features beside token shards are used.
        folder: for the features otherwise.
        again: make them anew, unless they are beside token shards.
        say: told what begins.

    Raises:
        ValueError: see ``encode_texts``.
    """
    texts, numbers = all_texts(sources)
    place = features_folder(data, folder)
    table = encode_texts(texts, text, place, again=again and place == folder, say=say)
    if transformer.drops_text:
        table = TextTable(table.parts, absent=empty_number(texts))
    fields = fields_of(transformer)
    train, test = (
        None if source is None else TextSource(source, table, own, fields)
        for source, own in zip(sources, numbers, strict=True)
    )
    assert train is not None
    return (train, test), empty_prompt(texts, table, fields)
