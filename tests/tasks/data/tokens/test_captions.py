"""Tokens with captions: in memory, in a file, in shards; and the features of captions, made once and looked up."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import maskgen.tasks.data.tokens.embeddings
from maskgen.checkpoint import save_module
from maskgen.conditioning import Cond
from maskgen.data import Source
from maskgen.tasks.commands.tokenize import ShardSettings, tokenize_data
from maskgen.tasks.data.captions import is_captioned
from maskgen.tasks.data.texts import Texts, distinct
from maskgen.tasks.data.tokens.cache import CaptionedTokens, cached_tokens, first_codebooks, tokenize
from maskgen.tasks.data.tokens.embeddings import TextSource, TextTable, all_texts, empty_prompt, encode_texts
from maskgen.tasks.data.tokens.shards import TokenShards
from maskgen.tokenizers.image.toy import ToyTokenizer, ToyTokenizerConfig
from tests.toy_text import Sayings, ToyText, ToyTextConfig

CODES = ToyTokenizer(ToyTokenizerConfig(levels=4, patch=2))


def told(source: Source, rows: Sequence[int]) -> list[str]:
    """The captions that a batch of tokens has."""
    found = [source.texts[int(number)] for number in source.batch(rows, rows)["caption"]]  # type: ignore[attr-defined]
    assert is_captioned(source)
    assert found == source.captions(rows, rows)
    return found


def test_texts_in_two_tensors() -> None:
    texts, numbers = distinct(["b", "", "größe", "b", ""])
    assert (list(texts), numbers.tolist()) == (["b", "", "größe"], [0, 1, 2, 0, 1])
    for some in (texts, Texts.of([""]), Texts.of([])):
        again = Texts.among(some.tensors())
        assert again is not None
        assert (list(again), again.digest()) == (list(some), some.digest())
    assert Texts.among({"tokens": torch.zeros(1)}) is None
    assert Texts.of(["ab", "c"]).digest() != Texts.of(["a", "bc"]).digest()


def test_views_draw_their_own_captions() -> None:
    data = Sayings()
    made = tokenize(data.train(), CODES, views=3, seed=5)
    assert isinstance(made, CaptionedTokens)
    count = len(data.train())
    expected = [data.train().captions([i % count], [5 + i])[0] for i in range(3 * count)]
    assert told(made, range(3 * count)) == expected
    assert len({told(made, [view * count])[0] for view in range(3)}) > 1
    assert len(made.texts) == len(set(expected))
    cut = first_codebooks(made, 1)
    assert isinstance(cut, CaptionedTokens)


def test_kept_tokens_keep_captions(tmp_path: Path) -> None:
    path, said = tmp_path / "train.safetensors", list[str]()
    first = cached_tokens(Sayings().train(), CODES, path, key="images", views=2)
    assert isinstance(first, CaptionedTokens)
    again = cached_tokens(Sayings().train(), CODES, path, key="images", views=2, say=said.append)
    assert isinstance(again, CaptionedTokens)
    assert said == []
    assert (list(again.texts), told(again, range(24))) == (list(first.texts), told(first, range(24)))
    cached_tokens(Sayings(word="paints").train(), CODES, path, key="images", views=2, say=said.append)
    assert "tokens are made anew" in said[0]
    plain = cached_tokens(Sayings(captions=False).train(), CODES, tmp_path / "plain", key="images")
    assert set(plain.tensors) == {"tokens", "labels"}


def shards(out: Path, **changes: Any) -> Path:
    save_module(CODES, out.parent / "toy")
    chosen = {"data": Sayings(), "say": lambda text: None, "batch_size": 5, **changes}
    settings = chosen.pop("shards", ShardSettings(views=2, seed=7, shard_size=10))
    return tokenize_data(settings, tokenizer=out.parent / "toy", out=out, **chosen)


def test_shards_keep_captions(tmp_path: Path) -> None:
    out = shards(tmp_path / "tokens")
    memory = tokenize(Sayings().train(), CODES, views=2, seed=7)
    found = TokenShards(out)
    assert found.has_captions
    assert told(found.train(), range(24)) == told(memory, range(24))
    assert list(found.train().texts) == list(memory.texts)  # type: ignore[attr-defined]
    test = found.test()
    assert test is not None
    assert told(test.first_codebooks(1), range(4)) == Sayings().test().captions(range(4), range(7, 11))
    without = TokenShards(out, captions=False)
    assert not without.has_captions
    assert set(without.train().batch([0], [0])) == {"tokens", "labels"}
    before = {path.name: path.read_bytes() for path in out.glob("*.safetensors")}
    (out / "train-00001.safetensors").unlink()
    shards(out, workers=2)
    assert {path.name: path.read_bytes() for path in out.glob("*.safetensors")} == before
    with pytest.raises(ValueError, match="holds other tokens"):
        shards(out, data=Sayings(word="paints"))
    plain = shards(tmp_path / "plain" / "tokens", data=Sayings(captions=False))
    assert "captions" not in json.loads((plain / "tokens.json").read_text("utf-8"))


def encoded(texts: Sequence[str], folder: Path, encoder: ToyText | None = None, **options: Any) -> TextTable:
    return encode_texts(Texts.of(texts), encoder or ToyText(ToyTextConfig(pooled=True)), folder, **options)


WORDS = [f"word {number} of many" for number in range(10)]


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maskgen.tasks.data.tokens.embeddings, "PART", 4)


@pytest.mark.usefixtures("small_parts")
def test_features_are_made_once_and_looked_up(tmp_path: Path) -> None:
    encoder, said = ToyText(ToyTextConfig(pooled=True)), list[str]()
    table = encoded(WORDS, tmp_path, encoder, say=said.append)
    assert said == ["text: encoding 10 different captions"]
    assert (encoder.calls, len(table), len(list(tmp_path.glob("text-*.safetensors")))) == (10, 10, 3)
    numbers = torch.tensor([9, 0, 4, 9, 3])
    rows, expected = table.rows(numbers), encoder.encode([WORDS[number] for number in numbers])
    for name in ("context", "pooled"):
        torch.testing.assert_close(rows[name], getattr(expected, name), atol=2e-3, rtol=1e-3)
        assert rows[name].dtype == torch.float32
    assert torch.equal(rows["context_mask"], expected.context_mask)
    assert set(table.rows(numbers, ["pooled"])) == {"pooled"}
    encoder.calls = 0
    encoded(WORDS, tmp_path, encoder)
    assert encoder.calls == 0
    (tmp_path / "text-00001.safetensors").unlink()  # killed before it was written
    encoded(WORDS, tmp_path, encoder)
    assert encoder.calls == 4
    encoded(WORDS[:5], tmp_path, encoder, say=said.append)  # fewer captions now
    assert "captions are encoded anew" in said[-2]
    assert len(list(tmp_path.glob("text-*.safetensors"))) == 2


@pytest.mark.usefixtures("small_parts")
def test_processes_share_the_parts(tmp_path: Path) -> None:
    encoders = [ToyText(ToyTextConfig()) for _ in range(2)]
    for rank, encoder in enumerate(encoders):
        encoded(WORDS, tmp_path, encoder, share=(rank, 2))
    assert [encoder.calls for encoder in encoders] == [6, 4]
    assert len(encoded(WORDS, tmp_path, encoders[0])) == 10


def test_features_of_another_encoder_are_refused(tmp_path: Path) -> None:
    encoded(WORDS, tmp_path)
    other = ToyText(ToyTextConfig(pooled=True, seed=1))
    with pytest.raises(
        ValueError, match="holds features of the text encoder ToyText-.*seed=0.*, but this one is ToyText-.*"
    ):
        encoded(WORDS, tmp_path, other)
    assert torch.equal(
        encoded(WORDS, tmp_path, other, again=True).rows(torch.tensor([1]))["context"][0, 0].half(),
        other.encode([WORDS[1]]).context[0, 0].half(),  # type: ignore[index]
    )


class Loud(ToyText):
    """Features beyond half precision."""

    factor = 1e6

    def encode(self, texts: Sequence[str]) -> Cond:
        cond = super().encode(texts)
        assert cond.context is not None
        return Cond(context=torch.where(cond.context > 1, self.factor * cond.context, cond.context))


def test_features_beyond_half_precision(tmp_path: Path) -> None:
    encoder = Loud(ToyTextConfig())
    rows = encoded(WORDS, tmp_path, encoder).rows(torch.arange(10))
    torch.testing.assert_close(rows["context"], encoder.encode(WORDS).context, rtol=5e-3, atol=1e-3)
    encoder.factor = float("nan")
    with pytest.raises(ValueError, match="features of 'word 0 of many' are not finite"):
        encoded(WORDS, tmp_path / "nan", encoder)


def test_long_captions_are_cut_and_that_is_said(tmp_path: Path) -> None:
    with pytest.warns(
        UserWarning, match="1 of 2 captions are longer than the text encoder's window and were cut, such as a"
    ):
        encoded(["a b c d e f g h", "short"], tmp_path)


def test_batches_carry_features(tmp_path: Path) -> None:
    data, encoder = Sayings(), ToyText(ToyTextConfig(pooled=True))
    made = [tokenize(half, CODES) for half in (data.train(), data.test())]
    texts, numbers = all_texts([*made, None])
    table = encode_texts(texts, encoder, tmp_path)
    for half, own in zip(made, numbers[:2], strict=True):
        source, rows = TextSource(half, table, own), [3, 0, 2]
        batch = source.batch(rows, rows)
        expected = encoder.encode(told(half, rows))
        assert set(batch) == {"tokens", "labels", "context", "context_mask", "pooled"}
        torch.testing.assert_close(batch["context"], expected.context, atol=2e-3, rtol=1e-3)
        assert len(source) == len(half)
    null = empty_prompt(texts, table, ["pooled"])
    assert null.context is None
    torch.testing.assert_close(null.pooled, encoder.encode([""]).pooled, atol=2e-3, rtol=1e-3)


def test_features_beside_shards(tmp_path: Path) -> None:
    encoder, out = ToyText(ToyTextConfig()), tmp_path / "tokens"
    shards(out, text=encoder)
    found = TokenShards(out)
    texts, _ = all_texts((found.train(), found.test()))
    assert encoder.calls == len(texts)
    encode_texts(texts, encoder, out / "text")
    assert encoder.calls == len(texts)
    with pytest.raises(ValueError, match="holds features of the text encoder"):
        shards(out, text=ToyText(ToyTextConfig(seed=1)))
    with pytest.raises(ValueError, match="text: got a text encoder, but the data have no captions"):
        shards(tmp_path / "plain", data=Sayings(captions=False), text=encoder)
