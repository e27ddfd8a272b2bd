"""Compiled and bf16 models: the same interface, and what happens where they cannot be had."""

import gc
from typing import Any

import pytest
import torch
from torch import Tensor

from maskgen.conditioning import Cond
from maskgen.models.base import MaskedTransformer
from maskgen.precision import fast_matmul, linear_float32
from maskgen.published.onedtok.imagebert import ImageBert, ImageBertConfig
from maskgen.sampling.guidance import Guidance, guided_logits, model_logits
from maskgen.sampling.loop import sample
from maskgen.sampling.speed.compiled import accelerated
from tests.core.toys import FAMILIES, shaken, transformer

COND = Cond(labels=torch.tensor([1, 1, 2]))


def model_of(family: str) -> MaskedTransformer:
    return shaken(transformer(family, layers=2)).requires_grad_(False)


def decode(model: MaskedTransformer, **options: Any) -> Tensor:
    tokens = torch.full((3, 12, 1), 11)
    prediction = guided_logits(model, COND, Guidance(scale=1.0), steps=4)
    with fast_matmul("cpu"):
        return sample(prediction, tokens, tokens == 11, **{"steps": 4, "seeds": [1, 2, 3], **options})


def test_nothing_asked_is_the_model_itself() -> None:
    model = model_of("bert")
    assert accelerated(model) is model


@pytest.mark.parametrize("family", FAMILIES)
def test_compiled_graphs_hold_no_operator_that_compilers_do_not_know(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, targets, asked, real = model_of(family), [], [], torch.compile

    def recording(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        targets.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    def with_backend(function: Any, **settings: Any) -> Any:
        asked.append(settings)
        return real(function, backend=recording, fullgraph=True, dynamic=settings["dynamic"])

    monkeypatch.setattr(torch, "compile", with_backend)
    fast = accelerated(model, compiled=True)
    assert accelerated(model, compiled=True) is fast
    assert asked == []  # not before it is used
    assert torch.equal(decode(fast), decode(model))
    assert asked == [{"mode": None, "dynamic": False}]
    assert any("linear" in target for target in targets)
    assert not any("mkldnn" in target for target in targets)
    torch._dynamo.reset()


def broken(function: Any, **settings: Any) -> Any:
    def fails(*inputs: Any) -> Tensor:
        raise RuntimeError("\nno C++ compiler found\nand more")

    return fails


@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_compiler_it_says_so_once_and_goes_on(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", broken)
    model = model_of(family)
    fast = accelerated(model, compiled=True)
    message = (
        r"compile: torch.compile does not work here \(RuntimeError: no C\+\+ compiler found\); going on without it"
    )
    with pytest.warns(UserWarning, match=message):
        found = decode(fast)
    assert torch.equal(found, decode(model))
    assert torch.equal(found, decode(fast))


def test_other_models_are_compiled_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    monkeypatch.setattr(torch, "compile", lambda function, **settings: compiled.append(function.__name__) or function)
    model = ImageBert(
        ImageBertConfig(vocab_size=11, num_classes=4, axes=(12,), width=16, layers=1, heads=2, mlp_width=8)
    )
    tokens = torch.full((3, 12, 1), 11)
    fast = accelerated(shaken(model), compiled=True)  # type: ignore[arg-type]
    assert torch.equal(fast(tokens, COND), model(tokens, COND))
    assert compiled == ["forward"]
    with pytest.raises(ValueError, match=r"tokens: got \(3, 5, 1\)"):
        fast(tokens[:, :5], COND)


def test_a_compiled_model_keeps_its_numbers_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []

    def watching(function: Any, **settings: Any) -> Any:
        def run(x: Tensor) -> Tensor:
            rows.append(len(x))
            return function(x)

        return run

    monkeypatch.setattr(torch, "compile", watching)
    decode(accelerated(model_of("bert"), compiled=True))
    assert rows == [6] * 4  # though three rows of the first step would do


@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_has_float32_logits(family: str) -> None:
    model = model_of(family)
    half = accelerated(model, bfloat16=True)
    tokens = torch.randint(12, (3, 12, 1), generator=torch.Generator().manual_seed(0))
    logits, exact = half(tokens, COND), model(tokens, COND)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert logits.dtype == torch.float32
    assert len(logits.unique()) > 0.95 * len(exact.unique())  # not rounded to three digits
    assert 0 < (logits - exact).abs().max() < 0.1 * exact.abs().max()
    assert decode(half).max() < 11
    assert half.training == model.training


def test_a_copy_in_bf16_follows_the_weights() -> None:
    model = model_of("bert")
    half = accelerated(model, bfloat16=True)
    assert accelerated(model, bfloat16=True) is half
    model.head_bias.add_(1.0)
    assert accelerated(model, bfloat16=True) is half
    assert torch.equal(half.head_bias, model.head_bias.bfloat16())
    model.head_bias.data.add_(1.0)  # which leaves no trace in torch's count of changes
    assert torch.equal(accelerated(model, bfloat16=True).head_bias, model.head_bias.bfloat16())


def test_a_copy_made_in_inference_mode_is_made_again_outside() -> None:
    model = model_of("bert")
    with torch.inference_mode():
        inside = accelerated(model, bfloat16=True)
    assert decode(accelerated(model, bfloat16=True)).max() < 11
    assert accelerated(model, bfloat16=True) is not inside


def test_nothing_is_kept_of_models_that_are_gone() -> None:
    from maskgen.sampling.speed.compiled import _made

    before, model = len(_made), model_of("bert")
    accelerated(model, bfloat16=True)
    accelerated(model, compiled=True)
    assert len(_made) == before + 1
    del model
    gc.collect()
    assert len(_made) <= before


def test_a_float32_product_of_half_types() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(shape, generator=generator).bfloat16() for shape in ((5, 64), (7, 64), (7,)))
    expected = x.double() @ weight.double().T + bias.double()
    torch.testing.assert_close(linear_float32(x, weight, bias).double(), expected, atol=1e-5, rtol=1e-5)
    assert linear_float32(x.float(), weight.float()).dtype == torch.float32
    assert torch.equal(linear_float32(x.double(), weight.double(), bias.double()), torch.nn.functional.linear(
        x.double(), weight.double(), bias.double()
    ))  # fmt: skip


def test_model_logits_of_a_half_model_are_float32() -> None:
    half = accelerated(model_of("modern"), bfloat16=True)
    assert model_logits(half, COND)(torch.full((3, 12, 1), 11), 0).dtype == torch.float32
