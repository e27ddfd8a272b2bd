"""Critics: what they are shown and what it costs, that they learn, and what sampling makes of them."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskgen.conditioning import NO_LABEL, Cond
from maskgen.data import TensorSource
from maskgen.models.base import MaskedTransformer
from maskgen.objectives.critic import CriticModeling, CriticSettings, SelfCriticModeling
from maskgen.objectives.masked import MaskedModeling, MaskingSettings
from maskgen.sampling.critics import check_critic, critic_scores, token_scores
from maskgen.sampling.guidance import model_logits
from maskgen.sampling.loop import sample
from maskgen.sampling.selectors.named import get_selector
from tests.core.toys import FAMILIES, fit, shaken, transformer

IDS = 4  # of the 11 that are ever used


class Careless(MaskedTransformer):
    """Draws every token from the first four, whatever the others are."""

    def __init__(self) -> None:
        super().__init__()
        self.vocab_size, self.num_codebooks, self.num_classes, self.null_class = 11, 1, 4, True
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[Tensor, Cond]] = []

    def forward(self, tokens: Tensor, cond: Cond, axes: Sequence[int] | None = None) -> Tensor:
        self.seen.append((tokens, cond))
        unused = torch.arange(11) >= IDS
        return torch.zeros(*tokens.shape, 11).masked_fill(unused, -50.0) + self.weight


def plain_rows() -> TensorSource:
    """Rows of 12 equal tokens."""
    tokens = torch.arange(IDS).repeat(4)[:, None, None].expand(-1, 12, 1).contiguous()
    return TensorSource(tokens=tokens)


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def agreement(tokens: Tensor) -> float:
    """Share of the most frequent token of a row, on average."""
    return float(F.one_hot(tokens.flatten(1), 11).sum(1).max(1).values.float().mean()) / tokens.shape[1]


def test_a_critic_learns_and_makes_careless_draws_agree(tmp_path: Path) -> None:
    source, generator, critic = plain_rows(), Careless(), transformer("modern")
    objective = CriticModeling(critic, generator, CriticSettings(schedule="linear"), held_out=source)
    fit(objective, source, tmp_path, steps=300, batch_size=16, optimizer={"lr": 4e-3, "warmup_steps": 10})
    last = lines(tmp_path)[-1]
    # A quarter of the drawn tokens are the real ones by chance, and nobody can tell them: 7/8 is the most there is.
    assert last["validation/accuracy"] > 0.75, last
    assert last["validation/score"] < 0.55
    tokens = torch.full((24, 12, 1), 11)
    options: dict[str, Any] = {"steps": 32, "seeds": range(24), "choice_temperature": 0.0, "schedule": "linear"}
    logits_fn, cond = model_logits(generator, Cond()), Cond()
    chosen = get_selector("critic", critic=critic_scores(critic.eval(), cond))
    judged = sample(logits_fn, tokens, tokens == 11, select=chosen, **options)
    unjudged = sample(logits_fn, tokens, tokens == 11, select="random", **options)
    assert agreement(judged) > 0.8
    assert agreement(unjudged) < 0.5


def test_the_generator_stays_as_it_was(tmp_path: Path) -> None:
    generator = shaken(transformer("modern"))
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    fit(CriticModeling(transformer("bert"), generator, CriticSettings()), plain_rows(), tmp_path, steps=3)
    assert all(torch.equal(value, before[name]) for name, value in generator.state_dict().items())
    assert not any(parameter.requires_grad for parameter in generator.parameters())


@pytest.mark.parametrize("equal_is_real", [False, True])
def test_the_loss_in_its_parts(equal_is_real: bool) -> None:
    """What the generator and the critic were shown, and the formula."""
    generator, critic = Careless(), shaken(transformer("modern"))
    asked: list[tuple[Tensor, Cond]] = []

    def watched(tokens: Tensor, cond: Cond) -> Tensor:
        asked.append((tokens, cond))
        return critic(tokens, cond)

    settings = CriticSettings(schedule="linear", equal_is_real=equal_is_real, label_dropout=0.4)
    objective = CriticModeling(critic, generator, settings)
    batch = {"tokens": plain_rows().tensors["tokens"], "labels": torch.arange(16) % 4}
    loss, terms = objective.loss("model", {"model": watched}, batch, 0)  # type: ignore[dict-item]
    ((masked, cond),) = generator.seen
    ((filled, shown),) = asked
    hidden = masked == 11
    assert torch.equal(masked[~hidden], batch["tokens"][~hidden])
    assert torch.equal(filled[~hidden], batch["tokens"][~hidden])
    assert int(filled.max()) < IDS
    assert hidden.any(dim=1).all()
    assert cond is shown
    assert cond.labels is not None
    assert set(cond.labels.tolist()) == {NO_LABEL, 0, 1, 2, 3}
    real = ~hidden | (filled == batch["tokens"]) if equal_is_real else ~hidden
    assert (filled == batch["tokens"])[hidden].any()
    scores = token_scores(critic(filled, cond), filled)
    expected = -(torch.where(real, scores, -scores)).sigmoid().log().mean()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(terms["accuracy"], ((scores > 0) == real).float().mean())
    assert objective.units(batch) == 16 * 12


def test_draws_follow_the_generator_and_its_temperature() -> None:
    probs = torch.tensor([0.6, 0.3, 0.1])

    class Fixed(Careless):
        def forward(self, tokens: Tensor, cond: Cond, axes: Sequence[int] | None = None) -> Tensor:
            return F.pad(probs.log(), (0, 8), value=-50.0).expand(*tokens.shape, 11)

    batch = {"tokens": torch.full((800, 12, 1), 10)}
    for temperature in (1.0, 0.5, 0.0):
        asked: list[Tensor] = []

        def watched(tokens: Tensor, cond: Cond, asked: list[Tensor] = asked) -> Tensor:
            asked.append(tokens)
            return torch.zeros(*tokens.shape, 11)

        objective = CriticModeling(transformer("modern"), Fixed(), CriticSettings(temperature=temperature))
        objective.loss("model", {"model": watched}, batch, 0)  # type: ignore[dict-item]
        drawn = asked[0][asked[0] != 10]
        shares = torch.bincount(drawn, minlength=3) / len(drawn)
        sharp = probs ** (1 / temperature) if temperature else torch.tensor([1.0, 0, 0])
        assert (shares - sharp / sharp.sum()).abs().max() < 5 * math.sqrt(0.25 / len(drawn)), temperature


def test_validation_is_the_same_every_time() -> None:
    critic = shaken(transformer("modern"))
    objective = CriticModeling(critic, shaken(transformer("bert")), CriticSettings(), held_out=plain_rows())
    first = objective.validate(critic, torch.device("cpu"))
    torch.rand(7)
    assert objective.validate(critic, torch.device("cpu")) == first
    assert set(first) == {"score", "accuracy"}
    assert CriticModeling(critic, critic, CriticSettings()).validate(critic, torch.device("cpu")) == {}


def test_scores_are_the_logits_of_what_stands_there() -> None:
    logits = torch.arange(24.0).view(1, 2, 3, 4)
    tokens = torch.tensor([[[0, 3, 1], [2, 2, 0]]])
    assert token_scores(logits, tokens).tolist() == [[[0, 7, 9], [14, 18, 20]]]
    model = shaken(transformer("modern", num_codebooks=2))
    cond, ids = Cond(labels=torch.tensor([1, 2])), torch.randint(11, (2, 6, 2))
    expected = token_scores(model(ids, cond, (2, 3)), ids)
    assert torch.equal(critic_scores(model, cond, (2, 3))(ids, 5), expected)


# A model as its own critic


def test_a_model_learns_to_predict_and_to_judge_itself(tmp_path: Path) -> None:
    """Its own draws agree with what is visible and would not give it away, so it judges what it draws when it is hot."""
    source, model = plain_rows(), transformer("modern")
    masking = MaskingSettings(label_smoothing=0.0, label_dropout=0.0)
    judging = CriticSettings(schedule="linear", temperature=20.0, label_dropout=0.0, equal_is_real=True)
    objective = SelfCriticModeling(model, masking, judging, held_out=source)
    fit(objective, source, tmp_path, steps=300, batch_size=16, optimizer={"lr": 2e-3, "warmup_steps": 10})
    last = lines(tmp_path)[-1]
    assert last["validation/accuracy"] > 0.7
    assert last["validation/critic_accuracy"] > 0.85
    assert last["validation/score"] < 0.69  # of both, less than a critic alone pays that knows nothing: ln 2
    real = source.tensors["tokens"]
    wrong = real.clone()
    wrong[:, 3] = (real[:, 3] + 1) % IDS
    scores = critic_scores(model.eval(), Cond())(wrong, 0)
    assert (
        scores[:, 3] < scores.amin((1, 2), keepdim=True)[:, 0] + 1e-6
    ).all()  # the odd one out is the least believed
    tokens = torch.full((16, 12, 1), 11)
    chosen = get_selector("self-critic", critic=critic_scores(model, Cond()))
    options: dict[str, Any] = {"steps": 6, "seeds": range(16), "choice_temperature": 0.5}
    assert agreement(sample(model_logits(model, Cond()), tokens, tokens == 11, select=chosen, **options)) > 0.9


@pytest.mark.parametrize("family", FAMILIES)
def test_the_self_critics_loss_is_the_sum_of_both(family: str) -> None:
    model = shaken(transformer(family))
    batch = {"tokens": torch.randint(11, (6, 12, 1)), "labels": torch.arange(6) % 4}
    totals = []
    for weight in (0.0, 1.0, 3.0):
        torch.manual_seed(5)
        objective = SelfCriticModeling(model, MaskingSettings(), CriticSettings(weight=weight))
        loss, terms = objective.loss("model", {"model": model}, batch, 0)
        assert set(terms) == {"accuracy", "critic_accuracy"}
        totals.append(loss.item())
    torch.manual_seed(5)
    alone, _ = MaskedModeling(model, MaskingSettings()).loss("model", {"model": model}, batch, 0)
    assert totals[0] == pytest.approx(alone.item())
    assert totals[2] - totals[0] == pytest.approx(3 * (totals[1] - totals[0]), rel=1e-4)
    assert totals[1] > totals[0]


def test_both_halves_reach_the_weights() -> None:
    model = shaken(transformer("modern"))
    batch = {"tokens": torch.randint(11, (6, 12, 1))}
    objective = SelfCriticModeling(model, MaskingSettings(), CriticSettings())
    loss, _ = objective.loss("model", {"model": model}, batch, 0)
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


# Mistakes


def test_a_critic_must_fit() -> None:
    generator = transformer("modern")
    check_critic(transformer("bert"), generator)
    other = transformer("modern", vocab_size=7, num_codebooks=2, num_classes=3)
    message = (
        "does not fit the generator: vocab_size is 7, expected 11; num_codebooks is 2, expected 1; num_classes is 3"
    )
    with pytest.raises(ValueError, match=message):
        CriticModeling(other, generator, CriticSettings())
    with pytest.raises(ValueError, match="it has no null class, as the generator has"):
        check_critic(transformer("bert", null_class=False), generator)
    check_critic(generator, transformer("bert", null_class=False))


def test_label_dropout_needs_a_null_class() -> None:
    strict = transformer("bert", null_class=False)
    message = r"label_dropout: got 0.1, but the model has no null class; set null_class or 0"
    for make in (
        lambda: CriticModeling(transformer("bert"), strict, CriticSettings()),
        lambda: SelfCriticModeling(strict, MaskingSettings(label_dropout=0), CriticSettings()),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    CriticModeling(transformer("bert"), strict, CriticSettings(label_dropout=0.0))


@pytest.mark.parametrize("change", [{"unmasked_weight": 0.1}, {"visible_codebooks": 1}])
def test_a_self_critic_needs_the_visible_logits(change: dict[str, Any]) -> None:
    model = transformer("modern", num_codebooks=2)
    with pytest.raises(ValueError, match="masking: got unmasked_weight .* expected 0 and 0"):
        SelfCriticModeling(model, MaskingSettings(**change), CriticSettings())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schedule": "cosinus"}, "schedule: got 'cosinus'"),
        ({"temperature": -1.0}, "temperature: got -1.0, expected a finite number"),
        ({"weight": math.nan}, "weight: got nan"),
        ({"label_dropout": 1.1}, r"label_dropout: got 1.1, expected a number in \[0, 1\]"),
    ],
)
def test_settings_are_checked(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CriticSettings(**change)
