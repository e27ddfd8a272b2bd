"""Models trained with no vector at all in place of a missing text, as lucidrains' Muse: what prompts become there."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maskgen.objectives.conditions import batch_cond
from maskgen.published.muse.transformer import MuseConfig, MuseCritic, MuseTransformer, without_text
from maskgen.sampling.settings import Sampling
from maskgen.tasks.conditions.text.prompts import Prompts, Wording
from maskgen.tasks.data.tokens.cache import tokenize
from maskgen.tasks.image import generate, inpaint
from maskgen.tasks.pipeline import Pipeline
from maskgen.tasks.training.text import with_captions
from maskgen.tokenizers.image.toy import ToyTokenizer, ToyTokenizerConfig
from tests.core.toys import shaken
from tests.support import text_encoder_folder, text_pipeline
from tests.toy_text import Sayings, ToyText, ToyTextConfig

CODES = ToyTokenizer(ToyTokenizerConfig(levels=4, patch=2))


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    other = text_pipeline(text_encoder_folder(tmp_path_factory.mktemp("encoder")), pooled="none")
    sizes = {"width": 12, "layers": 2, "heads": 2, "head_width": 4, "mlp_width": 16}
    torch.manual_seed(0)
    model = shaken(MuseTransformer(MuseConfig(codebook_size=8, axes=(8, 8), text_width=16, **sizes)))
    return Pipeline(other.tokenizer, model, other.config, "cpu", text=other.text)


def same(one: Sequence[Image.Image], two: Sequence[Image.Image]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def test_no_text_has_no_vectors_and_a_negative_prompt_has(pipe: Pipeline) -> None:
    assert isinstance(pipe.prompts, Prompts)
    cond = pipe.prompts.cond(Wording(prompts=("a red cat", "")), pipe.transformer, 2)
    assert cond.context_mask is not None
    assert cond.context_mask.any(1).tolist() == [True, False]
    assert cond.null is not None
    assert cond.null.context_mask is not None
    assert not cond.null.context_mask.any()
    tokens = torch.full((2, 64, 1), 8)
    with torch.no_grad():
        torch.testing.assert_close(
            pipe.transformer(tokens, cond.unconditional()), pipe.transformer(tokens, without_text(cond))
        )
    told = pipe.prompts.cond(Wording(prompts=("a red cat",), negatives=("blue",)), pipe.transformer, 2)
    assert told.null is not None
    assert told.null.context_mask is not None
    assert told.null.context_mask.any(1).all()


def test_it_generates_and_paints_by_text_and_comes_back_from_its_folder(pipe: Pipeline, tmp_path: Path) -> None:
    red, blue, nothing = (
        generate(pipe, **asked, seeds=range(3), guidance=2.0)
        for asked in ({"prompt": "a red cat"}, {"prompt": "a blue cat"}, {})
    )
    assert not same(red, blue)
    assert not same(red, nothing)
    pushed = generate(pipe, prompt="a red cat", negative_prompt="blue", seeds=range(3), guidance=2.0)
    assert not same(red, pushed), "the original cannot"
    pipe.save_pretrained(tmp_path / "model")
    again = Pipeline.from_pretrained(tmp_path / "model", device="cpu")
    assert same(generate(again, prompt="a red cat", seeds=range(3), guidance=2.0), red)
    mask = np.zeros((16, 16), dtype=bool)
    mask[4:12, 4:12] = True
    painted = inpaint(again, red[0], mask, prompt="a blue cat", seeds=[1])
    assert np.array_equal(np.asarray(painted[0])[0], np.asarray(red[0])[0])


def test_training_drops_text_as_sampling_does(tmp_path: Path) -> None:
    """Its own rows without a caption, too."""
    data, encoder = Sayings(), ToyText(ToyTextConfig())
    sizes = {"width": 12, "layers": 1, "heads": 2, "head_width": 4, "mlp_width": 16}
    model = MuseTransformer(MuseConfig(codebook_size=8, axes=(8, 8), text_width=encoder.context_width, **sizes)).eval()
    sources = (tokenize(data.train(), CODES), None)
    options = {"again": False, "say": lambda text: None}
    (source, _), null = with_captions(encoder, model, sources, data, tmp_path, **options)  # type: ignore[arg-type]
    assert null.context_mask is not None
    assert not null.context_mask.any()
    batch = source.batch(range(4), range(4))
    assert batch["context_mask"].any(1).all()
    assert source.table.absent is not None  # type: ignore[attr-defined]
    nothing = source.table.rows(torch.tensor([source.table.absent, 0]))  # type: ignore[attr-defined]
    assert nothing["context_mask"].any(1).tolist() == [False, True]
    batch.pop("labels", None)
    dropped = torch.tensor([True, False, False, True])
    tokens = torch.full((4, 64, 1), 8)
    with torch.no_grad():
        ours = model(tokens, batch_cond(batch | {"tokens": tokens}, dropped, null))
        expected = model(tokens, without_text(batch_cond(batch), dropped))
    torch.testing.assert_close(ours, expected)


def test_the_published_loop_by_name(pipe: Pipeline) -> None:
    """With self-conditioning and a critic, which plain loops do not know."""
    sizes = {"width": 12, "layers": 1, "heads": 2, "head_width": 4, "mlp_width": 16, "text_width": 16}
    config = MuseConfig(codebook_size=8, axes=(8, 8), **sizes)
    torch.manual_seed(1)
    model = shaken(MuseTransformer(dataclasses.replace(config, self_conditioned=True)))
    judged = Pipeline(pipe.tokenizer, model, pipe.config, "cpu", text=pipe.text, critic=shaken(MuseCritic(config)))
    made = {
        name: generate(judged, prompt="a red cat", seeds=range(3), guidance=2.0, sampling=sampling)
        for name, sampling in (
            ("ours", Sampling(steps=6)),
            ("muse", Sampling(sampler="muse", steps=6)),
            ("critic", Sampling(sampler="muse", select="critic", steps=6)),
        )
    }
    assert not same(made["ours"], made["muse"])
    assert not same(made["muse"], made["critic"])
    with pytest.raises(ValueError, match="works with the sampler 'maskgit' only, got sampler 'muse'"):
        Sampling(sampler="muse", select="self-critic")
