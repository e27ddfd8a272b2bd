"""Prompts of calls and model folders with a text encoder."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskgen.conditioning import Cond
from maskgen.tasks.conditions.text import TextEncoder
from maskgen.tasks.image import generate, inpaint
from maskgen.tasks.pipeline import Pipeline
from tests.support import text_encoder_folder, text_pipeline, toy_pipeline


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_encoder_folder(tmp_path_factory.mktemp("encoder"))


def same(one: Sequence[Image.Image], two: Sequence[Image.Image]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


class Spy:
    """Counts the texts that an encoder is given."""

    def __init__(self, encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[list[str]] = []
        plain = encoder.encode

        def encode(texts: Sequence[str]) -> Cond:
            self.calls.append(list(texts))
            return plain(texts)

        monkeypatch.setattr(encoder, "encode", encode)


def test_a_prompt_decides_the_picture(encoder: Path) -> None:
    pipe = text_pipeline(encoder)
    red, blue = (generate(pipe, prompt=f"a {colour} cat", seeds=range(3)) for colour in ("red", "blue"))
    assert not same(red, blue)
    assert same(generate(pipe, prompt=["a red cat", "a blue cat"], seeds=[2, 1]), [red[2], blue[1]])


def test_a_prompt_is_encoded_once(encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = text_pipeline(encoder)
    assert pipe.text is not None
    spy = Spy(pipe.text, monkeypatch)
    generate(pipe, prompt=["a", "b", "a"], steps=4, guidance=2.0, batch_size=1)
    assert [sorted(texts) for texts in spy.calls] == [["a", "b"], [""]]
    generate(pipe, prompt="b", negative_prompt="a", guidance=1.0, steps=4)
    assert len(spy.calls) == 2


def test_many_prompts_of_very_different_length(encoder: Path) -> None:
    pipe = text_pipeline(encoder)
    prompts = ["é" * (number % 12) + f" {number}" for number in range(1000)]
    together = generate(pipe, prompt=prompts, steps=1)
    assert len(together) == 1000
    for number in (0, 11, 500, 999):
        assert same([together[number]], generate(pipe, prompt=prompts[number], seeds=[number], steps=1))


@pytest.mark.parametrize("prompt", ["🦊🍕 in the snow", "قطة حمراء", "a\nb\tc"])
def test_texts_of_any_script(encoder: Path, prompt: str) -> None:
    pipe = text_pipeline(encoder)
    assert not same(generate(pipe, prompt=prompt, seeds=range(4)), generate(pipe, seeds=range(4)))


@pytest.mark.parametrize("prompt", ["", "   \n"])
def test_an_empty_prompt_asks_for_nothing_and_says_so(encoder: Path, prompt: str) -> None:
    pipe = text_pipeline(encoder)
    with pytest.warns(UserWarning, match="prompt: 1 of 1 empty; they ask for nothing"):
        empty = generate(pipe, prompt=prompt, seeds=[3], guidance=2.0)
    assert same(empty, generate(pipe, seeds=[3], guidance=2.0))


def test_guidance_pushes_away_from_the_negative_prompt(encoder: Path) -> None:
    pipe = text_pipeline(encoder)
    made = [
        generate(pipe, prompt="cat", negative_prompt=text, seeds=range(4), guidance=3.0)
        for text in (None, "dog", "cat")
    ]
    assert not same(made[0], made[1])
    assert same(made[2], generate(pipe, prompt="cat", seeds=range(4)))  # pushed away from itself


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"prompt": 3}, TypeError, "prompt: got int, expected a text or a list of texts"),
        ({"prompt": ["a", None]}, TypeError, "prompt: got NoneType at place 1"),
        ({"prompt": b"a"}, TypeError, "prompt: got bytes"),
        ({"prompt": "a", "negative_prompt": "b"}, ValueError, "negative_prompt: got one, but guidance is 0"),
        ({"prompt": ["a", "b"], "seeds": [1, 2, 3]}, ValueError, "got 1 labels, 2 prompts, 3 seeds"),
        ({"prompt": "a " * 40, "long_prompts": "refuse"}, ValueError, "is longer than the text encoder's window"),
        ({"prompt": "a", "long_prompts": "drop"}, ValueError, "long_prompts: got 'drop', expected 'cut' or 'refuse'"),
    ],
)
def test_bad_prompts(encoder: Path, options: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        generate(text_pipeline(encoder), **options)  # type: ignore[arg-type]


def test_what_is_cut_of_a_prompt_is_said(encoder: Path) -> None:
    pipe = text_pipeline(encoder)
    with pytest.warns(UserWarning, match=r"longer than the text encoder's window; cut off: 'b c'"):
        long = generate(pipe, prompt="a " * 18 + "b c", seeds=[1])
    assert same(long, generate(pipe, prompt="a " * 18, seeds=[1]))


def test_models_of_the_other_kind_refuse(encoder: Path) -> None:
    with pytest.raises(
        ValueError, match=r"prompt: got one, but this model takes none \(it was trained without texts\); give a l"
    ):
        generate(toy_pipeline(), prompt="a cat")
    with pytest.raises(ValueError, match="this model has no classes"):
        generate(text_pipeline(encoder), 3)


def test_labels_and_prompts_together(encoder: Path) -> None:
    pipe = text_pipeline(encoder, classes=3)
    both = generate(pipe, ["one", "two"], prompt="a cat", seeds=range(2))
    assert same(
        both, [generate(pipe, 1, prompt="a cat", seeds=[0])[0], generate(pipe, 2, prompt="a cat", seeds=[1])[0]]
    )
    assert not same(both, generate(pipe, ["one", "two"], seeds=range(2)))
    assert not same(both, generate(pipe, prompt="a cat", seeds=range(2)))


def test_inpainting_by_a_text(encoder: Path) -> None:
    pipe = text_pipeline(encoder)
    image, mask = Image.new("RGB", (16, 16), "grey"), Image.new("L", (16, 16))
    mask.paste(255, (4, 4, 12, 12))
    one, two = (inpaint(pipe, image, mask, prompt=text, seeds=range(3)) for text in ("a cat", "a dog"))
    assert not same(one, two)


@pytest.mark.parametrize("keep", [False, True], ids=["by name", "with weights"])
def test_a_model_folder_keeps_its_text_encoder(encoder: Path, tmp_path: Path, keep: bool) -> None:
    pipe = text_pipeline(encoder)
    assert pipe.text is not None
    pipe.text.config = dataclasses.replace(pipe.text.config, keep_weights=keep, source="" if keep else str(encoder))
    expected = generate(pipe, prompt="a cat", seeds=range(2))
    pipe.save_pretrained(tmp_path / "model")
    moved = (tmp_path / "model").rename(tmp_path / "moved")
    assert (moved / "text" / "encoder" / "model.safetensors").is_file() == keep
    again = Pipeline.from_pretrained(moved, device="cpu")
    assert same(generate(again, prompt="a cat", seeds=range(2)), expected)
    again.save_pretrained(tmp_path / "second")
    assert same(generate(Pipeline.from_pretrained(tmp_path / "second"), prompt="a cat", seeds=range(2)), expected)


def test_another_encoder_is_refused(encoder: Path, tmp_path: Path) -> None:
    pipe = text_pipeline(encoder)
    pipe.save_pretrained(tmp_path / "model")
    other = text_encoder_folder(tmp_path / "other", seed=1)
    other.rename(tmp_path / "model" / "text" / "encoder")
    with pytest.raises(
        ValueError, match=r"text: got the encoder CLIP\w+-\w+, but the transformer was trained with CLIP"
    ):
        Pipeline.from_pretrained(tmp_path / "model")


def test_an_encoder_that_is_gone(encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    there = text_encoder_folder(tmp_path / "there")
    text_pipeline(there).save_pretrained(tmp_path / "model")
    there.rename(tmp_path / "elsewhere")
    with pytest.raises(
        FileNotFoundError, match=r"text.source: '.*there' is no folder .*; give the folder, or put its files into"
    ):
        Pipeline.from_pretrained(tmp_path / "model")


def test_features_of_another_width_are_refused(encoder: Path) -> None:
    pipe, other = text_pipeline(encoder), text_pipeline(encoder, pooled="none")
    with pytest.raises(
        ValueError, match="text: the encoder's pooled is none, but ModernTransformer takes a width of 12"
    ):
        Pipeline(pipe.tokenizer, pipe.transformer, other.config, "cpu", text=other.text)
    plain = toy_pipeline()
    with pytest.raises(ValueError, match="text: got an encoder, but ModernTransformer takes no text"):
        Pipeline(plain.tokenizer, plain.transformer, plain.config, "cpu", text=pipe.text)


def test_a_text_model_saved_without_its_encoder(encoder: Path) -> None:
    pipe = text_pipeline(encoder)
    bare = Pipeline(pipe.tokenizer, pipe.transformer, pipe.config, "cpu")
    with pytest.raises(ValueError, match="takes none .its folder has no text encoder."):
        generate(bare, prompt="a cat")
