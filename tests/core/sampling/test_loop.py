"""The sampler against a slow reference, and what must hold whatever the model says."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from maskgen.noise import SeededNoise
from maskgen.sampling.loop import SampleStep, sample
from maskgen.schedules import get_schedule, mask_counts
from maskgen.testing import OracleModel, UniformModel
from tests.core.sampling.cases import CASES, SPANS, Case, TableModel, grid, run
from tests.core.sampling.reference import reference_sample


@given(
    case=CASES,
    span=SPANS,
    schedule=st.sampled_from(["cosine", "uniform"]),
    select=st.sampled_from(["confidence", "random"]),
    temperature=st.sampled_from([0.0, 0.7, 1.0, 1.5]),
    choice_temperature=st.sampled_from([0.0, 1.0, 4.5]),
)
def test_equals_the_slow_reference(
    case: Case, span: tuple[int, int], schedule: str, select: str, temperature: float, choice_temperature: float
) -> None:
    settings = {
        "steps": span[1],
        "start_step": span[0],
        "schedule": schedule,
        "select": select,
        "temperature": temperature,
        "choice_temperature": choice_temperature,
    }
    noise = SeededNoise(case.seeds)
    ids, masks = reference_sample(case.model, case.tokens, case.mask, noise, **settings)  # type: ignore[arg-type]
    final, seen = run(case, **settings)
    assert final.flatten(1).tolist() == ids
    assert [step.mask.flatten(1).tolist() for step in seen] == masks


@given(case=CASES, span=SPANS, select=st.sampled_from(["confidence", "random"]))
def test_known_tokens_never_change_and_every_token_is_decided(case: Case, span: tuple[int, int], select: str) -> None:
    final, seen = run(case, start_step=span[0], steps=span[1], select=select)
    for drawn in (final, *(step.tokens for step in seen)):
        assert torch.equal(drawn[~case.mask], case.known[~case.mask])
        assert drawn.min() >= 0
        assert drawn.max() < case.vocab
    assert [step.step for step in seen] == list(range(*span))
    assert all(step.steps == span[1] for step in seen)


@given(
    case=CASES, span=SPANS, schedule=st.sampled_from(["cosine", "arccos", "linear", "square", "pow0.7", "log", "exp"])
)
def test_counts_follow_the_schedule(case: Case, span: tuple[int, int], schedule: str) -> None:
    _, seen = run(case, start_step=span[0], steps=span[1], schedule=schedule)
    before, total = case.mask, case.mask.flatten(1).sum(1)
    places = case.mask[0].numel()
    for step in seen:
        counts = mask_counts(get_schedule(schedule).at_step(step.step, span[1], total), total, before.flatten(1).sum(1))
        hidden = step.mask.flatten(1).sum(1)
        expected = torch.where((total == 0) | (total == places) & (total == 1), 0, counts)
        assert torch.equal(hidden, expected)
        assert not (step.mask & ~before).any()  # what was decided stays decided
        before = step.mask


@given(case=CASES, order=st.randoms(use_true_random=False))
def test_an_item_depends_on_nothing_but_its_own_row_and_seed(case: Case, order: object) -> None:
    whole, _ = run(case)
    rows = list(range(len(case.tokens)))
    order.shuffle(rows)  # type: ignore[attr-defined]
    settings = {"steps": 4}
    shuffled = sample(case.model, case.tokens[rows], case.mask[rows], seeds=[case.seeds[i] for i in rows], **settings)
    assert torch.equal(shuffled, whole[rows])
    for i in rows:
        alone = sample(case.model, case.tokens[i : i + 1], case.mask[i : i + 1], seeds=[case.seeds[i]], **settings)
        assert torch.equal(alone[0], whole[i])


def test_different_seeds_give_different_samples() -> None:
    tokens, mask = grid([-1] * 12, [-1] * 12)
    model = TableModel(12, 1, 5, seed=0)
    same = sample(model, tokens, mask, steps=3, seeds=[4, 4])
    other = sample(model, tokens, mask, steps=3, seeds=[4, 5])
    assert torch.equal(same[0], same[1])
    assert torch.equal(same[0], other[0])
    assert not torch.equal(other[0], other[1])


def test_a_row_without_hidden_tokens_comes_back_as_it_is() -> None:
    tokens, mask = grid([0, 1, 2, 3], [-1, -1, 2, -1])
    seen: list[SampleStep] = []
    final = sample(TableModel(4, 1, 5, 1), tokens, mask, steps=3, seeds=[1, 2], callback=seen.append)
    assert final[0].flatten().tolist() == [0, 1, 2, 3]
    assert not any(step.mask[0].any() for step in seen)
    assert all((step.confidence[0] == 0).all() for step in seen)


def test_one_hidden_token_among_known_ones_is_drawn_anew_at_every_step() -> None:
    """The official behaviour: its count is 1 and the cut-off +inf, so it stays hidden until the last draw."""
    tokens, mask = grid([0, -1, 2, 3])
    seen: list[SampleStep] = []
    final = sample(TableModel(4, 1, 5, 1), tokens, mask, steps=5, seeds=[3], callback=seen.append)
    assert all(torch.equal(step.mask, mask) for step in seen)
    assert int(final[0, 1]) in range(5)
    assert [int(step.tokens[0, 1]) for step in seen][-1] == int(final[0, 1])


def test_more_steps_than_tokens() -> None:
    tokens, mask = grid([-1, -1, -1])
    seen: list[SampleStep] = []
    model = TableModel(3, 1, 5, 2)
    final = sample(model, tokens, mask, steps=9, seeds=[0], callback=seen.append)
    assert final.max() < 5
    assert model.calls == 9
    assert [int(step.mask.sum()) for step in seen] == [2, 1, 1, 1, 1, 1, 1, 1, 1]


def test_the_schedule_of_the_paper() -> None:
    """256 tokens in 8 and 12 steps: counts of the official program (docs: specification, section 5.1)."""
    expected = {8: [251, 236, 212, 181, 142, 97, 49, 1], 12: [253, 247, 236, 221, 203, 181, 155, 127, 97, 66, 33, 1]}
    tokens, mask = torch.full((1, 256, 1), 5), torch.ones(1, 256, 1, dtype=torch.bool)
    for steps, counts in expected.items():
        seen: list[SampleStep] = []
        sample(TableModel(256, 1, 5, 2), tokens, mask, steps=steps, seeds=[0], callback=seen.append)
        assert [int(step.mask.sum()) for step in seen] == counts


def test_start_step_skips_the_beginning_of_the_schedule() -> None:
    tokens, mask = torch.full((1, 64, 1), 5), torch.ones(1, 64, 1, dtype=torch.bool)
    model, seen = TableModel(64, 1, 5, 2), []
    sample(model, tokens, mask, steps=12, start_step=2, seeds=[0], callback=seen.append)
    assert model.calls == 10
    total = torch.tensor([64])
    assert int(seen[0].mask.sum()) == int(mask_counts(get_schedule("cosine").at_step(2, 12, total), total, total))


def test_temperature_zero_takes_the_most_likely_token() -> None:
    case = Case(11, 2, (6,), 2, 5)
    logits = case.model.places
    final = sample(
        lambda tokens, step: logits.expand(2, -1, -1, -1), case.tokens, case.mask, steps=3, temperature=0, seeds=[1, 2]
    )
    assert torch.equal(final[case.mask], logits.argmax(-1).expand(2, -1, -1)[case.mask])


def test_no_temperature_at_all_does_not_depend_on_the_seed() -> None:
    tokens, mask = grid([-1] * 9)
    model = TableModel(9, 1, 5, 3)
    settings = {"steps": 4, "temperature": 0, "choice_temperature": 0}
    assert torch.equal(
        sample(model, tokens, mask, seeds=[1], **settings), sample(model, tokens, mask, seeds=[2], **settings)
    )


def test_temperature_divides_the_logits() -> None:
    case = Case(5, 1, (6,), 1, 6)

    def halved(tokens: Tensor, step: int) -> Tensor:
        return case.model(tokens, step) / 2

    warm = sample(case.model, case.tokens, case.mask, steps=3, temperature=2, seeds=[9])
    assert torch.equal(warm, sample(halved, case.tokens, case.mask, steps=3, seeds=[9]))


def test_draws_follow_the_softmax() -> None:
    """One step, one place, many seeds: the shares are the probabilities to within four standard deviations."""
    probs = torch.tensor([0.5, 0.3, 0.15, 0.05])
    count = 4000
    tokens, mask = torch.full((count, 1, 1), 4), torch.ones(count, 1, 1, dtype=torch.bool)
    final = sample(lambda ids, step: probs.log().expand(count, 1, 1, 4), tokens, mask, steps=1, seeds=range(count))
    shares = torch.bincount(final.flatten(), minlength=4) / count
    assert ((shares - probs).abs() < 4 * (probs * (1 - probs) / count).sqrt()).all()


def test_oracle_ends_at_the_answer() -> None:
    answer = torch.randint(7, (2, 10, 3), generator=torch.Generator().manual_seed(1))
    oracle = OracleModel(answer, 7)
    tokens, mask = torch.full_like(answer, 7), torch.ones_like(answer, dtype=torch.bool)
    final = sample(lambda ids, step: oracle(ids), tokens, mask, steps=4, seeds=[1, 2])
    assert torch.equal(final, answer)


def test_tied_confidences_hide_fewer() -> None:
    """The cut is strict: with every token equally confident, nothing is hidden again (as in the official program)."""
    model = UniformModel(4)
    tokens, mask = grid([-1] * 8, vocab=4)
    seen: list[SampleStep] = []
    sample(lambda ids, step: model(ids), tokens, mask, steps=4, choice_temperature=0, seeds=[1], callback=seen.append)
    assert not seen[0].mask.any()


def test_callback_sees_log_probabilities_of_the_drawn_tokens() -> None:
    case = Case(3, 2, (5,), 2, 4)
    _, seen = run(case, steps=2)
    current = case.tokens
    log_probs = case.model(current, 0).log_softmax(-1).gather(-1, seen[0].tokens[..., None]).squeeze(-1)
    torch.testing.assert_close(seen[0].confidence, log_probs.masked_fill(~case.mask, 0.0))


def test_inputs_are_left_alone() -> None:
    case = Case(3, 2, (5,), 2, 4)
    tokens, mask = case.tokens.clone(), case.mask.clone()
    run(case)
    assert torch.equal(case.tokens, tokens)
    assert torch.equal(case.mask, mask)


def test_gradients_are_off() -> None:
    tokens, mask = grid([-1, -1])
    weight = torch.zeros(5, requires_grad=True)
    flags: list[bool] = []

    def logits_fn(ids: Tensor, step: int) -> Tensor:
        flags.append((ids[..., None] * weight).requires_grad)
        return torch.zeros(*ids.shape, 5)

    sample(logits_fn, tokens, mask, steps=1, seeds=[0])
    assert flags == [False]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps: got 0, expected at least 1"),
        ({"start_step": 4}, "start_step: got 4, expected 0 <= start_step < steps = 4"),
        ({"start_step": -1}, "start_step: got -1"),
        ({"temperature": -1.0}, "^temperature: got -1.0, expected a finite number of 0 or more"),
        ({"choice_temperature": -0.5}, "^choice_temperature: got -0.5, expected a finite number of 0 or more"),
        ({"schedule": "cosin"}, "schedule: got 'cosin', expected 'cosine'"),
        ({"select": "best"}, "selector: got 'best', expected one of 'confidence', 'random', 'halton'"),
        ({"select": "halton"}, r"select: 'halton' needs the token grid; give get_selector\('halton', axes=\(H, W\)\)"),
        ({"select": "critic"}, "select: 'critic' needs a critic, .*; train one with `maskgen train critic`"),
        ({"seeds": None}, "give either seeds"),
        ({"noise": SeededNoise([1, 2])}, "give either seeds"),
        ({"seeds": [1]}, "seeds: got 1, expected one for each of the 2 items"),
        ({"seeds": [1, -1]}, "seeds: got -1, expected 0 <= seed"),
        ({"tokens": torch.zeros(2, 3, 1)}, r"tokens: got torch.float32 \(2, 3, 1\), expected int64 \[B, N, K\]"),
        ({"tokens": torch.zeros(2, 3, dtype=torch.long)}, r"tokens: got torch.int64 \(2, 3\)"),
        ({"mask": torch.zeros(2, 3, dtype=torch.bool)}, r"mask: got torch.bool \(2, 3\), expected bool \(2, 3, 1\)"),
        ({"mask": torch.zeros(2, 3, 1)}, "mask: got torch.float32"),
        (
            {"logits_fn": lambda ids, step: torch.zeros(2, 3, 5)},
            r"logits_fn returned \(2, 3, 5\), expected \[B, N, K, V\]",
        ),
        ({"noise": SeededNoise([1, 2, 3]), "seeds": None}, "noise: got a batch of 2, expected 3"),
    ],
)
def test_mistakes_are_explained(change: dict[str, object], message: str) -> None:
    tokens, mask = grid([-1, 1, -1], [0, -1, -1])
    settings: dict[str, object] = {
        "logits_fn": TableModel(3, 1, 5, 0),
        "tokens": tokens,
        "mask": mask,
        "steps": 4,
        "seeds": [1, 2],
    }
    with pytest.raises(ValueError, match=message):
        sample(**(settings | change))  # type: ignore[arg-type]


def test_logits_fn_gets_the_mask_id_where_hidden() -> None:
    tokens, mask = grid([-1, 1, -1, -1], [0, -1, -1, 3])
    hidden = [mask]
    model = TableModel(4, 1, 5, 0)

    def watched(ids: Tensor, step: int) -> Tensor:
        assert torch.equal(ids == 5, hidden[-1])
        return model(ids, step)

    final = sample(watched, tokens, mask, steps=4, seeds=[1, 2], callback=lambda step: hidden.append(step.mask))
    assert len(hidden) == 5
    assert final.max() < 5
