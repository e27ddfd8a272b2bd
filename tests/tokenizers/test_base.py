"""A tokenizer of somebody else that lacks a member of the contract is refused, and told what to add."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from maskgen.tokenizers.audio.base import AudioTokenizer
from maskgen.tokenizers.base import Tokenizer, check_contract

MEMBERS = ("modality", "is_spatial", "config", "vocab_size", "num_codebooks", "stride", "axes", "encode", "decode")


@dataclass(frozen=True)
class WordsConfig:
    """Nothing to set."""

    count: int = 4


class Words(Tokenizer):
    """Four tokens that each describe the whole image."""

    modality: ClassVar[str] = "image"
    is_spatial: ClassVar[bool] = False

    def __init__(self, config: WordsConfig) -> None:
        super().__init__()
        self.config = config

    @property
    def vocab_size(self) -> int:
        return 8

    @property
    def num_codebooks(self) -> int:
        return 1

    @property
    def stride(self) -> tuple[int, ...]:
        return (1,)

    def axes(self, signal_shape: Sequence[int]) -> tuple[int, ...]:
        return (self.config.count,)

    def encode(self, signal: Tensor) -> Tensor:
        return torch.zeros(len(signal), self.config.count, 1, dtype=torch.long)

    def decode(self, tokens: Tensor, axes: Sequence[int]) -> Tensor:
        return torch.zeros(len(tokens), 3, 8, 8)


def without(name: str) -> type[Tokenizer]:
    """``Words`` that forgot a member."""
    kept = [member for member in MEMBERS if member not in (name, "config")]

    def init(self: Tokenizer, config: WordsConfig) -> None:
        Tokenizer.__init__(self)
        if name != "config":
            self.config = config

    return type("Words", (Tokenizer,), {"__init__": init, **{member: vars(Words)[member] for member in kept}})


def changed(**members: Any) -> type[Tokenizer]:
    return type("Words", (Words,), members)


def test_a_whole_tokenizer_passes_as_class_and_as_instance() -> None:
    check_contract(Words)
    check_contract(Words(WordsConfig()))


@pytest.mark.parametrize("name", MEMBERS)
def test_a_missing_member_is_named(name: str) -> None:
    kind = without(name)
    if name != "config":  # which a class does not show
        with pytest.raises(TypeError, match=rf"Words: {name} missing from the contract .*; add .*{name}"):
            check_contract(kind)
    if not kind.__abstractmethods__:
        with pytest.raises(TypeError, match=rf"Words: {name} missing from the contract .*; add .*{name}"):
            check_contract(kind(WordsConfig()))  # type: ignore[call-arg]


def test_all_missing_members_are_named_at_once() -> None:
    class Sounds(AudioTokenizer):
        def encode(self, signal: Tensor) -> Tensor:
            return signal

    expected = (
        "Sounds: vocab_size, num_codebooks, stride, decode, channels, code_tables, encode_scaled, sample_rate missing"
    )
    with pytest.raises(TypeError, match=expected):
        check_contract(Sounds)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"modality": 3}, r"Words\.modality: got 3, expected a str"),
        ({"is_spatial": "yes"}, r"Words\.is_spatial: got 'yes', expected a bool"),
        ({"vocab_size": 8.0}, r"Words\.vocab_size: got 8\.0, expected a positive int"),
        ({"num_codebooks": True}, r"Words\.num_codebooks: got True, expected a positive int"),
        ({"stride": 1}, r"Words\.stride: got 1, expected a tuple of positive ints"),
        ({"stride": (4, 0)}, r"Words\.stride: got \(4, 0\), expected a tuple of positive ints"),
        ({"encode": torch.zeros(())}, r"Words\.encode: got tensor\(0\.\), expected a method"),
    ],
)
def test_wrong_types_are_refused(members: dict[str, Any], message: str) -> None:
    kind = changed(**members)
    for tokenizer in (kind, kind(WordsConfig())):  # type: ignore[call-arg]
        with pytest.raises(TypeError, match=message):
            check_contract(tokenizer)


def test_wrong_types_of_an_instance_are_refused() -> None:
    words = Words({"count": 4})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"Words\.config: got \{'count': 4\}, expected a dataclass instance"):
        check_contract(words)
    for kind in (property, cached_property):
        late = changed(vocab_size=kind(lambda self: "8"))
        check_contract(late)  # a class does not show it yet
        with pytest.raises(TypeError, match=r"Words\.vocab_size: got '8', expected a positive int"):
            check_contract(late(WordsConfig()))  # type: ignore[call-arg]


@pytest.mark.parametrize("stranger", [nn.Linear(2, 2), nn.Linear, WordsConfig()])
def test_what_is_no_tokenizer_is_refused(stranger: Any) -> None:
    with pytest.raises(TypeError, match=r"expected a subclass of maskgen\.tokenizers\.base\.Tokenizer"):
        check_contract(stranger)
