"""COMMIT's decoding against complete traces of the official loop, with the recorded noise fed in.

Official grids are [B, t, h, w]. Shapes: B batch, N tokens, V codes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from maskgen.conditioning import NO_LABEL, Cond
from maskgen.models.bert import BertTransformer
from maskgen.published.magvit import config_from, convert
from maskgen.sampling.commit import CommitInputs, CommitLogitsFn, commit_guided_logits, commit_logits, sample_commit
from maskgen.sampling.filters import TokenFilter
from maskgen.sampling.guidance import Guidance
from maskgen.sampling.loop import SampleStep
from maskgen.schedules import get_schedule
from tests.parity.support import check_count, check_kinds, files, load, metadata, recordings

LOGITS: dict[str, float] = {"atol": 5e-5, "rtol": 1e-4}  # README
(PARAMS,) = files("magvit", "decode_params.safetensors")
TRACES = [path for path in recordings("magvit", "decode_*.safetensors") if path != PARAMS]


@pytest.fixture(autouse=True)
def full_precision() -> None:
    torch.set_float32_matmul_precision("highest")


class Trace:
    """One recorded decoding, grids as [B, N, 1]."""

    def __init__(self, path: Path) -> None:
        self.stored = load(path)
        self.settings: dict[str, Any] = metadata(path)
        self.codes = metadata(PARAMS)["codebook"]
        shape = self.stored["final_tokens"].shape
        region = self.stored.get("cond_mask", torch.zeros(1, 1, 1, 1)).bool()
        self.known = region.expand(shape).flatten(1)[..., None]
        condition = self.stored.get("cond_inputs", torch.zeros(shape))
        self.condition = condition.long().flatten(1)[..., None]
        self.keep = TokenFilter(
            top_k=self.settings["sampling_topk"] or None, top_p=self.settings["sampling_topp"] or None
        )

    def step(self, step: int, name: str) -> Tensor:
        """A recorded array of one step, ``[B, N, 1, ...]``."""
        return self.stored[f"step{step:02d}/{name}"].flatten(1, 3).unsqueeze(2)

    def shown(self, step: int, name: str) -> Tensor:
        """What the model saw at a step: what was masked after the one before, our mask id for -1."""
        where = "init" if step == 0 else f"step{step - 1:02d}"
        tokens = self.stored[f"{where}/{name}"].long().flatten(1)[..., None]
        return tokens.masked_fill(tokens == -1, self.codes)

    def hidden(self, step: int) -> Tensor:
        where = "init" if step == 0 else f"step{step - 1:02d}"
        return self.stored[f"{where}/unknown"].bool().flatten(1)[..., None]


@dataclass
class RecordedNoise:
    """The trace's Gumbel noise; with top-k the official one belongs to the k best, in falling order."""

    trace: Trace

    def sample(self, step: int, shape: Sequence[int]) -> Tensor:
        noise, k = self.trace.step(step, "sample_gumbel"), self.trace.settings["sampling_topk"]
        if k:
            best = self.trace.step(step, "logits").topk(k).indices
            assert noise.shape == best.shape
            noise = torch.zeros(tuple(shape)).scatter(-1, best, noise)
        assert noise.shape == tuple(shape)
        return noise.clone()

    def choice(self, step: int, shape: Sequence[int]) -> Tensor:
        noise = self.trace.step(step, "score_gumbel")
        assert noise.shape == tuple(shape)
        return noise.clone()


@dataclass
class Seen:
    """What the loop showed, step by step."""

    inputs: list[CommitInputs] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)
    steps: list[SampleStep] = field(default_factory=list)


def decode(trace: Trace, logits_fn: CommitLogitsFn) -> tuple[Tensor, Seen]:
    seen = Seen()

    def watched(inputs: CommitInputs, step: int) -> Tensor:
        seen.inputs.append(inputs)
        seen.logits.append(logits_fn(inputs, step))
        return seen.logits[-1]

    settings = trace.settings
    final = sample_commit(
        watched,
        trace.condition,
        trace.known,
        mask_id=trace.codes,
        steps=settings["steps"],
        schedule=settings["schedule"],
        choice_temperature=settings["choice_temperature"],
        keep=trace.keep,
        noise=RecordedNoise(trace),
        callback=seen.steps.append,
    )
    return final, seen


def check(trace: Trace, final: Tensor, seen: Seen) -> None:
    """Ids and masks of every step exactly, scores closely."""
    steps, total = trace.settings["steps"], torch.tensor(trace.known[0].numel())
    assert len(seen.steps) == len(seen.inputs) == steps
    for k, (inputs, done) in enumerate(zip(seen.inputs, seen.steps, strict=True)):
        assert torch.equal(inputs.tokens, trace.shown(k, "masked_inputs")), f"step {k}"
        assert torch.equal(inputs.unconditional, trace.shown(k, "uncond_masked_inputs")), f"step {k}"
        assert torch.equal(inputs.mask, trace.hidden(k)), f"step {k}"
        if k:
            assert torch.equal(inputs.segments, trace.step(k - 1, "segment_ids").long()), f"step {k}"
        assert torch.equal(done.tokens, trace.step(k, "cur_tokens").long()), f"step {k}"
        assert torch.equal(done.tokens[inputs.mask], trace.step(k, "sampled").long()[inputs.mask]), f"step {k}"
        assert torch.equal(done.mask, trace.step(k, "unknown").bool()), f"step {k}"
        most = inputs.mask.flatten(1).sum(1) - 1
        assert torch.equal(most, trace.stored[f"step{k:02d}/num_masked_max"].long()), f"step {k}"
        ratio = get_schedule(trace.settings["schedule"])(torch.tensor(k + 1.0) / steps, total)
        # exp goes through the library's exp2 and log2, so its last bit is not ours to decide.
        torch.testing.assert_close(ratio, trace.stored[f"step{k:02d}/mask_ratio"][0], atol=1e-7, rtol=0)
        weight = trace.settings["choice_temperature"] * (1 - (k + 1) / steps)
        score, expected = done.confidence + weight * trace.step(k, "score_gumbel"), trace.step(k, "mask_score")
        assert torch.equal(torch.isfinite(expected), inputs.mask)  # decided ones are +inf there
        torch.testing.assert_close(score[inputs.mask], expected[inputs.mask], atol=1e-4, rtol=1e-5)
    assert torch.equal(final.flatten(), trace.stored["final_tokens"].long().flatten())


def model_logits(trace: Trace) -> CommitLogitsFn:
    """The recorded model, prefix and guidance."""
    params, settings = load(PARAMS), metadata(PARAMS)
    axes = settings["transformer"]["latent_shape"]
    config = config_from({name: value.float() for name, value in params.items()}, vocab_size=trace.codes, axes=axes)
    model = BertTransformer(config).eval()
    model.load_state_dict(convert(params, config))
    assert (model.word_embedding.num_embeddings, model.num_classes) == (settings["vocab_size"], settings["num_classes"])
    prompt, classes = trace.stored["prefix_inputs"].long().unbind(1)
    none = trace.codes + model.num_classes
    cond = Cond(task=-3 - prompt, labels=torch.where(classes == none, NO_LABEL, classes - trace.codes))
    if not trace.settings["guidance_scale"]:
        return commit_logits(model, cond)
    assert set(trace.stored["prefix_uncond_inputs"].unique().tolist()) == {-3, none}
    return commit_guided_logits(
        model, cond, Guidance(scale=trace.settings["guidance_scale"]), steps=trace.settings["steps"]
    )


def test_traces_cover_what_decoding_has() -> None:
    settings = [metadata(path) for path in TRACES]
    check_count("magvit", settings, 6)
    for name in ("guidance_scale", "sampling_topk", "sampling_topp"):
        check_kinds("magvit", {bool(found[name]) for found in settings}, {False, True})
    check_count("magvit", {found["schedule"] for found in settings}, 3)


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_trace_with_stored_logits(path: Path) -> None:
    trace = Trace(path)
    check(trace, *decode(trace, lambda inputs, step: trace.step(step, "logits")))


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_trace_with_the_real_model(path: Path) -> None:
    trace = Trace(path)
    final, seen = decode(trace, model_logits(trace))
    for step, logits in enumerate(seen.logits):
        torch.testing.assert_close(logits, trace.step(step, "logits"), **LOGITS)
    check(trace, final, seen)


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_what_may_be_drawn(path: Path) -> None:
    """Our filter keeps what the official categorical draw saw; there the rest is far down instead of -inf."""
    trace = Trace(path)
    for step in range(trace.settings["steps"]):
        logits, expected = trace.step(step, "logits"), trace.step(step, "sample_logits")
        ours = trace.keep(logits)
        if trace.settings["sampling_topk"]:
            ours = ours.topk(expected.shape[-1]).values
        assert torch.equal(ours, expected.masked_fill(expected < -1e6, -torch.inf))
