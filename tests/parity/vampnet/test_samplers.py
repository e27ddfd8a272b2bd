"""Token filters, the draw and the ranking against what the official functions returned.

Shapes: B batch, M positions, V codes.
"""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from maskgen.published.vampnet.sampler import VampNetSampling, sample_vampnet
from maskgen.sampling.filters import top_k, top_p, typical
from maskgen.sampling.selectors.named import select_confidence
from tests.parity.support import load, own_set, recordings
from tests.selections import selection

FILES = recordings("vampnet", "samplers*.safetensors")
FILTERS = [(path, key) for path in FILES for key in load(path) if re.match(r"typical_m|top_p_|top_k_", key)]
DRAWS = [(path, key.partition(".token")[0]) for path in FILES for key in load(path) if key.endswith(".token")]


def label(value: object) -> str:
    return str(getattr(value, "stem", value))


def filtered(logits: Tensor, key: str) -> Tensor:
    """Our filter for a recorded name: ``typical_m<mass>_n<min>``, ``top_p_<p>`` or ``top_k_<k>``."""
    if match := re.fullmatch(r"typical_m([\d.]+)_n(\d+)", key):
        return typical(logits, float(match[1]), int(match[2]))
    if match := re.fullmatch(r"top_p_([\d.]+)", key):
        return top_p(logits, float(match[1]))
    return top_k(logits, int(key.removeprefix("top_k_")))


def test_everything_recorded_is_compared() -> None:
    for path in FILES:
        compared = {"logits"} | {key for at, key in FILTERS if at == path}
        heads = {name for at, name in DRAWS if at == path} | {"topk"}
        assert [key for key in load(path) if key not in compared and key.rpartition(".")[0] not in heads] == []


@pytest.mark.parametrize(("path", "key"), FILTERS, ids=label)
def test_filters(path: Path, key: str) -> None:
    data = load(path)
    assert torch.equal(filtered(data["logits"], key), data[key])
    assert data[key].isinf().any() or not own_set("vampnet")  # something was left out


class Draw:
    """Recorded exponentials [B M, V] as Gumbel noise; a single step ranks nothing, so there is no noise for that."""

    def __init__(self, exponential: Tensor) -> None:
        self.exponential = exponential

    def sample(self, step: int, shape: tuple[int, ...]) -> Tensor:
        return -self.exponential.log().view(shape)

    def choice(self, step: int, shape: tuple[int, ...]) -> Tensor:
        return torch.zeros(shape)


def drawn(path: Path, name: str, temperature: float) -> tuple[Tensor, Tensor]:
    """Tokens [B, M] and probabilities of one step of our sampler on the recorded logits."""
    data = load(path)
    logits = data["logits"][:, :, None]
    masked = torch.full(logits.shape[:3], logits.shape[-1])
    probs: list[Tensor] = []
    tokens = sample_vampnet(
        lambda tokens, step: logits,
        masked,
        torch.ones_like(masked, dtype=torch.bool),
        VampNetSampling(steps=1, temperature=temperature),
        noise=Draw(data[f"{name}.exponential"]),
        callback=lambda step: probs.append(step.confidence.exp()),
    )
    return tokens[:, :, 0], probs[0][:, :, 0]


def temperature_of(name: str) -> float:
    """``sample_t<temperature>``; ``sample_typical`` had the default, and its filter did nothing."""
    return float(name.removeprefix("sample_t")) if re.fullmatch(r"sample_t[\d.]+", name) else 1.0


@pytest.mark.parametrize(("path", "name"), [draw for draw in DRAWS if temperature_of(draw[1])], ids=label)
def test_draws(path: Path, name: str) -> None:
    tokens, probs = drawn(path, name, temperature_of(name))
    data = load(path)
    assert torch.equal(tokens, data[f"{name}.token"])
    torch.testing.assert_close(probs, data[f"{name}.prob"], atol=1e-6, rtol=0)


@pytest.mark.parametrize(("path", "name"), [draw for draw in DRAWS if not temperature_of(draw[1])], ids=label)
def test_temperature_zero_is_greedy_here_and_a_plain_draw_there(path: Path, name: str) -> None:
    data = load(path)
    official = data[f"{name}.token"]
    assert torch.equal(drawn(path, name, 1.0)[0], official)
    greedy = drawn(path, name, 0.0)[0]
    assert torch.equal(greedy, data["logits"].argmax(-1))
    assert not torch.equal(greedy, official)


@pytest.mark.parametrize("path", FILES, ids=label)
def test_ranking(path: Path) -> None:
    data = load(path)
    probs, uniform = data["topk.probs"], data["topk.uniform"]
    # Given positions have an infinite probability there; the selector needs which positions were masked.
    rows = [
        select_confidence(
            selection(
                probs[row, None].log(),
                probs[row, None].isfinite(),
                data["topk.num"][row],
                -torch.log(-torch.log(uniform[row, None])),
                float(data["topk.temp"][row]),
            )
        )
        for row in range(len(probs))
    ]
    assert torch.equal(torch.cat(rows), data["topk.mask"].bool())
