"""Every selector against a slow reference, and what must hold whatever the model says."""

import dataclasses
import math
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from maskgen.noise import SeededNoise
from maskgen.sampling.loop import SampleStep, sample
from maskgen.sampling.selectors.base import Selection, Selector
from maskgen.sampling.selectors.named import NEEDS_CRITIC, SELECTORS, check_selector, get_selector
from maskgen.schedules import get_schedule, mask_counts
from tests.core.sampling.cases import GRIDS, SPANS, Case, TableCritic, TableModel, grid, run
from tests.core.sampling.reference import reference_sample
from tests.selections import selection

EXACT = ["confidence", "random", "halton", "moment", "critic"]  # as many as the schedule says
LOOSE = ["entropy:0.5", "entropy:4", "remdm-cap:0.3", "remdm-rescale:0.5", "remdm-conf:1"]
SPANNING = ["span2", "span3-prod", "span2-stride1"]
TEMPERATURES = st.sampled_from([0.0, 0.7, 1.0, "linear:1.5,0.5"])
CHOICES = st.sampled_from([0.0, 1.0, 4.5, "cosine:2,0", "constant:1"])


def selector(name: str, case: Case) -> Selector:
    return get_selector(name, axes=case.axes, critic=case.critic)


@given(
    case=GRIDS,
    span=SPANS,
    schedule=st.sampled_from(["cosine", "uniform"]),
    temperature=TEMPERATURES,
    choice_temperature=CHOICES,
)
@pytest.mark.parametrize("name", EXACT + LOOSE)
def test_equals_the_slow_reference(
    name: str,
    case: Case,
    span: tuple[int, int],
    schedule: str,
    temperature: float | str,
    choice_temperature: float | str,
) -> None:
    settings = {
        "steps": span[1],
        "start_step": span[0],
        "schedule": schedule,
        "temperature": temperature,
        "choice_temperature": choice_temperature,
    }
    noise = SeededNoise(case.seeds)
    ids, masks = reference_sample(
        case.model,
        case.tokens,
        case.mask,
        noise,
        **settings,  # type: ignore[arg-type]
        select=name,
        axes=case.axes,
        critic=case.critic if name == "critic" else None,
    )
    final, seen = run(case, **settings, select=selector(name, case))
    assert final.flatten(1).tolist() == ids
    found = [step.mask.flatten(1).tolist() for step in seen]
    if name.startswith("remdm"):
        found, masks = found[:-1], masks[:-1]  # nobody looks at the last one, and a share of 1e-6 is rounding
    assert found == masks


@given(case=GRIDS, span=SPANS)
@pytest.mark.parametrize("name", EXACT + LOOSE + SPANNING)
def test_known_tokens_never_change_and_every_token_is_decided(name: str, case: Case, span: tuple[int, int]) -> None:
    final, seen = run(case, start_step=span[0], steps=span[1], select=selector(name, case))
    for drawn in (final, *(step.tokens for step in seen)):
        assert torch.equal(drawn[~case.mask], case.known[~case.mask])
        assert drawn.min() >= 0
        assert drawn.max() < case.vocab
    assert not any((step.mask & ~case.mask).any() for step in seen)
    assert torch.equal(final, seen[-1].tokens)


@given(case=GRIDS, span=SPANS, schedule=st.sampled_from(["cosine", "arccos", "linear", "square", "pow0.7", "log"]))
@pytest.mark.parametrize("name", EXACT)
def test_counts_follow_the_schedule(name: str, case: Case, span: tuple[int, int], schedule: str) -> None:
    chosen = selector(name, case)
    _, seen = run(case, start_step=span[0], steps=span[1], schedule=schedule, select=chosen)
    before, total = case.mask, case.mask.flatten(1).sum(1)
    places = case.mask[0].numel()
    for step in seen[: -1 if chosen.critic else None]:
        unknown = total if chosen.revises else before.flatten(1).sum(1)
        counts = mask_counts(get_schedule(schedule).at_step(step.step, span[1], total), total, unknown)
        expected = torch.where((total == 0) | (total == places) & (total == 1), 0, counts)
        assert torch.equal(step.mask.flatten(1).sum(1), expected)
        if not chosen.revises:
            assert not (step.mask & ~before).any()  # what was decided stays decided
        before = step.mask


@given(case=GRIDS, order=st.randoms(use_true_random=False))
@pytest.mark.parametrize("name", EXACT + LOOSE + SPANNING)
def test_an_item_depends_on_nothing_but_its_own_row_and_seed(name: str, case: Case, order: object) -> None:
    chosen = selector(name, case)
    whole, _ = run(case, select=chosen)
    rows = list(range(len(case.tokens)))
    order.shuffle(rows)  # type: ignore[attr-defined]
    seeds = [case.seeds[i] for i in rows]
    shuffled = sample(case.model, case.tokens[rows], case.mask[rows], seeds=seeds, steps=4, select=chosen)
    assert torch.equal(shuffled, whole[rows])
    for i in rows:
        part = slice(i, i + 1)
        alone = sample(case.model, case.tokens[part], case.mask[part], seeds=[case.seeds[i]], steps=4, select=chosen)
        assert torch.equal(alone[0], whole[i])


@pytest.mark.parametrize("name", EXACT + LOOSE + SPANNING)
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_rows_with_no_and_with_one_hidden_token(name: str, steps: int) -> None:
    tokens, mask = grid([0, 1, 2, 3], [0, -1, 2, 3], [-1, -1, -1, -1])
    chosen = get_selector(name, axes=(2, 2), critic=TableCritic(4, 1, 5, 3))
    seen: list[SampleStep] = []
    final = sample(
        TableModel(4, 1, 5, 1), tokens, mask, steps=steps, seeds=[1, 2, 3], select=chosen, callback=seen.append
    )
    assert final[0].flatten().tolist() == [0, 1, 2, 3]
    assert final[1].flatten().tolist()[0::2] == [0, 2]
    assert final.max() < 5
    assert not any(step.mask[0].any() for step in seen)
    single, alone = grid([-1])
    done = sample(TableModel(1, 1, 5, 1), single, alone, steps=steps, seeds=[1], select=one_place(name))
    assert int(done) in range(5)


def one_place(name: str) -> Selector:
    return get_selector(name, axes=(1,), critic=TableCritic(1, 1, 5, 3))


@given(case=GRIDS, span=SPANS, temperature=TEMPERATURES)
@pytest.mark.parametrize("name", EXACT + LOOSE + SPANNING)
def test_who_is_blind_does_not_look_at_tokens_or_logits(
    name: str, case: Case, span: tuple[int, int], temperature: float | str
) -> None:
    real = selector(name, case)
    looked: list[bool] = []

    def watched(seen: Selection) -> Tensor:
        other = torch.randn(seen.mask.shape, generator=torch.Generator().manual_seed(seen.step))
        changed = dataclasses.replace(
            seen, tokens=1 - seen.tokens, log_probs=other, settled=other, scores=other, logits=seen.logits.flip(-1)
        )
        mask = real.remask(seen)
        looked.append(not torch.equal(real.remask(changed), mask))
        return mask

    run(case, steps=span[1], select=dataclasses.replace(real, remask=watched), temperature=temperature)
    assert not (real.blind and any(looked))


def test_the_others_do_look() -> None:
    seen = selection(torch.tensor([[-1.0, -2.0, -3.0]]), torch.ones(1, 3, dtype=torch.bool), torch.tensor([1]))
    other = dataclasses.replace(seen, log_probs=-seen.log_probs)
    assert not torch.equal(get_selector("confidence").remask(seen), get_selector("confidence").remask(other))
    flags = {name: one_place(name).blind for name in EXACT + LOOSE + SPANNING}
    assert [name for name, flag in flags.items() if flag] == ["random", "halton"]


# Moment


def test_moment_is_what_confidence_comes_to_on_many_places() -> None:
    """Few of very many equal places: tokens follow p^(1 + 1/a) in both, to within five standard deviations."""
    probs, places, kept, weight = torch.tensor([0.6, 0.3, 0.1]), 3000, 60, 0.5
    power = probs ** (1 + 1 / weight)
    expected = power / power.sum()
    tokens, mask = torch.full((40, places, 1), 3), torch.ones(40, places, 1, dtype=torch.bool)
    schedule, shares = f"pow{math.log(kept / places) / math.log(0.5):.6f}", {}
    for name in ("confidence", "moment"):
        seen: list[SampleStep] = []
        options = {"schedule": schedule, "choice_temperature": f"constant:{weight}", "callback": seen.append}
        fixed = probs.log().expand(40, places, 1, 3)
        sample(lambda ids, step, fixed=fixed: fixed, tokens, mask, steps=2, seeds=range(40), select=name, **options)
        chosen = seen[0].tokens[~seen[0].mask]
        assert abs(len(chosen) - 40 * kept) <= 40
        shares[name] = torch.bincount(chosen, minlength=3) / len(chosen)
        error = (shares[name] - expected).abs()
        assert (error < 5 * (expected * (1 - expected) / len(chosen)).sqrt() + 0.01).all(), name
    assert (expected - probs).abs().max() > 0.2  # far from a plain draw


def test_moment_prefers_peaked_places_and_is_greedy_without_noise() -> None:
    logits = torch.tensor([[[[3.0, 0.0, 0.0]], [[0.0, 0.1, 0.0]], [[0.0, 2.0, 0.0]], [[0.0, 0.0, 0.2]]]])
    tokens, mask = torch.full((1, 4, 1), 3), torch.ones(1, 4, 1, dtype=torch.bool)
    seen: list[SampleStep] = []
    options = {"select": "moment", "choice_temperature": 0, "schedule": "linear", "callback": seen.append}
    sample(lambda ids, step: logits, tokens, mask, steps=2, seeds=[0], **options)
    assert seen[0].mask.flatten().tolist() == [False, True, False, True]
    assert seen[0].tokens.flatten().tolist() == [0, 1, 1, 2]
    last = {
        int(sample(lambda ids, step: logits[:, 1:2], *grid([-1], vocab=3), steps=1, seeds=[s], **options))
        for s in range(20)
    }
    assert last == {0, 1, 2}  # the last step chooses no place, so it draws from p


# Entropy


def test_entropy_decides_what_is_sure_at_once_and_stops() -> None:
    sure = torch.full((1, 6, 1, 4), -30.0)
    sure[..., 1] = 30.0
    model, seen = TableModel(6, 1, 4, 0), []
    tokens, mask = grid([-1] * 6, vocab=4)

    def logits_fn(ids: Tensor, step: int) -> Tensor:
        model.calls += 1
        return sure

    final = sample(logits_fn, tokens, mask, steps=8, seeds=[0], select="entropy", callback=seen.append)
    assert model.calls == len(seen) == 1
    assert final.flatten().tolist() == [1] * 6


def test_entropy_bound_in_numbers() -> None:
    """Places of ln 2 each: a bound of b ln 2 takes b + 1 of them."""
    logits = torch.zeros(1, 8, 2)
    for taken in range(1, 8):
        seen = selection(torch.zeros(1, 8), torch.ones(1, 8, dtype=torch.bool), torch.tensor([7]), logits=logits)
        hidden = get_selector(f"entropy:{(taken - 1) * math.log(2) + 0.01}").remask(seen)
        assert int(hidden.sum()) == 8 - taken
    assert int(get_selector("entropy:0").remask(dataclasses.replace(seen, counts=torch.tensor([3]))).sum()) == 3


@given(case=GRIDS, bound=st.sampled_from([0.0, 0.7, 3.0, 100.0]))
def test_entropy_is_never_behind_the_schedule(case: Case, bound: float) -> None:
    _, seen = run(case, select=f"entropy:{bound}", steps=5)
    total = before = case.mask.flatten(1).sum(1)
    for step in seen:
        hidden = step.mask.flatten(1).sum(1)
        assert (hidden <= mask_counts(get_schedule("cosine").at_step(step.step, 5, total), total, before)).all()
        assert ((hidden < before) | (before == 0)).all()
        before = hidden
    assert bound < 100 or len(seen) == 1


# Remasking


def hidden_shares(name: str, steps: int, start_step: int = 0, **options: object) -> tuple[list[Tensor], int]:
    """Share of 30,000 tokens that is hidden after each step, and how many decided tokens were hidden again."""
    tokens, mask = torch.full((30, 1000, 1), 3), torch.ones(30, 1000, 1, dtype=torch.bool)
    seen: list[SampleStep] = []
    logits = torch.randn(1, 1000, 1, 3, generator=torch.Generator().manual_seed(0)).expand(30, -1, -1, -1)
    fixed = {"steps": steps, "start_step": start_step, "seeds": range(30), "select": name, "callback": seen.append}
    sample(lambda ids, step: logits, tokens, mask, **fixed, **options)
    again, before = 0, mask
    for step in seen[:-1]:
        again += int((step.mask & ~before).sum())
        before = step.mask
    return [step.mask.float().mean() for step in seen[:-1]], again


@pytest.mark.parametrize("name", ["remdm-cap:0.2", "remdm-rescale:0.5", "remdm-conf", "remdm-cap:0", "remdm-rescale"])
@pytest.mark.parametrize("start_step", [0, 2])
def test_remasking_follows_the_schedule_on_average(name: str, start_step: int) -> None:
    found, again = hidden_shares(name, 8, start_step, schedule="cosine")
    for share, step in zip(found, range(start_step, 7), strict=True):
        expected = math.cos(math.pi / 2 * (step + 1) / 8)
        assert abs(float(share) - expected) < 5 * math.sqrt(0.25 / 30_000) + 0.003, step
    assert (again == 0) == name.endswith(":0")


def test_remasking_with_confidence_takes_back_the_doubtful() -> None:
    settled = torch.tensor([[0.9, 0.1, 0.5, 0.0]]).log().expand(20_000, -1)
    start = torch.ones(20_000, 4, dtype=torch.bool)
    mask = start.clone()
    mask[:, :3] = False
    noise = SeededNoise(range(20_000)).choice(0, (20_000, 4))
    half = torch.full((20_000, 1), 0.5)
    seen = selection(settled, mask, mask.sum(1), noise, start=start, settled=settled, shares=(half, half))
    hidden = get_selector("remdm-conf:1").remask(seen).float().mean(0)
    expected = torch.tensor([0.9, 0.1, 0.5]).neg().softmax(0)  # sigma_max is 0.5 / 0.5
    assert (hidden[:3] - expected).abs().max() < 0.02
    assert hidden[3] == 1  # the schedule wants no fewer


# Critic


def test_the_critic_sees_the_complete_draw_and_takes_tokens_back() -> None:
    tokens, mask = grid([-1, 4, -1, -1, -1, -1])
    asked: list[tuple[int, Tensor]] = []
    seen: list[SampleStep] = []

    def critic(ids: Tensor, step: int) -> Tensor:
        asked.append((step, ids.clone()))
        scores = torch.arange(6.0)[None, :, None]
        return scores if step % 2 else -scores

    options = {"select": get_selector("critic", critic=critic), "choice_temperature": 0, "schedule": "linear"}
    sample(TableModel(6, 1, 5, 0), tokens, mask, steps=5, seeds=[0], callback=seen.append, **options)
    assert [step for step, _ in asked] == [0, 1, 2, 3]  # the last step's draw is the result, whatever a critic says
    for (_, ids), step in zip(asked, seen, strict=False):
        assert torch.equal(ids, step.tokens)
        assert int(ids[0, 1]) == 4
    # Places 0 2 3 4 5 are to be decided and 4, 3, 1 and 1 of them hidden (in float32 5 x 0.4 is under 2): those of lowest
    # score, which turn over at every step.
    hidden = [step.mask.flatten().nonzero().flatten().tolist() for step in seen]
    assert hidden == [[2, 3, 4, 5], [0, 2, 3], [5], [0], []]


def test_names_are_checked_without_what_they_need() -> None:
    for name in [*EXACT, *LOOSE, *SPANNING, "self-critic", "entropy", "remdm-cap", "remdm-rescale", "remdm-conf"]:
        check_selector(name)
    for name in ("entropy:", "entropy:-1", "remdm", "remdm-loop", "remdm-cap:x", "critics", "halton2", "moment:2"):
        with pytest.raises(ValueError, match=f"selector: got '{name}', expected one of 'confidence'"):
            check_selector(name)


@pytest.mark.parametrize("name", NEEDS_CRITIC)
def test_a_critic_that_was_not_given_is_asked_for(name: str) -> None:
    with pytest.raises(
        ValueError, match=f"select: '{name}' needs a critic, .* got none; train one with `maskgen train"
    ):
        get_selector(name)


def test_a_critic_scores_every_token() -> None:
    tokens, mask = grid([-1, -1])
    chosen = get_selector("critic", critic=lambda ids, step: ids[:, 0].float())
    with pytest.raises(ValueError, match=r"critic: returned \(1, 1\), expected one score a token, \(1, 2, 1\)"):
        sample(TableModel(2, 1, 5, 0), tokens, mask, steps=2, seeds=[0], select=chosen)


@pytest.mark.parametrize("name", ["remdm-cap:1.5", "remdm-rescale:2", "remdm-conf:1.01"])
def test_remasking_strength_is_a_share(name: str) -> None:
    with pytest.raises(ValueError, match=r"remdm-\w+: got [\d.]+, expected a number in \[0, 1\]"):
        get_selector(name)


# Names


def test_docs_and_errors_name_those_of_the_table() -> None:
    text = (Path(__file__).resolve().parents[4] / "docs" / "samplers.md").read_text(encoding="utf-8")
    table = text.split("## Orders")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert [name for row in rows for name in re.findall(r"`([^`]+)`", row)] != []
    assert {name for row in rows for name in re.findall(r"`([^`]+)`", row)} == set(SELECTORS)
    with pytest.raises(ValueError, match="selector: got 'none', expected one of ") as refused:
        get_selector("none")
    assert re.findall(r"'([^']+)'", str(refused.value)) == ["none", *SELECTORS]


@pytest.mark.parametrize("form", SELECTORS)
def test_every_form_has_names(form: str) -> None:
    number = "3" if "length" in form else "0.5"
    names = [re.sub(r"<\w+>", number, form)]
    if ":" in form:
        names.append(form.partition(":")[0])
    for name in names:
        check_selector(name)
        assert get_selector(name, axes=(2, 2), critic=TableCritic(4, 1, 5, 3)).remask is not None
    with pytest.raises(ValueError, match="selector: got"):
        check_selector(form if "<" in form else f"{form}:1")
