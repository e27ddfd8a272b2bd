"""COMMIT's decoding against a slow reference, and what must hold whatever the model says."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from maskgen.conditioning import NO_LABEL, Cond
from maskgen.noise import SeededNoise
from maskgen.sampling.commit import CommitInputs, Prompt, commit_guided_logits, commit_logits, sample_commit
from maskgen.sampling.filters import TokenFilter
from maskgen.sampling.guidance import Guidance
from maskgen.sampling.loop import SampleStep
from maskgen.sampling.selectors.ranking import mask_lowest
from maskgen.testing import OracleModel, UniformModel
from tests.core.sampling.reference_commit import reference_commit
from tests.core.sampling.test_loop import TableModel
from tests.core.toys import FAMILIES, shaken, transformer


class Case:
    """A random task: condition, its region and a model."""

    def __init__(self, seed: int, rows: int, places: int, codebooks: int, vocab: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        shape = (rows, places, codebooks)
        density = torch.rand(rows, 1, 1, generator=generator)
        self.known = (
            torch.rand(shape, generator=generator) < 1.5 * density - 0.25
        )  # some rows all known, some not at all
        self.condition = torch.randint(vocab, shape, generator=generator)
        self.vocab = vocab
        self.model = TableModel(places, codebooks, vocab, seed + 1)
        self.seeds = [seed * 7 + row for row in range(rows)]

    def rows(self, chosen: list[int]) -> dict[str, object]:
        return {
            "condition": self.condition[chosen],
            "given": self.known[chosen],
            "seeds": [self.seeds[row] for row in chosen],
        }

    def logits(self, inputs: CommitInputs, step: int) -> Tensor:
        return self.model(inputs.tokens, step)


CASES = st.builds(
    Case,
    seed=st.integers(0, 10_000),
    rows=st.integers(1, 3),
    places=st.integers(1, 9),
    codebooks=st.integers(1, 3),
    vocab=st.integers(2, 6),
)
STEPS = st.integers(1, 8)


def run(case: Case, **settings: object) -> tuple[Tensor, list[SampleStep], list[CommitInputs]]:
    seen: list[SampleStep] = []
    shown: list[CommitInputs] = []

    def watched(inputs: CommitInputs, step: int) -> Tensor:
        shown.append(inputs)
        return case.logits(inputs, step)

    options: dict[str, object] = {"mask_id": case.vocab, "steps": 4, "seeds": case.seeds, "callback": seen.append}
    return sample_commit(watched, case.condition, case.known, **(options | settings)), seen, shown  # type: ignore[arg-type]


@given(
    case=CASES,
    steps=STEPS,
    schedule=st.sampled_from(["cosine", "uniform"]),
    temperature=st.sampled_from([0.0, 0.7, 1.0, 1.5]),
    choice_temperature=st.sampled_from([0.0, 1.0, 4.5]),
)
def test_equals_the_slow_reference(
    case: Case, steps: int, schedule: str, temperature: float, choice_temperature: float
) -> None:
    settings = {
        "mask_id": case.vocab,
        "steps": steps,
        "schedule": schedule,
        "temperature": temperature,
        "choice_temperature": choice_temperature,
    }
    noise = SeededNoise(case.seeds)
    ids, hidden = reference_commit(
        lambda tokens: case.model(tokens, 0),
        case.condition,
        case.known,
        noise,
        **settings,  # type: ignore[arg-type]
    )
    final, seen, _ = run(case, **settings)
    assert final.flatten(1).tolist() == ids
    assert [step.mask.flatten(1).tolist() for step in seen] == hidden


@given(case=CASES, steps=STEPS)
def test_every_token_is_decided_and_stays_so(case: Case, steps: int) -> None:
    final, seen, shown = run(case, steps=steps)
    assert [(step.step, step.steps) for step in seen] == [(k, steps) for k in range(steps)]
    assert shown[0].mask.all()
    for before, after in zip(shown, seen, strict=True):
        assert not (after.mask & ~before.mask).any()
        assert torch.equal(after.tokens[~before.mask], before.tokens[~before.mask])
        assert (after.confidence[~before.mask] == 0).all()
    for drawn in (final, *(step.tokens for step in seen)):
        assert drawn.min() >= 0
        assert drawn.max() < case.vocab
    assert torch.equal(final, seen[-1].tokens)


@given(case=CASES, steps=STEPS)
def test_the_condition_is_shown_wherever_it_is_hidden(case: Case, steps: int) -> None:
    _, seen, shown = run(case, steps=steps)
    for before, after in zip([None, *seen[:-1]], shown, strict=True):
        assert torch.equal(after.tokens[after.mask & case.known], case.condition[after.mask & case.known])
        assert (after.tokens[after.mask & ~case.known] == case.vocab).all()
        assert torch.equal(after.segments.bool(), after.mask & case.known)
        assert torch.equal(after.unconditional == case.vocab, after.mask)
        if before is not None:
            assert torch.equal(after.mask, before.mask)
            assert torch.equal(after.unconditional[~after.mask], before.tokens[~after.mask])


@given(case=CASES, order=st.randoms(use_true_random=False))
def test_an_item_depends_on_nothing_but_its_own_row_and_seed(case: Case, order: object) -> None:
    whole, _, _ = run(case)
    rows = list(range(len(case.condition)))
    order.shuffle(rows)  # type: ignore[attr-defined]
    for chosen in (rows, *([row] for row in rows)):
        part = sample_commit(case.logits, mask_id=case.vocab, steps=4, **case.rows(chosen))  # type: ignore[arg-type]
        assert torch.equal(part, whole[chosen])


@given(case=CASES)
def test_what_stands_outside_the_condition_does_not_matter(case: Case) -> None:
    first, _, _ = run(case)
    case.condition = torch.where(case.known, case.condition, (case.condition + 1) % (case.vocab + 1))
    assert torch.equal(run(case)[0], first)


def test_known_places_are_refined() -> None:
    """The oracle knows better than the condition everywhere."""
    answer = torch.randint(7, (2, 10, 3), generator=torch.Generator().manual_seed(1))
    oracle, condition = OracleModel(answer, 7), (answer + 1) % 7
    known = torch.zeros_like(answer, dtype=torch.bool)
    known[0, :5], known[1] = True, True
    final = sample_commit(
        lambda inputs, step: oracle(inputs.tokens), condition, known, mask_id=7, steps=4, seeds=[1, 2]
    )
    assert torch.equal(final, answer)


def test_the_schedule_of_the_paper() -> None:
    """1024 tokens in 12 steps (specification, 3.3), all codebooks in one ranking; condition tokens count as others do."""
    model = TableModel(512, 2, 5, 2)
    known = torch.zeros(1, 512, 2, dtype=torch.bool)
    known[:, :100] = True
    seen: list[SampleStep] = []
    sample_commit(
        lambda inputs, step: model(inputs.tokens, step),
        torch.zeros(1, 512, 2, dtype=torch.long),
        known,
        mask_id=5,
        steps=12,
        seeds=[0],
        callback=seen.append,
    )
    assert [int(step.mask.sum()) for step in seen] == [1015, 989, 946, 886, 812, 724, 623, 511, 391, 265, 133, 1]


def test_a_single_token_is_drawn_anew_at_every_step() -> None:
    case = Case(3, 1, 1, 1, 5)
    final, seen, shown = run(case, steps=5)
    assert all(inputs.mask.all() for inputs in shown)
    assert torch.equal(final, seen[-1].tokens)


def test_more_steps_than_tokens() -> None:
    case = Case(4, 1, 3, 1, 5)
    final, seen, _ = run(case, steps=9)
    assert [int(step.mask.sum()) for step in seen] == [2, 1, 1, 1, 1, 1, 1, 1, 1]
    assert final.max() < 5


def test_ties_hide_more() -> None:
    """Official: the cut takes what ties with it; with every token equally likely all of them stay hidden to the end."""
    case = Case(5, 1, 8, 1, 4)
    case.model = lambda tokens, step: UniformModel(4)(tokens)  # type: ignore[assignment]
    final, seen, _ = run(case, choice_temperature=0)
    assert all(step.mask.all() for step in seen)
    assert final.max() < 4


def test_confidence_is_that_of_the_untouched_logits() -> None:
    """Neither the temperature nor the filter changes what is ranked; both change what is drawn."""
    case = Case(6, 2, 5, 2, 6)
    expected = case.model(case.condition.masked_fill(~case.known, 6), 0).log_softmax(-1)
    for change in ({"temperature": 3.0}, {"keep": TokenFilter(top_k=1)}, {"temperature": 0}):
        _, seen, _ = run(case, **change)
        chosen = expected.gather(-1, seen[0].tokens[..., None]).squeeze(-1)
        torch.testing.assert_close(seen[0].confidence, chosen)
        if "temperature" not in change or not change["temperature"]:
            assert torch.equal(seen[0].tokens, expected.argmax(-1))


def test_filters_come_before_the_temperature() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0]).expand(500, 1, 1, 4)
    blank = torch.zeros(500, 1, 1, dtype=torch.long)
    final = sample_commit(
        lambda inputs, step: logits,
        blank,
        torch.zeros_like(blank, dtype=torch.bool),
        mask_id=4,
        steps=1,
        temperature=100.0,
        keep=TokenFilter(top_p=0.8),  # of the untouched logits: the first two
        seeds=range(500),
    )
    shares = torch.bincount(final.flatten(), minlength=4) / 500
    assert shares[2:].tolist() == [0, 0]
    assert abs(float(shares[0]) - 0.5) < 0.1


@pytest.mark.parametrize("scores", [[3.0, 1.0, 2.0, 1.0], [3.0, 0.5, 2.0, 1.0]])
def test_mask_lowest(scores: Sequence[float]) -> None:
    among = torch.tensor([[True, True, True, True], [False, True, True, False]])
    both = torch.tensor([scores, scores])
    hidden = mask_lowest(both, among, torch.tensor([1, 1]))
    assert hidden.tolist() == [[value == min(scores) for value in scores], [False, True, False, False]]
    assert torch.equal(mask_lowest(both, among, torch.tensor([4, 2])), among)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("task", [None, Prompt.OUTPAINTING])
@pytest.mark.parametrize("null_task", [None, Prompt.FULL_GENERATION])
def test_guidance_takes_every_condition_away(family: str, task: Prompt | None, null_task: Prompt | None) -> None:
    """Written out: the unconditional half has no condition tokens, no class, and its own task."""
    model = shaken(transformer(family, num_tasks=5 if task else 0))
    generator = torch.Generator().manual_seed(2)
    tokens, hidden, known = (torch.randint(high, (2, 12, 1), generator=generator) for high in (11, 2, 2))
    inputs = CommitInputs(tokens, hidden.bool(), known.bool(), 11)
    labels = torch.tensor([2, NO_LABEL])
    tasks = None if task is None else torch.tensor([task, Prompt.INPAINTING])
    logits_fn = commit_guided_logits(
        model, Cond(labels=labels, task=tasks), Guidance(scale=1.5), steps=2, null_task=null_task
    )
    without = tasks if null_task is None or tasks is None else torch.full((2,), int(null_task))
    with torch.no_grad():
        found = logits_fn(inputs, 0)
        plain = model(inputs.tokens, Cond(labels=labels, task=tasks))
        free = model(tokens.masked_fill(hidden.bool(), 11), Cond(task=without))
    assert (plain - free).abs().max() > 0.1
    torch.testing.assert_close(found, plain + 1.5 * (plain - free), atol=1e-4, rtol=1e-4)


def test_guidance_of_weight_zero_runs_the_conditional_half_alone() -> None:
    rows: list[int] = []

    def model(tokens: Tensor, cond: Cond, axes: Sequence[int] | None = None) -> Tensor:
        rows.append(len(tokens))
        assert axes == (3, 2)
        return torch.zeros(*tokens.shape, 4)

    blank = torch.zeros(2, 6, 1, dtype=torch.long)
    cond = Cond(labels=torch.tensor([0, 1]))
    for scale, ramp, expected in ((0.0, "constant", [2, 2, 2]), (1.0, "linear", [2, 4, 4]), (2.0, "constant", [4] * 3)):
        rows.clear()
        logits_fn = commit_guided_logits(model, cond, Guidance(scale=scale, ramp=ramp), steps=3, axes=(3, 2))  # type: ignore[arg-type]
        sample_commit(logits_fn, blank, blank.bool(), mask_id=4, steps=3, seeds=[1, 2])
        assert rows == expected
    rows.clear()
    logits_fn = commit_guided_logits(model, cond, Guidance(scale=1.0, interval=(0.2, 0.7)), steps=3, axes=(3, 2))
    sample_commit(logits_fn, blank, blank.bool(), mask_id=4, steps=3, seeds=[1, 2])
    assert rows == [2, 4, 2]
    sample_commit(commit_logits(model, cond, (3, 2)), blank, blank.bool(), mask_id=4, steps=1, seeds=[1, 2])
    with pytest.raises(ValueError, match="guidance.scale: got -1.0, expected 0"):
        commit_guided_logits(model, cond, Guidance(scale=-1.0), steps=3)
    with pytest.raises(ValueError, match="guidance.power: got 0.0, expected a finite number over 0"):
        commit_guided_logits(model, cond, Guidance(scale=1.0, power=0.0), steps=3)


def test_the_exponent_of_the_ramp_reaches_the_logits() -> None:
    def model(tokens: Tensor, cond: Cond, axes: Sequence[int] | None = None) -> Tensor:
        assert cond.labels is not None
        return cond.labels[:, None, None, None].float().expand(-1, 6, 1, 4)

    blank = torch.zeros(1, 6, 1, dtype=torch.long)
    inputs = CommitInputs(blank, blank == 0, blank != 0, 4)
    for power in (1.0, 2.5):
        guidance = Guidance(scale=2.0, ramp="power-cosine", power=power)
        found = commit_guided_logits(model, Cond(labels=torch.tensor([3])), guidance, steps=5)(inputs, 1)
        weight = guidance.weights(5)[1]
        torch.testing.assert_close(found, torch.full((1, 6, 1, 4), 3 + weight * 4))  # no class is -1


def test_inputs_are_left_alone_and_gradients_are_off() -> None:
    case = Case(3, 2, 5, 2, 4)
    condition, known = case.condition.clone(), case.known.clone()
    weight = torch.zeros(4, requires_grad=True)
    table = case.model
    case.model = lambda tokens, step: table(tokens, step) + weight  # type: ignore[assignment]
    final, _, _ = run(case)
    assert not final.requires_grad
    assert torch.equal(case.condition, condition)
    assert torch.equal(case.known, known)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps: got 0, expected at least 1"),
        ({"temperature": -1.0}, "^temperature: got -1.0, expected a finite number of 0 or more"),
        ({"choice_temperature": -0.5}, "^choice_temperature: got -0.5, expected a finite number of 0 or more"),
        ({"schedule": "cosin"}, "schedule: got 'cosin', expected 'cosine'"),
        ({"seeds": None}, "give either seeds"),
        ({"noise": SeededNoise([1, 2])}, "give either seeds"),
        ({"seeds": [1]}, "seeds: got 1, expected one for each of the 2 items"),
        ({"condition": torch.zeros(2, 3, 1)}, r"condition: got torch.float32 \(2, 3, 1\), expected int64 \[B, N, K\]"),
        ({"condition": torch.zeros(2, 3, dtype=torch.long)}, r"condition: got torch.int64 \(2, 3\)"),
        ({"given": torch.zeros(2, 3, dtype=torch.bool)}, r"given: got torch.bool \(2, 3\), expected bool \(2, 3, 1\)"),
        ({"given": torch.zeros(2, 3, 1)}, "given: got torch.float32"),
        ({"mask_id": 0}, "condition: got the mask id 0 at given positions"),
        (
            {"logits_fn": lambda inputs, step: torch.zeros(2, 3, 5)},
            r"logits_fn returned \(2, 3, 5\), expected \[B, N, K, V\]",
        ),
    ],
)
def test_mistakes_are_explained(change: dict[str, object], message: str) -> None:
    settings: dict[str, object] = {
        "logits_fn": lambda inputs, step: torch.zeros(2, 3, 1, 5),
        "condition": torch.zeros(2, 3, 1, dtype=torch.long),
        "given": torch.tensor([[True, False, False]] * 2)[..., None],
        "mask_id": 5,
        "steps": 4,
        "seeds": [1, 2],
    }
    with pytest.raises(ValueError, match=message):
        sample_commit(**(settings | change))  # type: ignore[arg-type]
