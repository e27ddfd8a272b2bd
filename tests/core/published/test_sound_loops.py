"""The loops of sound through ``decide``: the settings reach them, filters work with every loop, seeds decide.

Shapes: B batch, T frames, K codebooks, V codes.
"""

import dataclasses
import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskgen.checkpoint import build_config
from maskgen.conditioning import Cond
from maskgen.models.modern import ModernConfig, ModernTransformer
from maskgen.published.loops import Decoding, decide
from maskgen.published.vampnet.sampler import VampNetSampling, sample_vampnet
from maskgen.sampling.codebooks import sample_by_codebook
from maskgen.sampling.filters import TokenFilter, filtered_logits
from maskgen.sampling.guidance import Guidance, guided_logits, model_logits
from maskgen.sampling.loop import SampleStep, sample
from maskgen.sampling.settings import Sampling
from tests.selections import flat_sampling

V, FRAMES, K = 9, 7, 3
AXES, SEEDS = (FRAMES,), [5, 6, 7]
COND = Cond(labels=torch.tensor([0, 1, 1]))
KEEP = {"top_k": 5, "top_p": 0.8, "typical_mass": 0.9, "typical_min_tokens": 3}


@pytest.fixture(scope="module")
def model() -> ModernTransformer:
    """Random weights under which every token, place and class matters."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": V, "num_codebooks": K, "num_classes": 2, "axes": AXES}
    made = ModernTransformer(ModernConfig(**sizes, width=16, layers=1, heads=2)).eval()
    for module in made.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.3)
    return made


def scene() -> tuple[Tensor, Tensor]:
    """Three items; the last has nothing hidden."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(3, FRAMES, K, generator=generator) < torch.tensor([1.0, 0.5, 0.0])[:, None, None]
    return torch.randint(V, mask.shape, generator=generator).masked_fill(mask, V), mask


def run(model: ModernTransformer, rows: slice = slice(None), **settings: Any) -> Tensor:
    tokens, mask = scene()
    assert COND.labels is not None
    cond = Cond(labels=COND.labels[rows])
    prompt = {"tokens": tokens[rows], "mask": mask[rows], "seeds": SEEDS[rows]}
    return decide(Decoding(model=model, cond=cond, axes=AXES, **prompt), flat_sampling(**settings))


LOOPS = ("vampnet", "codebook", "maskgit")


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("guidance", [0.0, 1.5])
def test_known_stay_and_an_item_does_not_depend_on_its_batch(
    model: ModernTransformer, loop: str, guidance: float
) -> None:
    tokens, mask = scene()
    settings: dict[str, Any] = {"sampler": loop, "steps": 4, "guidance": guidance, "select": "span3", **KEEP}
    done = run(model, **settings)
    assert torch.equal(done[~mask], tokens[~mask])
    assert done.min() >= 0
    assert done.max() < V
    assert torch.equal(run(model, slice(1, 2), **settings), done[1:2])


def test_what_the_loops_share(model: ModernTransformer) -> None:
    """VampNet's rule is MaskGIT's over all cells, with cosine and confidence whatever else is asked for."""
    vampnet = run(model, sampler="vampnet", steps=4)
    assert torch.equal(vampnet, run(model, sampler="maskgit", steps=4))
    assert torch.equal(vampnet, run(model, sampler="vampnet", steps=4, schedule="linear", select="random"))
    assert not torch.equal(vampnet, run(model, sampler="maskgit", steps=4, schedule="linear"))
    assert not torch.equal(vampnet, run(model, sampler="codebook", steps=4))


def test_vampnet_gets_its_settings(model: ModernTransformer) -> None:
    tokens, mask = scene()
    numbers: dict[str, Any] = {"temperature": 0.9, "sample_cutoff": 0.5, "batch_counts": True}
    guided = guided_logits(model, COND, Guidance(scale=1.5, ramp="linear"), steps=5, axes=AXES)
    logits_fn = filtered_logits(guided, TokenFilter(**KEEP))
    vampnet = VampNetSampling(steps=5, mask_temperature=10.5, **numbers)
    expected = sample_vampnet(logits_fn, tokens, mask, vampnet, seeds=SEEDS)
    settings: dict[str, Any] = {"guidance": 1.5, "guidance_ramp": "linear", "choice_temperature": 10.5, **numbers}
    assert torch.equal(run(model, sampler="vampnet", steps=5, **settings, **KEEP), expected)
    for name, other in {"sample_cutoff": 1.0, "batch_counts": False, "temperature": 2.0}.items():
        changed = run(model, sampler="vampnet", steps=5, **{**settings, **KEEP, name: other})
        assert not torch.equal(changed, expected), name


def test_codebooks_get_their_settings(model: ModernTransformer) -> None:
    """The guidance ramps anew with each codebook."""
    tokens, mask = scene()
    counts = (4, 3, 2)
    weights = [Guidance(scale=1.5, ramp="linear").weights(count)[step] for count in counts for step in range(count)]
    assert weights.count(0.0) == len(counts)

    def logits_fn(ids: Tensor, step: int) -> Tensor:
        given, none = (model(ids, cond, AXES) for cond in (COND, COND.unconditional()))
        return given + weights[step] * (given - none)

    numbers: dict[str, Any] = {
        "schedule": "sqrt",
        "select": "span2-stride1",
        "temperature": 1.7,
        "choice_temperature": 0.4,
    }
    expected = sample_by_codebook(
        logits_fn, tokens, mask, steps=counts, seeds=SEEDS, anneal=True, keep=TokenFilter(**KEEP), **numbers
    )
    settings: dict[str, Any] = {"sampler": "codebook", "codebook_steps": counts, "guidance": 1.5, "annealed": True}
    done = run(model, guidance_ramp="linear", **settings, **numbers, **KEEP)
    assert torch.equal(done, expected)


def test_steps_are_those_of_each_codebook_if_no_others_are_named(model: ModernTransformer) -> None:
    assert torch.equal(
        run(model, sampler="codebook", steps=3), run(model, sampler="codebook", steps=8, codebook_steps=(3, 3, 3))
    )
    tokens, mask = scene()
    seen: list[SampleStep] = []
    chosen = Sampling(sampler="codebook", steps=3)
    decoding = Decoding(model=model, cond=COND, tokens=tokens, mask=mask, axes=AXES, seeds=SEEDS, callback=seen.append)
    decide(decoding, chosen)
    assert [(state.step, state.steps) for state in seen] == [(step, 9) for step in range(9)]


def test_steps_must_fit_the_codebooks(model: ModernTransformer) -> None:
    with pytest.raises(ValueError, match=r"steps: got \(4, 2\), expected 3 numbers"):
        run(model, sampler="codebook", codebook_steps=(4, 2))


def test_filters_work_with_maskgits_loop(model: ModernTransformer) -> None:
    tokens, mask = scene()
    logits_fn = filtered_logits(model_logits(model, COND, AXES), TokenFilter(top_p=0.5))
    expected = sample(logits_fn, tokens, mask, steps=4, seeds=SEEDS)
    assert torch.equal(run(model, sampler="maskgit", steps=4, top_p=0.5), expected)
    assert not torch.equal(run(model, sampler="maskgit", steps=4), expected)


@pytest.mark.parametrize("loop", ["maskgit", "onedtok", "maskbit", "vampnet", "codebook"])
def test_a_filter_of_one_token_is_greedy_in_every_loop(model: ModernTransformer, loop: str) -> None:
    """With one class left no noise can draw another, so one step takes the most likely tokens."""
    tokens, mask = scene()
    hidden = tokens.masked_fill(mask, V)
    done = run(model, sampler=loop, top_k=1, steps=1)
    if loop == "codebook":
        expected = hidden.clone()
        for k in range(K):
            best = model(expected, COND, AXES).argmax(-1)
            expected[:, :, k] = torch.where(mask[:, :, k], best[:, :, k], tokens[:, :, k])
    else:
        expected = torch.where(mask, model(hidden, COND, AXES).argmax(-1), tokens)
    assert torch.equal(done, expected)


def test_no_filter_by_default() -> None:
    assert not Sampling().filter.enabled
    assert not TokenFilter(typical_min_tokens=3).enabled
    assert all(TokenFilter(**{name: 1}).enabled for name in ("top_k", "top_p", "typical_mass"))
    model = model_logits(lambda tokens, cond, axes=None: tokens, Cond())
    assert filtered_logits(model, TokenFilter()) is model


def test_settings_survive_json() -> None:
    settings = flat_sampling(sampler="codebook", codebook_steps=(20, 10), sample_cutoff=0.5, batch_counts=True, **KEEP)
    written = json.loads(json.dumps(dataclasses.asdict(settings)))
    assert build_config(Sampling, written, "here") == settings
    assert build_config(Sampling, {"steps": 3}, "here") == Sampling(steps=3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampler": "magnet"}, "sampler: got 'magnet', .*'vampnet' or 'codebook'"),
        ({"top_p": 0.0}, "top_p: got 0.0"),
        ({"top_k": 0}, "top_k: got 0"),
        ({"typical_mass": 2.0}, "typical_mass: got 2.0"),
        ({"typical_min_tokens": 0}, "typical_min_tokens: got 0"),
        ({"sample_cutoff": -0.5}, "sample_cutoff: got -0.5"),
        ({"sample_cutoff": math.nan}, "sample_cutoff: got nan"),
        ({"codebook_steps": (4, 0)}, r"codebook_steps: got \(4, 0\)"),
        ({"select": "span0"}, "selector: got 'span0'"),
    ],
)
def test_settings_are_checked(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        flat_sampling(**change)
