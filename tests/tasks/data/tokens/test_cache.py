"""Tokens of images are kept for a run that goes on, and made once by all processes of a machine."""

from pathlib import Path

import pytest
import torch

from maskgen.data import Batch, Source
from maskgen.objectives.masked import MaskedModeling
from maskgen.tasks.data.tokens.cache import cached_tokens, tokenize
from maskgen.tokenizers.image.toy import ToyTokenizer, ToyTokenizerConfig
from maskgen.training.run import Interrupted
from tests.core.training.many_processes import run_processes
from tests.tasks.training.test_image import Squares, interrupt_at, model, settings, stage2, toy

TOY = ToyTokenizerConfig(levels=4, patch=2)


class Watched:
    """Notes in a file, a line a batch, whatever process asks."""

    def __init__(self, source: Source, log: Path) -> None:
        self.source, self.log = source, log

    def __len__(self) -> int:
        return len(self.source)

    def batch(self, indices: list[int], seeds: list[int]) -> Batch:
        with self.log.open("a") as log:
            log.write(f"{len(indices)}\n")
        return self.source.batch(indices, seeds)


class WatchedSquares(Squares):
    """Squares whose training half is watched."""

    def __init__(self, log: Path) -> None:
        super().__init__(shift=1)
        self.log = log

    def train(self) -> Source:
        return Watched(super().train(), self.log)


def asked(log: Path) -> list[int]:
    return [int(line) for line in log.read_text().splitlines()]


def test_a_run_that_goes_on_does_not_tokenize_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, log = toy(tmp_path / "toy"), tmp_path / "log"
    chosen = {
        "data": WatchedSquares(log),
        "transformer": model(vocab_size=4),
        "views": 3,
        "settings": settings(steps=5),
    }
    with monkeypatch.context() as patch:
        patch.setattr(MaskedModeling, "loss", interrupt_at(2, MaskedModeling.loss))
        with pytest.raises(Interrupted):
            stage2(tokenizer, tmp_path / "out", **chosen)
    assert asked(log) == [1, 1, 1, 12, 12, 12]  # what tells whose tokens they are, then each view
    stage2(tokenizer, tmp_path / "out", **chosen)
    assert asked(log)[6:] == [1, 1, 1]


def encode(folder: Path) -> None:
    source = Watched(Squares(shift=1).train(), folder / "log")
    found = cached_tokens(source, ToyTokenizer(TOY), folder / "tokens.safetensors", key="images", views=2)
    expected = tokenize(source.source, ToyTokenizer(TOY), views=2)
    assert all(torch.equal(tensor, expected.tensors[name]) for name, tensor in found.tensors.items())


def test_one_process_of_a_machine_encodes(tmp_path: Path) -> None:
    assert run_processes(3, encode, tmp_path) == [0, 0, 0]
    assert sorted(asked(tmp_path / "log")) == [1] * 9 + [12, 12]


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    encode(tmp_path)
    other = ToyTokenizer(ToyTokenizerConfig(levels=5, patch=2))
    with pytest.raises(ValueError, match=r"holds tokens of ToyTokenizer-\w+, but this one is ToyTokenizer-"):
        cached_tokens(Squares().train(), other, tmp_path / "tokens.safetensors", key="images")
