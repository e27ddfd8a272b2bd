"""What the sampler leaves out changes no id: every path against a plain function of whole forwards on the same noise."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from maskgen.conditioning import NO_LABEL, Cond
from maskgen.models.base import PartialTransformer
from maskgen.models.bert import BertTransformer
from maskgen.models.partial import first_positions, take
from maskgen.noise import SeededNoise, sample_noise
from maskgen.sampling.critics import critic_scores
from maskgen.sampling.filters import filtered_logits, top_k
from maskgen.sampling.guidance import Guidance, guided_logits, model_logits, self_guided_logits
from maskgen.sampling.loop import SampleStep, sample
from maskgen.sampling.selectors.base import Selector
from maskgen.sampling.selectors.named import get_selector
from tests.core.sampling.speed.scenes import LABELS, Watched, decode, model_of, scene
from tests.core.toys import FAMILIES, shaken, transformer

SELECTS = ["confidence", "random", "halton", "moment", "entropy:2", "critic", "remdm-cap:0.3", "span2"]
GRIDS = [("bert", (3, 4), 1), ("modern", (12,), 2), ("modern", (2, 2, 3), 3)]
RUNS: list[tuple[str, int, int, dict[str, Any]]] = [  # kind of scene, steps, first step, guidance
    ("free", 5, 0, {}),
    ("same", 4, 1, {"scale": 1.3}),
    ("edit", 5, 0, {}),
    ("edit", 16, 0, {"scale": 2.0, "ramp": "linear"}),
    ("free", 4, 0, {"scale": 2.0, "interval": (0.3, 0.7)}),
]


def plain(model: PartialTransformer, cond: Cond, weights: list[float], axes: tuple[int, ...]) -> Any:
    """Guidance by the book: each half for itself, everywhere, at every step."""

    def logits_fn(tokens: Tensor, step: int) -> Tensor:
        found: Tensor = model(tokens, cond, axes)
        if not weights:
            return found
        return found + weights[step] * (found - model(tokens, cond.unconditional(), axes))

    return logits_fn


def both(
    model: PartialTransformer,
    axes: tuple[int, ...],
    tokens: Tensor,
    mask: Tensor,
    guidance: dict[str, Any],
    **more: Any,
) -> tuple[Tensor, Tensor]:
    """Ids of the plain loop, watched so that no step is left out, and those of the fast one."""
    cond, steps = Cond(labels=torch.tensor(LABELS)), more["steps"]
    critic = critic_scores(model, cond, axes)
    chosen = get_selector(more.pop("select"), axes=axes, critic=critic)
    options = {"seeds": [4, 5, 6, 7], "select": chosen, **more}
    weights = Guidance(**guidance).weights(steps) if guidance else []
    expected = sample(plain(model, cond, weights, axes), tokens, mask, callback=lambda step: None, **options)
    prediction = model_logits(model, cond, axes)
    if guidance:
        prediction = guided_logits(model, cond, Guidance(**guidance), steps=steps, axes=axes)
    return expected, sample(prediction, tokens, mask, **options)


@pytest.mark.parametrize("select", SELECTS)
@pytest.mark.parametrize(("family", "axes", "codebooks"), GRIDS)
def test_ids_are_those_of_whole_forwards(family: str, axes: tuple[int, ...], codebooks: int, select: str) -> None:
    model = model_of(family, axes, codebooks)
    for kind, steps, start, guidance in RUNS if codebooks == 1 else RUNS[codebooks::2]:
        tokens, mask = scene(axes, codebooks, steps, kind)
        options = {"steps": steps, "start_step": start, "select": select}
        expected, found = both(model, axes, tokens, mask, guidance, **options)
        assert torch.equal(expected, found), (kind, steps, guidance)
        assert torch.equal(found[~mask], tokens[~mask])
        assert found.max() < 11


@pytest.mark.parametrize(("family", "axes", "codebooks"), GRIDS)
def test_these_models_have_a_say(family: str, axes: tuple[int, ...], codebooks: int) -> None:
    model, (tokens, mask) = model_of(family, axes, codebooks), scene(axes, codebooks, 0, "free")
    options: dict[str, Any] = {"steps": 5, "seeds": [4, 5, 6, 7]}
    cond = Cond(labels=torch.tensor(LABELS))
    ids = sample(model_logits(model, cond, axes), tokens, mask, **options)
    other = sample(model_logits(model, Cond(labels=3 - cond.labels), axes), tokens, mask, **options)
    pushed = sample(guided_logits(model, cond, Guidance(scale=4.0), steps=5, axes=axes), tokens, mask, **options)
    first = model(tokens, cond, axes)
    alone = sample(lambda seen, step: first, tokens, mask, **options)  # a model that does not look at its tokens
    assert not any(torch.equal(ids, found) for found in (other, pushed, alone))


@settings(max_examples=12)
@given(
    seed=st.integers(0, 2**31 - 1),
    steps=st.integers(1, 9),
    select=st.sampled_from(SELECTS),
    schedule=st.sampled_from(["cosine", "arccos", "linear", "square"]),
    temperature=st.sampled_from([1.0, 0.0, "linear:1.5,0.5"]),
    choice_temperature=st.sampled_from([4.5, 0.0, "constant:1"]),
)
def test_ids_with_other_settings(seed: int, steps: int, select: str, **more: Any) -> None:
    model = model_of("modern", (3, 4), 2)
    tokens, mask = scene((3, 4), 2, seed, "edit")
    expected, found = both(model, (3, 4), tokens, mask, {"scale": 1.0}, steps=steps, select=select, **more)
    assert torch.equal(expected, found)


@pytest.mark.parametrize("family", FAMILIES)
def test_self_guidance_and_filters(family: str) -> None:
    axes, model = (3, 4), model_of(family, (3, 4), 1)
    cond = Cond(labels=torch.tensor(LABELS))
    tokens, mask = scene(axes, 1, 1, "edit")
    fast = self_guided_logits(model, cond, Guidance(scale=1.5), steps=5, seeds=[4, 5, 6, 7], mask_id=11, axes=axes)
    keep = functools.partial(top_k, k=2)
    options: dict[str, Any] = {"steps": 5, "seeds": [4, 5, 6, 7]}
    expected = sample(lambda ids, step: keep(fast(ids, step)), tokens, mask, callback=lambda step: None, **options)
    assert torch.equal(expected, sample(filtered_logits(fast, keep), tokens, mask, **options))
    assert not torch.equal(expected, sample(fast, tokens, mask, **options))


# What is left out


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(model_of("bert", (3, 4), 1), monkeypatch)


def test_conditions_are_prepared_once(watched: Watched) -> None:
    decode(watched.model, "free", steps=6)
    assert watched.prepared == 1
    decode(watched.model, "free", {"scale": 1.0, "ramp": "linear"}, steps=6)
    assert watched.prepared <= 3  # the step of weight 0 comes first, with half the rows
    assert [rows for rows, _ in watched.forwards[6:]] == [2] + [8] * 5


def test_only_open_places_are_predicted(watched: Watched) -> None:
    decode(watched.model, "free", steps=4)
    # 12 tokens by the cosine: 11, 8 and 4 stay hidden.
    assert watched.forwards == [(2, None), (4, 11), (4, 8), (4, 4)]
    watched.forwards.clear()
    decode(watched.model, "edit", steps=4)
    hidden = int(scene((3, 4), 1, 0, "edit")[1].flatten(1).sum(1).max())
    assert watched.forwards[0] == (4, hidden)


def test_a_selector_that_is_blind_predicts_what_it_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(shaken(transformer("bert", axes=(8, 8), layers=2)), monkeypatch)  # type: ignore[arg-type]
    tokens, mask = torch.full((2, 64, 1), 11), torch.ones(2, 64, 1, dtype=torch.bool)
    prediction = model_logits(watched.model, Cond(labels=torch.tensor([0, 1])))
    sample(prediction, tokens, mask, steps=8, schedule="linear", select="random", seeds=[1, 2])
    # 8 a step, and room for ties but in the last.
    assert watched.forwards == [(2, 12)] * 7 + [(2, 8)]
    watched.forwards.clear()
    seen: list[SampleStep] = []
    sample(prediction, tokens, mask, steps=8, schedule="linear", select="random", seeds=[1, 2], callback=seen.append)
    assert watched.forwards == [(2, 12)] * 7 + [(2, 8)]  # whoever watches
    assert all(int(step.tokens.max()) < 11 for step in seen)
    assert not any(step.tokens[step.mask].any() for step in seen[:-1])


def test_steps_that_change_nothing_are_not_run(watched: Watched) -> None:
    tokens, mask = scene((3, 4), 1, 0, "free")
    mask = mask & (torch.arange(12)[:, None] < 3)
    known = tokens.masked_fill(~mask, 4)
    prediction = model_logits(watched.model, Cond(labels=torch.tensor(LABELS)))
    options: dict[str, Any] = {"steps": 20, "seeds": [1, 2, 3, 4]}
    done = sample(prediction, known, mask, **options)
    assert len(watched.forwards) < 20
    assert torch.equal(done, sample(prediction, known, mask, callback=lambda step: None, **options))
    watched.forwards.clear()
    one = mask & (torch.arange(12)[:, None] < 1)
    sample(prediction, tokens.masked_fill(~one, 4), one, **options)
    assert len(watched.forwards) == 1
    watched.forwards.clear()
    assert torch.equal(sample(prediction, known, torch.zeros_like(mask), **options), known)
    assert watched.forwards == []


def test_ties_leave_no_hole() -> None:
    """An order without logits whose places all tie decides no more than it has predicted, and all in the end."""
    axes, model = (3, 4), model_of("bert", (3, 4), 1)
    tied = Selector(remask=lambda seen: torch.zeros_like(seen.mask), bounded=True, blind=True)
    tokens, mask = scene(axes, 1, 0, "free")
    prediction = model_logits(model, Cond(labels=torch.tensor(LABELS)))
    assert sample(prediction, tokens, mask, steps=4, seeds=[1, 2, 3, 4], select=tied).max() < 11


class Waits(TorchDispatchMode):
    """Notes operators that would make the host wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        waiting = ("_local_scalar_dense", "nonzero", "unique", "masked_select", "equal", "item", "_to_copy.default-cpu")
        if any(word in str(func) for word in waiting):
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("select", ["confidence", "random", "halton", "moment", "remdm-conf"])
def test_nothing_waits_inside_the_loop(select: str) -> None:
    model = model_of("modern", (3, 4), 1)
    tokens, mask = scene((3, 4), 1, 0, "free")
    chosen = get_selector(select, axes=(3, 4))
    for steps in (3, 9):
        prediction = guided_logits(model, Cond(labels=torch.tensor(LABELS)), Guidance(scale=1.0), steps=steps)
        with Waits() as waits:
            sample(prediction, tokens, mask, steps=steps, seeds=[1, 2, 3, 4], select=chosen)
        if steps == 3:
            before = len(waits.names)
    assert len(waits.names) == before  # all of it before the first step, however many follow


# The parts


@pytest.mark.parametrize(("family", "axes", "codebooks"), GRIDS)
def test_logits_of_some_places(family: str, axes: tuple[int, ...], codebooks: int) -> None:
    model = model_of(family, axes, codebooks)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(12, (3, 12, codebooks), generator=generator)
    cond = Cond(labels=torch.tensor([2, NO_LABEL, 0]))
    whole = model(tokens, cond, axes)
    prepared = model.prepare(cond, tokens, axes)
    assert torch.equal(model.logits_at(tokens, prepared), whole)
    places = torch.rand(3, 12, generator=generator).argsort(dim=1)[:, :5]
    torch.testing.assert_close(model.logits_at(tokens, prepared, places), take(whole, places), atol=1e-5, rtol=1e-5)
    some = prepared.pick(torch.tensor([2, 0]))
    torch.testing.assert_close(model.logits_at(tokens[[2, 0]], some), whole[[2, 0]], atol=1e-5, rtol=1e-5)


@given(
    vocab=st.integers(2, 7),
    codebooks=st.integers(1, 3),
    places=st.integers(1, 9),
    step=st.integers(0, 50),
    seed=st.integers(0, 2**62),
)
def test_noise_at_places_is_that_noise(vocab: int, codebooks: int, places: int, step: int, seed: int) -> None:
    noise, shape = SeededNoise([seed, 7]), (2, places, codebooks, vocab)
    at = torch.rand(2, places).argsort(dim=1)[:, : max(1, places // 2)]
    expected = take(noise.sample(step, shape), at)
    assert torch.equal(sample_noise(noise, step, shape, at), expected)
    assert torch.equal(sample_noise(noise, step, shape), noise.sample(step, shape))

    class Other(SeededNoise):
        def sample(self, step: int, shape: Any) -> Tensor:
            return super().sample(step, shape) + 1

    assert torch.equal(sample_noise(Other([seed, 7]), step, shape, at), expected + 1)


def test_first_positions() -> None:
    wanted = torch.tensor([[0, 1, 0, 1, 1], [1, 0, 0, 0, 0]], dtype=torch.bool)
    assert first_positions(wanted, 3).tolist() == [[1, 3, 4], [0, 1, 2]]


def test_a_model_with_a_forward_of_its_own_is_run_by_it() -> None:
    class Other(BertTransformer):
        def forward(self, tokens: Tensor, cond: Cond, axes: Any = None) -> Tensor:
            return super().forward(tokens, cond, axes) * 2

    model = shaken(Other(transformer("bert", layers=3).config))
    cond, (tokens, mask) = Cond(labels=torch.tensor(LABELS)), scene((3, 4), 1, 0, "free")
    prediction = model_logits(model, cond)
    assert not prediction.is_partial
    options: dict[str, Any] = {"steps": 4, "seeds": [1, 2, 3, 4]}
    calls: list[Callable[[Tensor, int], Tensor]] = [prediction, lambda ids, step: model(ids, cond)]
    with torch.no_grad():
        assert torch.equal(*(sample(call, tokens, mask, **options) for call in calls))
