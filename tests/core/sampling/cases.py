"""Random decoding tasks and a model without weights, for the tests of the sampler and its selectors."""

from collections.abc import Sequence

import torch
from hypothesis import strategies as st
from torch import Tensor

from maskgen.sampling.loop import SampleStep, sample


class TableModel:
    """Logits that depend on the place, on the token there and on the one before; each row for itself, bit for bit."""

    def __init__(self, places: int, codebooks: int, vocab: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.places = 2 * torch.randn(places, codebooks, vocab, generator=generator)
        self.here = torch.randn(vocab + 1, vocab, generator=generator)
        self.before = torch.randn(vocab + 1, vocab, generator=generator)
        self.calls = 0

    def __call__(self, tokens: Tensor, step: int) -> Tensor:
        self.calls += 1
        return self.places + self.here[tokens] + self.before[tokens.roll(1, dims=1)]


class TableCritic:
    """Scores that depend on the place, on the token there and on the one before."""

    def __init__(self, places: int, codebooks: int, vocab: int, seed: int) -> None:
        self.model = TableModel(places, codebooks, vocab, seed)

    def __call__(self, tokens: Tensor, step: int) -> Tensor:
        assert tokens.max() < self.model.places.shape[-1], "a critic sees complete tokens"
        return self.model(tokens, step)[..., 0]


class Case:
    """A random task: tokens, mask, model and critic on a grid of 1 to 3 axes."""

    def __init__(self, seed: int, rows: int, axes: tuple[int, ...], codebooks: int, vocab: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        places = torch.Size(axes).numel()
        shape = (rows, places, codebooks)
        density = torch.rand(rows, 1, 1, generator=generator)
        self.mask = torch.rand(shape, generator=generator) < 1.3 * density  # some rows all hidden, some hardly
        self.known = torch.randint(vocab, shape, generator=generator)
        self.tokens = self.known.masked_fill(self.mask, vocab)
        self.vocab, self.axes = vocab, axes
        self.model = TableModel(places, codebooks, vocab, seed + 1)
        self.critic = TableCritic(places, codebooks, vocab, seed + 2)
        self.seeds = [int(seed) * 7 + row for row in range(rows)]


def cases(axes: st.SearchStrategy[tuple[int, ...]]) -> st.SearchStrategy[Case]:
    """Cases on such grids."""
    return st.builds(
        Case,
        seed=st.integers(0, 2**31 - 1),
        rows=st.integers(1, 3),
        axes=axes,
        codebooks=st.integers(1, 3),
        vocab=st.integers(2, 6),
    )


CASES = cases(st.tuples(st.integers(1, 7)))
GRIDS = cases(
    st.one_of(
        st.tuples(st.integers(1, 7)),
        st.tuples(st.integers(1, 4), st.integers(1, 3)),
        st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(1, 3)),
    )
)
# (start_step, steps)
SPANS = st.integers(1, 9).flatmap(lambda steps: st.tuples(st.integers(0, steps - 1), st.just(steps)))


def run(case: Case, **settings: object) -> tuple[Tensor, list[SampleStep]]:
    """Decode a case and keep every step."""
    seen: list[SampleStep] = []
    options: dict[str, object] = {"steps": 4, "seeds": case.seeds, "callback": seen.append, **settings}
    return sample(case.model, case.tokens, case.mask, **options), seen  # type: ignore[arg-type]


def grid(*rows: Sequence[int], vocab: int = 5) -> tuple[Tensor, Tensor]:
    """Tokens and mask of rows written with -1 for "hidden"."""
    tokens = torch.tensor(rows)[:, :, None]
    return torch.where(tokens < 0, vocab, tokens), tokens < 0
