"""The sampler against complete traces of the official MaskGIT decoding, with the recorded noise fed in.

Shapes: B batch, S sequence with the class prefix where there is one, N tokens, V codes.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from maskgen.conditioning import Cond
from maskgen.models.bert import BertTransformer
from maskgen.sampling import loop as sampler
from maskgen.sampling.loop import LogitsFn, SampleStep
from maskgen.sampling.selectors.base import Selection
from maskgen.sampling.selectors.named import get_selector
from maskgen.tokenizers.image.vqgan import VQGAN
from tests.parity.maskgit.weights import (
    recorded_params,
    tokenizer_config,
    tokenizer_state_dict,
    transformer_config,
    transformer_state_dict,
)
from tests.parity.support import load, metadata, recordings

TRACES = recordings("maskgit", "decode_*.safetensors")
WITH_RULE = [path for path in TRACES if "rule" in metadata(path)]
END_TO_END = [path for path in TRACES if "image" in load(path)]


@pytest.fixture(autouse=True)
def full_precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


class Trace:
    """One recorded decoding, without its class prefix."""

    def __init__(self, path: Path) -> None:
        self.stored, settings = load(path), metadata(path)
        self.settings: dict[str, Any] = settings
        self.codes, self.mask_id = settings["codebook_size"], settings["mask_token_id"]
        inputs = self.stored["inputs"].long()
        self.prefix = int(bool(((inputs[:, 0] >= self.codes) & (inputs[:, 0] != self.mask_id)).all()))
        self.classes = inputs[:, : self.prefix]
        visual = inputs[:, self.prefix :, None]
        self.mask = visual == self.mask_id
        self.tokens = visual.masked_fill(self.mask, self.codes)  # our mask id is V

    def visual(self, step: int, name: str) -> Tensor:
        """A recorded array of one step over the visual tokens, ``[B, N, 1, ...]``."""
        return self.stored[f"step{step:02d}/{name}"][:, self.prefix :].unsqueeze(2)

    def official(self, tokens: Tensor) -> Tensor:
        """Our tokens ``[B, N, 1]`` as official ids ``[B, S]``."""
        ids = tokens.squeeze(2)
        return torch.cat((self.classes, ids.masked_fill(ids == self.codes, self.mask_id)), dim=1)

    def stored_logits(self, tokens: Tensor, step: int) -> Tensor:
        return self.visual(step, "logits")

    def rule_logits(self, tokens: Tensor, step: int) -> Tensor:
        """Logits of the rule named in the metadata, from the ids."""
        ids, table_a = self.official(tokens), self.stored["table/A"]
        if self.settings["rule"] == "logits=A[pos]":
            logits = table_a.expand(len(ids), -1, -1)
        else:
            assert self.settings["rule"] == (
                "i=where(ids<0,len(B)-1,ids); logits=(A[pos]+B[i[pos]])+C[i[pos-1 wrapping]]"
            )
            table_b, table_c = self.stored["table/B"], self.stored["table/C"]
            rows = torch.where(ids < 0, len(table_b) - 1, ids)
            logits = (table_a + table_b[rows]) + table_c[rows.roll(1, dims=1)]
        return logits[:, self.prefix :, None]


@dataclass
class RecordedNoise:
    """The trace's Gumbel noise instead of our own."""

    trace: Trace

    def sample(self, step: int, shape: Sequence[int]) -> Tensor:
        return self._check(self.trace.visual(step, "sample_noise"), shape)

    def choice(self, step: int, shape: Sequence[int]) -> Tensor:
        return self._check(self.trace.visual(step, "choice_noise"), shape)

    def _check(self, noise: Tensor, shape: Sequence[int]) -> Tensor:
        assert noise.shape == tuple(shape)
        return noise.clone()


@dataclass
class Seen:
    """What the sampler did, step by step."""

    current: list[Tensor] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)
    chosen: list[tuple[Tensor, Tensor, Tensor, Tensor, float]] = field(default_factory=list)
    steps: list[SampleStep] = field(default_factory=list)


def decode(trace: Trace, logits_fn: LogitsFn, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Seen]:
    """Run our sampler on the trace's inputs and keep all it computes; the selector is watched, not replaced."""
    seen, real = Seen(), get_selector("confidence")

    def watched_logits(tokens: Tensor, step: int) -> Tensor:
        seen.current.append(tokens.clone())
        seen.logits.append(logits_fn(tokens, step).clone())
        return seen.logits[-1].clone()

    def watched_hide(step: Selection) -> Tensor:
        seen.chosen.append(
            (step.log_probs.clone(), step.mask.clone(), step.counts.clone(), step.noise.clone(), step.weight)
        )
        return real.remask(step)

    monkeypatch.setattr(sampler, "get_selector", lambda name: replace(real, remask=watched_hide))
    settings = trace.settings
    final = sampler.sample(
        watched_logits,
        trace.tokens,
        trace.mask,
        steps=settings["num_iter"],
        schedule=settings["method"],
        choice_temperature=settings["choice_temperature"],
        noise=RecordedNoise(trace),
        start_step=settings["start_iter"],
        callback=seen.steps.append,
    )
    return final, seen


def check(trace: Trace, final: Tensor, seen: Seen) -> None:
    """Every recorded quantity of every step; ids, masks and counts exactly."""
    first, steps = trace.settings["start_iter"], trace.settings["num_iter"]
    assert [step.step for step in seen.steps] == list(range(first, steps))
    assert len(seen.steps) == trace.settings["ran_steps"]
    for current, chosen, done in zip(seen.current, seen.chosen, seen.steps, strict=True):
        k = done.step
        log_probs, before, counts, noise, temperature = chosen
        before = before.unsqueeze(2)
        assert torch.equal(trace.official(current), trace.stored[f"step{k:02d}/cur_ids"].long()), f"step {k}"
        assert torch.equal(done.tokens, trace.visual(k, "sampled_ids").long()), f"step {k}"
        assert torch.equal(trace.official(done.tokens), trace.stored["final_seqs_all_steps"][:, k].long()), f"step {k}"
        assert torch.equal(counts[:, None], trace.stored[f"step{k:02d}/mask_len"].long()), f"step {k}"
        assert torch.equal(done.mask, trace.visual(k, "masking").bool()), f"step {k}"
        shown = torch.where(done.mask, trace.codes, done.tokens)
        assert torch.equal(trace.official(shown), trace.stored[f"step{k:02d}/next_ids"].long()), f"step {k}"
        # Given tokens have probability and confidence +inf there and are left out here.
        prob, confidence = trace.visual(k, "sel_prob"), trace.visual(k, "confidence")
        assert torch.equal(before, torch.isfinite(prob))
        torch.testing.assert_close(done.confidence.exp()[before], prob[before], atol=1e-5, rtol=1e-5)
        ours = (log_probs + temperature * noise).unsqueeze(2)
        finite = before & torch.isfinite(confidence)
        torch.testing.assert_close(ours[finite], confidence[finite], atol=1e-5, rtol=1e-5)
        assert temperature == pytest.approx(float(trace.stored[f"step{k:02d}/temperature"]), abs=1e-6)
    assert torch.equal(trace.official(final), trace.stored["final_ids"].long())


def test_traces_are_found() -> None:
    assert WITH_RULE
    assert END_TO_END
    assert {path for path in TRACES if path not in WITH_RULE} == set(END_TO_END)


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_trace_with_stored_logits(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = Trace(path)
    check(trace, *decode(trace, trace.stored_logits, monkeypatch))


@pytest.mark.parametrize("path", WITH_RULE, ids=lambda path: path.stem)
def test_trace_with_logits_computed_from_the_tokens(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = Trace(path)
    final, seen = decode(trace, trace.rule_logits, monkeypatch)
    for step, logits in zip(seen.steps, seen.logits, strict=True):
        assert torch.equal(logits, trace.visual(step.step, "logits"))
    check(trace, final, seen)


def models_of(path: Path) -> list[str]:
    """Names of the transformer and the tokenizer that made a trace, from its note: ``NAME_params + NAME_params``."""
    names = re.findall(r"(\w+)_params", metadata(path)["note"])
    assert len(names) == 2
    return names


def transformer(name: str, codes: int) -> Callable[[Tensor, Cond], Tensor]:
    params = recorded_params(name)[0]
    model = BertTransformer(transformer_config(params, vocab_size=codes))
    model.load_state_dict(transformer_state_dict(params))
    return model.eval()


def tokenizer(name: str) -> VQGAN:
    params, settings = recorded_params(name)
    model = VQGAN(tokenizer_config(params, activation=settings["activation_fn"]))
    model.load_state_dict(tokenizer_state_dict(params))
    model.eval()
    return model


@pytest.mark.parametrize("path", END_TO_END, ids=lambda path: path.stem)
def test_end_to_end_with_the_real_models(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = Trace(path)
    assert trace.prefix == 1
    names = models_of(path)
    model, cond = transformer(names[0], trace.codes), Cond(labels=trace.classes[:, 0] - trace.codes)
    final, seen = decode(trace, lambda tokens, step: model(tokens, cond), monkeypatch)
    for step, logits in zip(seen.steps, seen.logits, strict=True):
        torch.testing.assert_close(logits, trace.visual(step.step, "logits"), atol=1e-4, rtol=1e-5)
    assert torch.equal(trace.official(final), trace.stored["final_ids"].long())
    for step in seen.steps:
        assert torch.equal(step.tokens, trace.visual(step.step, "sampled_ids").long()), f"step {step.step}"
        assert torch.equal(step.mask, trace.visual(step.step, "masking").bool()), f"step {step.step}"
    images, decoder = trace.stored["image"].permute(0, 3, 1, 2), tokenizer(names[1])
    with torch.no_grad():
        image = decoder.decode(final, decoder.axes(images.shape))
    torch.testing.assert_close(image, images, atol=5e-5, rtol=1e-5)
