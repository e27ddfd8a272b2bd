"""Stage-1 losses: closed forms, bounds, and the perceptual loss without a network."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from maskgen.tokenizers.quantizers.entropy import entropy_loss
from maskgen.tokenizers.training.losses.image import (
    LeCam,
    discriminator_loss,
    generator_loss,
    l1_loss,
    l2_loss,
    r1_penalty,
)


def test_pixel_losses() -> None:
    a, b = torch.tensor([0.0, 1.0]), torch.tensor([0.0, 3.0])
    assert l1_loss(a, b) == 1
    assert l2_loss(a, b) == 2
    for loss in (l1_loss, l2_loss):
        with pytest.raises(ValueError, match=r"got shapes \(2,\) and \(1,\), expected equal ones"):
            loss(a, b[:1])


def test_gan_losses_closed_forms() -> None:
    zero = torch.zeros(4, 1)
    assert generator_loss(zero, "non-saturating").item() == pytest.approx(math.log(2))
    assert discriminator_loss(zero, zero, "non-saturating").item() == pytest.approx(2 * math.log(2))
    assert generator_loss(zero + 3, "hinge") == -3
    assert discriminator_loss(zero, zero, "hinge") == 2
    assert discriminator_loss(zero + 1, zero - 1, "hinge") == 0


@pytest.mark.parametrize("kind", ["non-saturating", "hinge"])
@given(st.floats(-20, 20))
def test_gan_losses_push_the_right_way(kind: Any, value: float) -> None:
    fake = torch.tensor([[value]])
    assert generator_loss(fake + 1, kind) < generator_loss(fake, kind)
    assert discriminator_loss(fake, fake + 1, kind) >= discriminator_loss(fake, fake, kind)


def test_unknown_kinds() -> None:
    x: Any = torch.zeros(1)
    for call in (lambda: generator_loss(x, "wgan"), lambda: discriminator_loss(x, x, "wgan")):  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="kind: got 'wgan', expected 'non-saturating' or 'hinge'"):
            call()
    with pytest.raises(ValueError, match="kind: got 'hard', expected 'softmax' or 'argmax'"):
        entropy_loss(torch.zeros(2, 3), "hard")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="temperature: got 0"):
        entropy_loss(torch.zeros(2, 3), temperature=0)


def test_r1_of_a_linear_discriminator() -> None:
    """The gradient of sum(w x) is w, whatever x is: the penalty is weight * |w|^2, with no factor 1/2."""
    w = torch.randn(3, 4, 4, requires_grad=True)
    images = torch.rand(5, 3, 4, 4)
    penalty = r1_penalty(lambda x: (x * w).sum(dim=(1, 2, 3)), images, weight=7.0)
    torch.testing.assert_close(penalty, 7 * w.square().sum())
    (gradient,) = torch.autograd.grad(penalty, w)
    torch.testing.assert_close(gradient, 14 * w)
    assert not images.requires_grad


@pytest.mark.parametrize("kind", ["softmax", "argmax"])
def test_entropy_closed_forms(kind: Any) -> None:
    V = 8
    even = torch.eye(V) * 100  # certain rows, each code once
    assert entropy_loss(even, kind).item() == pytest.approx(-math.log(V), abs=1e-3)
    same = torch.eye(V)[:1].expand(5, V) * 100  # certain rows, one code
    assert entropy_loss(same, kind).item() == pytest.approx(0, abs=1e-3)
    flat = torch.zeros(5, V)  # rows that know nothing: softmax has H - H, one-hots of code 0 have log V - 0
    expected = {"softmax": 0.0, "argmax": math.log(V)}[kind]
    assert entropy_loss(flat, kind).item() == pytest.approx(expected, abs=1e-3)


@given(st.integers(0, 10_000), st.sampled_from([0.01, 0.3, 5.0]))
def test_entropy_bounds_and_shift(seed: int, temperature: float) -> None:
    affinity = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(seed))
    loss = entropy_loss(affinity, temperature=temperature)
    assert -math.log(5) - 1e-3 <= loss <= 1e-3
    torch.testing.assert_close(loss, entropy_loss(affinity + 0.5, temperature=temperature), atol=1e-3, rtol=1e-3)


def test_lecam() -> None:
    lecam = LeCam(decay=0.75)
    real, fake = torch.tensor([[2.0], [4.0]]), torch.tensor([[-1.0], [-3.0]])
    assert lecam(real, fake) == (4 + 16) / 2 + (1 + 9) / 2  # running means still at 0
    lecam.update(real, fake)
    assert lecam.ema_real == 0.25 * 3
    assert lecam.ema_fake == 0.25 * -2
    assert lecam(real, fake).item() == pytest.approx((2.5**2 + 4.5**2) / 2 + (1.75**2 + 3.75**2) / 2)
    assert lecam(torch.tensor([-1.0]), torch.tensor([1.0])) == 0
    resumed = LeCam(decay=0.75)
    resumed.load_state_dict(lecam.state_dict())
    assert torch.equal(resumed(real, fake), lecam(real, fake))
    with pytest.raises(ValueError, match="decay: got 1, expected"):
        LeCam(decay=1)
