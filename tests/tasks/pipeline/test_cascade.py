"""A cascade: one folder and one call for two models, the small grid decided before the large one."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from maskgen.models.context import CoarseConfig, ContextConfig
from maskgen.models.modern import ModernConfig, ModernTransformer
from maskgen.sampling.guidance import Guidance
from maskgen.sampling.settings import Sampling
from maskgen.tasks.conditions.request import Request
from maskgen.tasks.image import edit, generate, inpaint, outpaint, revise, swap_class
from maskgen.tasks.image.editing import revise_sampling
from maskgen.tasks.media.images import to_tensor
from maskgen.tasks.model_folder import PipelineConfig
from maskgen.tasks.pipeline import Pipeline
from maskgen.tasks.pipeline.cascade import small_mask
from maskgen.tokenizers.image.toy import ToyTokenizer, ToyTokenizerConfig
from tests.tasks.commandline import run
from tests.toy_text import ToyText, ToyTextConfig

SAMPLING = Sampling(steps=3, temperature=1.0)


def stage(size: int, levels: int, context: ContextConfig, **parts: Any) -> Pipeline:
    """A model of pictures of ``size`` in patches of 2 whose random weights let everything through."""
    classes = parts.pop("classes", 2)
    with torch.random.fork_rng():
        torch.manual_seed(size)
        config = ModernConfig(
            vocab_size=levels, num_classes=classes, axes=(size // 2,) * 2, width=16, layers=2, heads=2, context=context
        )
        transformer = ModernTransformer(config)
        for weight in transformer.parameters():
            nn.init.normal_(weight, std=0.4)
    described = PipelineConfig(signal_size=(size, size), class_names=("no", "yes")[:classes], sampling=SAMPLING)
    return Pipeline(ToyTokenizer(ToyTokenizerConfig(levels=levels, patch=2)), transformer, described, "cpu", **parts)


def cascade(width: int = 0, **first: Any) -> Pipeline:
    """16 x 16 in 6 levels from 8 x 8 in 5."""
    text = {"text": ToyText(ToyTextConfig())} if width else {}
    small = stage(8, 5, ContextConfig(width=width, every=1), **text, **first)
    told = ContextConfig(width=width, every=1, coarse=CoarseConfig(vocab_size=5, axes=(4, 4), layers=1))
    return stage(16, 6, told, coarse=small, **({"text": ToyText(ToyTextConfig())} if width else {}))


class Spy:
    """Keeps what the first stage is asked, and what it answers."""

    def __init__(self, pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
        assert pipe.coarse is not None
        self.asked: list[tuple[torch.Tensor, torch.Tensor, Request]] = []
        self.made: list[torch.Tensor] = []
        plain = pipe.coarse.fill

        def fill(tokens: torch.Tensor, mask: torch.Tensor, request: Request, **options: Any) -> torch.Tensor:
            self.asked.append((tokens, mask, request))
            self.made.append(plain(tokens, mask, request, **options))
            return self.made[-1]

        monkeypatch.setattr(pipe.coarse, "fill", fill)


@pytest.fixture
def picture() -> Image.Image:
    grey = np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)
    return Image.fromarray(grey).convert("RGB")


def same(one: Image.Image, two: Image.Image) -> bool:
    return np.array_equal(one, two)


def test_the_second_stage_makes_its_pictures_of_what_the_first_makes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = cascade()
    assert pipe.coarse is not None
    alone = pipe.coarse.generation([1, 0], {"seeds": [3, 4]})
    empty = torch.zeros(2, 16, 1, dtype=torch.long)
    small = pipe.coarse.fill(empty, torch.ones_like(empty, dtype=torch.bool), alone)
    spy = Spy(pipe, monkeypatch)
    made = generate(pipe, [1, 0], seeds=[3, 4])
    assert [one.size for one in made] == [(16, 16)] * 2
    assert torch.equal(spy.made[0], small)
    request = pipe.generation([1, 0], {"seeds": [3, 4]})
    again = pipe.decode(pipe.enlarge(small, request))
    assert torch.equal(again, to_tensor(made)) or torch.allclose(again, to_tensor(made), atol=1 / 255)
    other = pipe.decode(pipe.enlarge(4 - small, request))
    assert not torch.equal(again, other)
    assert len(spy.made) == 1, "tokens that are given are not made"


def test_rows_and_batches_do_not_matter() -> None:
    pipe = cascade()
    together = generate(pipe, [1, 0, 1], seeds=[3, 4, 5])
    assert all(
        same(*pair) for pair in zip(together, generate(pipe, [1, 0, 1], seeds=[3, 4, 5], batch_size=1), strict=True)
    )
    assert same(together[1], generate(pipe, 0, seeds=[4])[0])


def test_settings_of_each_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = cascade()
    spy = Spy(pipe, monkeypatch)
    steps: list[int] = []
    generate(
        pipe, 0, steps=2, guidance=1.5, coarse_sampling=Sampling(steps=5), callback=lambda step: steps.append(step.step)
    )
    assert len(steps) == 5 + 2
    asked = spy.asked[0][2].sampling
    assert (asked.steps, asked.guidance.scale) == (5, 1.5)
    generate(pipe, 0, guidance=1.5, coarse_sampling=Sampling(guidance=Guidance(scale=3.0)))
    assert spy.asked[1][2].sampling.steps == SAMPLING.steps
    with pytest.raises(ValueError, match="coarse_sampling: got settings, but this model is no cascade"):
        generate(pipe.coarse, 0, coarse_sampling=SAMPLING)  # type: ignore[arg-type]


def test_one_folder(tmp_path: Path) -> None:
    pipe = cascade()
    pipe.save_pretrained(tmp_path)
    loaded = Pipeline.from_pretrained(tmp_path, device="cpu")
    assert same(generate(loaded, 1, seeds=[2])[0], generate(pipe, 1, seeds=[2])[0])
    pipe.coarse.save_pretrained(tmp_path)  # type: ignore[union-attr]
    assert Pipeline.from_pretrained(tmp_path, device="cpu").coarse is None, "an earlier save's parts are taken away"


def test_without_a_first_stage_it_says_what_is_missing(tmp_path: Path) -> None:
    pipe = cascade()
    pipe._coarse = None
    pipe.save_pretrained(tmp_path)
    loaded = Pipeline.from_pretrained(tmp_path, device="cpu")
    with pytest.raises(
        ValueError, match=r"second stage of a cascade, but has no first one \(a model in its folder coa"
    ):
        generate(loaded, 0)


def test_prompts_reach_both_stages_and_are_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = cascade(width=8)
    spy = Spy(pipe, monkeypatch)
    one, two = generate(pipe, 0, prompt=["a cat", "a dog"], negative_prompt="a bird", guidance=1.0, seeds=[1, 1])
    assert not same(one, two)
    cond = spy.asked[0][2].cond
    assert cond.context is not None
    assert cond.null is not None
    assert not torch.equal(cond.context[0], cond.context[1])
    assert isinstance(pipe.text, ToyText)
    assert pipe.coarse is not None
    assert (pipe.text.calls, pipe.coarse.text) == (3, pipe.text)


def test_inpainting_masks_both_grids(picture: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = cascade()
    spy = Spy(pipe, monkeypatch)
    hole = np.zeros((16, 16), dtype=bool)
    hole[6:8, 0:2] = True  # one token of the large grid, in cell (1, 0) of the small one
    made = inpaint(pipe, picture, hole, feather=0, label=1, seeds=range(6))
    tokens, mask, request = spy.asked[0]
    assert mask[0].flatten().nonzero().flatten().tolist() == [4]
    assert torch.equal(spy.made[0][~mask], tokens[~mask])
    assert len({spy.made[0][row, 4].item() for row in range(6)}) > 1
    assert request.seeds == list(range(6))
    outside = ~hole
    assert all(np.array_equal(np.array(one)[outside], np.array(picture)[outside]) for one in made)


def test_what_the_first_stage_sees_is_the_mean_of_areas(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = cascade()
    spy = Spy(pipe, monkeypatch)
    shown = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    region = torch.zeros(16, 16, dtype=torch.bool)
    region[15, 15] = True
    pipe.edit(shown, region, pipe.request({"label": 0}))
    blocks = shown.unflatten(2, (4, 4)).unflatten(4, (4, 4)).mean(dim=(1, 3, 5)).flatten()
    assert torch.equal(spy.asked[0][0].flatten(), (blocks * 4).round().long())
    assert spy.asked[0][1].flatten().nonzero().tolist() == [[15]]


def test_masked_cells_of_grids_that_do_not_divide() -> None:
    mask = torch.zeros(2, 25, 1, dtype=torch.bool)
    mask[0, 12], mask[1, 0] = True, True  # the middle touches all four
    assert small_mask(mask, (5, 5), (2, 2)).squeeze(-1).tolist() == [[True] * 4, [True, False, False, False]]


def test_other_edits(picture: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = cascade()
    spy = Spy(pipe, monkeypatch)
    wide = outpaint(pipe, picture, right=6, label=1)[0]
    assert wide.size == (22, 16)
    assert np.array_equal(np.array(wide)[:, :10], np.array(picture)[:, :10])
    assert all(0 < mask.float().mean() < 1 for _, mask, _ in spy.asked)
    spy.asked.clear()
    swap_class(pipe, picture, box=(2, 2, 4, 4), label=1)
    assert 0 < spy.asked[0][1].float().mean() < 1
    spy.asked.clear()
    changed = edit(pipe, picture, strength=0.4, label=1, seeds=range(3))
    assert len(changed) == 3
    assert 0 < spy.asked[0][1].float().mean() < 1
    spy.asked.clear()
    revise(pipe, picture, rounds=3, share=0.1, label=1)
    assert len(spy.asked) == 3
    assert spy.asked[0][2].sampling == revise_sampling(None).over(SAMPLING)
    assert torch.equal(spy.asked[1][0], spy.made[-3])


@pytest.mark.parametrize(
    ("first", "message"),
    [
        (lambda: stage(8, 7, ContextConfig()), r"context.coarse has 5 codes on \(4, 4\), expected 7 on \(4, 4\)"),
        (lambda: stage(4, 5, ContextConfig()), r"context.coarse has 5 codes on \(4, 4\), expected 5 on \(2, 2\)"),
        (lambda: stage(8, 5, ContextConfig(), classes=1), "has 1 classes, the second 2"),
    ],
)
def test_stages_that_do_not_fit(first: Any, message: str) -> None:
    pipe = cascade()
    with pytest.raises(ValueError, match=message):
        Pipeline(pipe.tokenizer, pipe.transformer, pipe.config, "cpu", coarse=first())


def test_a_model_that_takes_no_smaller_grid() -> None:
    small, large = stage(8, 5, ContextConfig()), stage(16, 6, ContextConfig())
    with pytest.raises(ValueError, match=r"context.coarse has 0 codes on \(\), expected 5 on \(4, 4\)"):
        Pipeline(large.tokenizer, large.transformer, large.config, "cpu", coarse=small)
    pipe = cascade()
    wide = dataclasses.replace(pipe.config, signal_size=(16, 12))
    with pytest.raises(
        ValueError, match=r"coarse: got a model of pictures of 8 x 8 with 1 codebook.* shape of 16 x 12"
    ):
        Pipeline(pipe.tokenizer, pipe.transformer, wide, "cpu", coarse=pipe.coarse)


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cascade().save_pretrained(tmp_path / "model")
    told = ["--coarse_sampling.steps", "4", "--guidance", "1.5", "--steps", "2"]
    run("generate", "--model", str(tmp_path / "model"), "--labels", "1", "--out", str(tmp_path / "a"), *told)
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text(encoding="utf-8"))
    assert [manifest[name]["steps"] for name in ("sampling", "coarse_sampling")] == [2, 4]
    assert manifest["coarse_sampling"]["guidance"]["scale"] == 1.5
    run("generate", "--manifest", str(tmp_path / "a" / "manifest.json"), "--out", str(tmp_path / "b"))
    name = manifest["items"][0]["file"]
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    capsys.readouterr()
    run("info", "--model", str(tmp_path / "model"))
    shown = json.loads(capsys.readouterr().out)
    assert (shown["token_axes"], shown["coarse"]["token_axes"]) == ([8, 8], [4, 4])
    assert shown["coarse"]["sampling"]["steps"] == 3
