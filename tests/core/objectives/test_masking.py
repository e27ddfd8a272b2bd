"""What is hidden while training, and what it costs."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from maskgen.objectives.loss import masked_accuracy, masked_cross_entropy
from maskgen.objectives.masking import mask_exactly, random_mask
from maskgen.schedules import get_schedule


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(data=st.data(), places=st.integers(1, 30), seed=st.integers(0, 1000))
def test_hides_exactly(data: st.DataObject, places: int, seed: int) -> None:
    counts = data.draw(st.lists(st.integers(0, places), min_size=1, max_size=5))
    mask = mask_exactly(torch.tensor(counts), places, generator=generator(seed))
    assert mask.dtype == torch.bool
    assert mask.shape == (len(counts), places)
    assert mask.sum(1).tolist() == counts


def test_every_place_is_hidden_equally_often() -> None:
    rows, places, count = 6000, 8, 3
    mask = mask_exactly(torch.full((rows,), count), places, generator=generator())
    share = count / places
    assert ((mask.float().mean(0) - share).abs() < 4 * math.sqrt(share * (1 - share) / rows)).all()


@given(
    schedule=st.sampled_from(["cosine", "linear", "log"]),
    min_ratio=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 99),
)
def test_counts_are_ceilings_of_the_drawn_ratios(schedule: str, min_ratio: float, seed: int) -> None:
    shape = (5, 6, 2)
    mask = random_mask(shape, schedule=schedule, min_ratio=min_ratio, generator=generator(seed))
    ratio = torch.rand(5, generator=generator(seed))  # the first draw of the same generator
    gamma = get_schedule(schedule)(ratio, torch.full((5,), 12.0))
    expected = [math.ceil(max(float(g), min_ratio) * 12) for g in gamma]
    assert mask.shape == shape
    assert mask.flatten(1).sum(1).tolist() == expected
    assert min(expected) >= max(1, math.ceil(12 * min_ratio))


def test_rows_draw_their_own_ratios() -> None:
    counts = random_mask((64, 32, 1), generator=generator()).flatten(1).sum(1)
    assert len(counts.unique()) > 10


def test_cosine_hides_two_pi_ths_on_average() -> None:
    mask = random_mask((4000, 500, 1), generator=generator())
    assert float(mask.float().mean()) == pytest.approx(2 / math.pi, abs=0.02)


def test_min_ratio_is_a_share() -> None:
    for wrong in (-0.1, 1.1):
        with pytest.raises(ValueError, match=rf"min_ratio: got {wrong}, expected a share in \[0, 1\]"):
            random_mask((1, 2, 1), min_ratio=wrong)


def example(rows: int = 3, places: int = 5, vocab: int = 7) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    source = generator(4)
    logits = 3 * torch.randn(rows, places, 2, vocab, generator=source, dtype=torch.float64)
    targets = torch.randint(vocab, (rows, places, 2), generator=source)
    mask = torch.rand(rows, places, 2, generator=source) < torch.tensor([0.2, 0.5, 0.9])[:rows, None, None]
    mask[:, 0, 0] = True
    return logits, targets, mask


@pytest.mark.parametrize("normalize", ["row", "batch"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize(("unmasked", "count"), [(0.0, 3), (0.1, 2), (0.0, 1)])
def test_loss_is_the_formula(normalize: str, smoothing: float, unmasked: float, count: int) -> None:
    logits, targets, mask = example(count)
    vocab = logits.shape[-1]
    rows: list[tuple[float, float]] = []
    for b in range(len(logits)):
        cost = weight = 0.0
        for n in range(logits.shape[1]):
            for k in range(logits.shape[2]):
                values = [float(x) for x in logits[b, n, k]]
                top = max(values)
                log_total = top + math.log(sum(math.exp(x - top) for x in values))
                target = int(targets[b, n, k])
                wanted = [smoothing / vocab + (1 - smoothing) * (v == target) for v in range(vocab)]
                w = 1.0 if mask[b, n, k] else unmasked
                cost += w * -sum(p * (x - log_total) for p, x in zip(wanted, values, strict=True))
                weight += w
        rows.append((cost, weight))
    if normalize == "row":
        expected = sum(cost / weight for cost, weight in rows) / len(rows)
    else:
        expected = sum(cost for cost, _ in rows) / sum(weight for _, weight in rows)
    loss = masked_cross_entropy(
        logits,
        targets,
        mask,
        label_smoothing=smoothing,
        normalize=normalize,  # type: ignore[arg-type]
        unmasked_weight=unmasked,
    )
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_gradient_reaches_hidden_tokens_only() -> None:
    logits, targets, mask = example()
    logits.requires_grad_()
    masked_cross_entropy(logits, targets, mask).backward()
    assert logits.grad is not None
    touched = logits.grad.abs().sum(-1) > 0
    assert torch.equal(touched, mask)
    logits.grad = None
    masked_cross_entropy(logits, targets, mask, unmasked_weight=0.1).backward()
    assert (logits.grad.abs().sum(-1) > 0).all()


def test_nothing_hidden_costs_nothing() -> None:
    logits, targets, mask = example()
    for normalize in ("row", "batch"):
        assert float(masked_cross_entropy(logits, targets, torch.zeros_like(mask), normalize=normalize)) == 0  # type: ignore[arg-type]


def test_loss_is_computed_in_float32() -> None:
    logits, targets, mask = example()
    half = logits.to(torch.bfloat16)
    loss = masked_cross_entropy(half, targets, mask)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, masked_cross_entropy(half.float(), targets, mask))


@pytest.mark.parametrize("field", [0, 1, 2])
def test_shapes_are_checked(field: int) -> None:
    given_ = list(example())
    given_[field] = given_[field][:2]
    with pytest.raises(
        ValueError, match=r"loss: got logits \(.*\), targets \(.*\), mask \(.*\); expected \[B, ..., V\]"
    ):
        masked_cross_entropy(*given_)


def test_normalisation_is_checked() -> None:
    with pytest.raises(ValueError, match="normalize: got 'token', expected 'row' or 'batch'"):
        masked_cross_entropy(*example(), normalize="token")  # type: ignore[arg-type]


def test_accuracy_counts_hidden_tokens() -> None:
    targets = torch.tensor([[0, 1, 2, 0]])
    logits = torch.nn.functional.one_hot(torch.tensor([[0, 1, 1, 1]]), 3).float()
    assert float(masked_accuracy(logits, targets, torch.tensor([[True, False, True, True]]))) == pytest.approx(1 / 3)
    assert float(masked_accuracy(logits, targets, torch.tensor([[True, True, False, False]]))) == 1.0
    assert float(masked_accuracy(logits, targets, torch.zeros(1, 4, dtype=torch.bool))) == 0.0
