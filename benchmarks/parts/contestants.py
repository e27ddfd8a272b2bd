"""Who takes part in ``compare_samplers.py``: one small function each.

A new way to sample is one function and one line in ``CONTESTANTS``; a promise about it is one line in ``goals.py``. The
function gets a ``Load`` (what to make) and ``Models`` (random weights, shared by all), and returns a ``Job``. It is called
twice: on the device that is measured, and on the meta device, where its FLOPs are counted without computing anything.

Shapes: B batch, N tokens.
"""

import contextlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from parts.baselines.amused import MISSING, amused_forward, is_installed, sample_amused_loop
from parts.baselines.autoregressive import Decoding, Mode
from parts.baselines.naive import TorchDraws, naive_logits, sample_naive
from parts.loads import (
    Job,
    LeftOutError,
    Load,
    Models,
    cache_memory,
    eager_memory,
    guided_memory,
    loop_memory,
    pixel_memory,
)
from parts.measuring import seconds
from parts.meters import module_bytes

from maskgen.conditioning import Cond
from maskgen.noise import SeededNoise
from maskgen.precision import default_matmul, fast_matmul
from maskgen.sampling.guidance import Guidance, guided_logits, model_logits
from maskgen.sampling.loop import LogitsFn, sample
from maskgen.sampling.selectors.base import Selector
from maskgen.sampling.selectors.named import get_selector
from maskgen.sampling.speed.compiled import accelerated
from maskgen.sampling.speed.plan import plan_steps
from maskgen.sampling.speed.query import PartialLogits, Query
from maskgen.schedules import get_schedule

__all__ = ["CONTESTANTS", "Contestant", "on_default_path"]

Context = Callable[[], contextlib.AbstractContextManager[None]]


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One row of the table.

    Attributes:
        name: unique.
        build: the work; raises ``LeftOutError`` where it cannot be done.
        note: what it is, for the report.
        memory: rough bytes of a run beyond weights and caches, so that a load that cannot fit is not tried.
        cache: bytes that building it takes beyond weights.
        devices: where it takes part.
    """

    name: str
    build: Callable[[Load, Models], Job]
    note: str
    memory: Callable[[Load], int] = loop_memory
    cache: Callable[[Load], int] = lambda load: 0
    devices: tuple[str, ...] = ("cpu", "cuda")


def maskgen(load: Load, models: Models) -> Job:
    """``sample`` as the tasks call it."""
    return _loop(load, models, lambda steps: model_logits(models.bert, load.cond))


def maskgen_guided(load: Load, models: Models) -> Job:
    """Guidance in one forward of 2 B rows; of the first step, one row for all unconditional halves."""
    return _sharing(load, models, load.cond, load.scale, kinds=min(load.batch, load.config.num_classes) + 1)


def one_class(load: Load, models: Models) -> Job:
    """Images of one class, whose first step is one row."""
    return _sharing(load, models, load.one_class, 0.0, kinds=1)


def one_class_guided(load: Load, models: Models) -> Job:
    """The same with guidance: two rows."""
    return _sharing(load, models, load.one_class, load.scale, kinds=2)


def one_class_halton(load: Load, models: Models) -> Job:
    """The same in an order that is known beforehand: only what a step decides is predicted."""
    return _sharing(load, models, load.one_class, load.scale, kinds=2, select="halton")


def pixels(*, compiled: bool) -> Callable[[Load, Models], Job]:
    """Tokens, then MaskGIT's decoder, whose pixels are 16 times the grid on either axis; one unit, for the parts differ."""

    def build(load: Load, models: Models) -> Job:
        tokenizer, here = models.tokenizer, compiled and load.device != "meta"
        model = accelerated(models.bert, compiled=True) if here else models.bert
        decoder = _compiled(tokenizer.decoder) if here else tokenizer.decoder

        def run(units: Sequence[int]) -> torch.Tensor:
            with fast_matmul(load.device), torch.no_grad():
                logits = model_logits(model, load.cond)
                ids = sample(logits, load.tokens, load.mask, steps=load.steps, seeds=load.seeds)
                if load.device == "meta":  # the lookup asks tensors for numbers; all the products are in the decoder
                    shape = (load.batch, load.decoder.quantizer.dim, *load.config.axes)
                    return decoder(torch.empty(shape, dtype=load.dtype, device="meta"))
                if not compiled:
                    return tokenizer.decode(ids, load.config.axes)
                return decoder(tokenizer.quantizer.lookup(ids, load.config.axes).to(load.dtype))

        warm = _compiling(run) if compiled else None
        held = module_bytes(models.bert) + module_bytes(tokenizer)
        return Job(units=1, run=run, held=held, divisible=False, warm=warm)

    return build


def maskgen_compiled(load: Load, models: Models) -> Job:
    """The model through torch.compile with CUDA graphs, one graph for this batch size."""
    if load.device == "meta":
        return maskgen(load, models)  # compiling changes no FLOPs
    model = accelerated(models.bert, compiled=True)
    job = _loop(load, models, lambda steps: model_logits(model, load.cond))
    return replace(job, warm=_compiling(job.run))


def plain_loop(load: Load, models: Models) -> Job:
    """The same model, whole, in the same loop on torch's default float32 product (MKL on this kind of CPU)."""
    return _loop(load, models, lambda steps: on_default_path(lambda tokens, step: models.bert(tokens, load.cond)))


def naive(load: Load, models: Models) -> Job:
    """See ``baselines.naive``; eager attention, default product."""
    return _naive(load, models, 0.0)


def naive_guided(load: Load, models: Models) -> Job:
    """The same with two forwards a step."""
    return _naive(load, models, load.scale)


def bare(load: Load, models: Models) -> Job:
    """As many forwards as there are steps and nothing else: what no loop without short cuts can beat."""
    return _forwards(load, models, 1)


def bare_guided(load: Load, models: Models) -> Job:
    """Two forwards of B rows a step, the cost of guidance without short cuts."""
    return _forwards(load, models, 2)


def autoregressive(mode: Mode) -> Callable[[Load, Models], Job]:
    """See ``baselines.autoregressive``."""

    def build(load: Load, models: Models) -> Job:
        noise = SeededNoise(load.seeds, load.device)
        decoding = Decoding(models.autoregressive, load.cond.labels, noise, mode)  # type: ignore[arg-type]
        context = _fast(load.device)
        if mode == "cache":  # a row or a few at a time, where either product may win
            context = _quicker_product(lambda: decoding.step(load.places // 2), load.device)

        def run(units: Sequence[int]) -> torch.Tensor:
            with context():
                for unit in units:
                    decoding.step(unit)
            return decoding.ids

        held = module_bytes(models.autoregressive) + decoding.cache_bytes
        least = {"cache": 4, "prefix": 3, "whole": 1}[mode]  # cost of token t: nearly level, quadratic, level
        return Job(units=load.places, run=run, held=held, least=least, quadratic=True)

    return build


def amused(load: Load, models: Models) -> Job:
    """See ``baselines.amused``; torch's default product, as its users get it."""
    if not is_installed():
        raise LeftOutError(MISSING)
    forward = amused_forward(models.amused, load.batch)
    ids = load.tokens.view(load.batch, *load.config.axes)

    def run(units: Sequence[int]) -> Any:
        if load.device == "meta":  # its scheduler asks tensors for numbers; all the products are in the model
            return [forward(ids) for _ in units]
        with default_matmul():
            return sample_amused_loop(
                forward, load.config, batch=load.batch, steps=len(units), seed=0, device=load.device
            )

    return Job(units=load.steps, run=run, held=module_bytes(models.amused))


def on_default_path(logits_fn: LogitsFn) -> LogitsFn:
    """The model's plain layers on torch's default product, whatever the loop around has switched on."""

    def plain(tokens: torch.Tensor, step: int) -> torch.Tensor:
        with default_matmul():
            return logits_fn(tokens, step)

    return plain


def _compiled(work: Any) -> Any:
    return torch.compile(work, mode="reduce-overhead", dynamic=False)


def _compiling(run: Callable[[Sequence[int]], Any]) -> Callable[[], None]:
    """A first run, in which torch compiles and records."""

    def warm() -> None:
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("error", message="compile: ")  # it would go on without
                for _ in range(3):  # compile, record, replay
                    run([0])
        except UserWarning as error:
            raise LeftOutError(str(error)) from error
        except Exception as error:
            raise LeftOutError(f"torch.compile does not work here: {type(error).__name__}") from error

    return warm


def _loop(load: Load, models: Models, logits: Callable[[int], LogitsFn]) -> Job:
    """``sample`` over a logits function; fewer steps are a part of the work.

    Steps differ by a few percent, for of the last layer only hidden places are computed: fewer steps make the loop look a
    little slower than it is. A path whose steps differ by more is ``_sharing``, which is measured whole.
    """

    def run(units: Sequence[int]) -> torch.Tensor:
        with fast_matmul(load.device):
            return sample(logits(len(units)), load.tokens, load.mask, steps=len(units), seeds=load.seeds)

    return Job(units=load.steps, run=run, held=module_bytes(models.bert))


def _sharing(load: Load, models: Models, cond: Cond, scale: float, kinds: int, select: str = "confidence") -> Job:
    """``sample`` where rows of the first step are alike, of so many ``kinds``; all steps are run, for that one is cheap."""

    def run(units: Sequence[int]) -> torch.Tensor:
        predict = guided_logits(models.bert, cond, Guidance(scale=scale), steps=load.steps)
        order = get_selector(select, axes=load.config.axes)
        if load.device == "meta":  # rows that hold nothing cannot be compared
            return _count_sharing(load, models, predict, kinds, order)
        with fast_matmul(load.device):
            return sample(predict, load.tokens, load.mask, steps=load.steps, seeds=load.seeds, select=order)

    return Job(units=load.steps, run=run, held=module_bytes(models.bert), divisible=False)


def _count_sharing(load: Load, models: Models, predict: PartialLogits, kinds: int, order: Selector) -> torch.Tensor:
    """The forwards of such a loop, for their FLOPs."""
    options = {"steps": load.steps, "start_step": 0, "every_step": False}
    plan = plan_steps(load.mask, get_schedule("cosine"), order, **options)
    labels = torch.zeros(kinds, dtype=torch.long, device="meta")
    shared = (load.tokens[:1].expand(kinds, -1, -1), Cond(labels=labels))
    logits = models.bert(*shared) if predict.is_partial else predict(load.tokens, 0)
    for step in range(1, load.steps):
        count = plan.decided[step] if order.blind and step < load.steps - 1 else plan.masked[step]
        positions = load.tokens[:, :count, 0] if count < load.places else None
        logits = predict.answer(load.tokens, step, Query(positions=positions))
    return logits


def _naive(load: Load, models: Models, scale: float) -> Job:
    def run(units: Sequence[int]) -> Any:
        if load.device == "meta":  # the loop asks tensors for numbers; all the products are in the model
            return [naive_logits(models.eager, load.tokens[..., 0], load.cond, scale) for _ in units]
        draws = TorchDraws(torch.Generator(load.device).manual_seed(0))
        with default_matmul():
            return sample_naive(models.eager, load.cond, draws, batch=load.batch, steps=len(units), scale=scale)

    return Job(units=load.steps, run=run, held=module_bytes(models.eager))


def _forwards(load: Load, models: Models, count: int) -> Job:
    def run(units: Sequence[int]) -> None:
        with fast_matmul(load.device), torch.no_grad():
            for _ in range(count * len(units)):
                models.bert(load.tokens, load.cond)

    return Job(units=load.steps, run=run, held=module_bytes(models.bert))


def _fast(device: str) -> Context:
    return lambda: fast_matmul(device)


def _quicker_product(work: Callable[[], Any], device: str) -> Context:
    """Our product or torch's default, whichever does this work faster here: a baseline gets the better one."""
    if device != "cpu":
        return _fast(device)
    times: dict[Context, float] = {}
    for context in (_fast(device), default_matmul):
        with context():
            work()  # the first call makes kernels and memory ready
            times[context] = min(seconds(work, device) for _ in range(3))
    return min(times, key=lambda context: times[context])


CONTESTANTS: tuple[Contestant, ...] = (
    Contestant(name="maskgen", build=maskgen, note="sample() as the tasks call it"),
    Contestant(
        name="maskgen, torch.compile", build=maskgen_compiled, note="CUDA graphs, static shapes", devices=("cuda",)
    ),
    Contestant(name="maskgen, one class", build=one_class, note="all images of one class: the first step is one row"),
    # Fast paths of the sampler go here, each beside the row that it must equal id for id.
    Contestant(name="bare forwards", build=bare, note="one forward a step, no sampling"),
    Contestant(
        name="plain MKL loop",
        build=plain_loop,
        note="same loop and model, torch's default float32 product",
        devices=("cpu",),
    ),
    Contestant(name="naive loop", build=naive, note="as the paper reads, eager attention", memory=eager_memory),
    Contestant(name="aMUSEd loop (diffusers)", build=amused, note="UVit2DModel of the nearest size, AmusedScheduler"),
    Contestant(name="AR, KV cache", build=autoregressive("cache"), note="one place a token", cache=cache_memory),
    Contestant(name="AR, prefix again", build=autoregressive("prefix"), note="no cache: all places so far a token"),
    Contestant(
        name="AR, whole again", build=autoregressive("whole"), note="no cache, static shape: all places a token"
    ),
    Contestant(name="maskgen, guided", build=maskgen_guided, note="both halves in one forward", memory=guided_memory),
    Contestant(
        name="maskgen, one class, guided",
        build=one_class_guided,
        note="all images of one class: the first step is two rows",
        memory=guided_memory,
    ),
    Contestant(
        name="maskgen, one class, guided, halton",
        build=one_class_halton,
        note="the same in the order halton, which predicts only what a step decides",
        memory=guided_memory,
    ),
    Contestant(name="bare forwards, guided", build=bare_guided, note="two forwards a step, no sampling"),
    Contestant(name="naive loop, guided", build=naive_guided, note="two forwards a step", memory=eager_memory),
    Contestant(
        name="maskgen, to pixels", build=pixels(compiled=False), note="with MaskGIT's decoder", memory=pixel_memory
    ),
    Contestant(
        name="maskgen, to pixels, torch.compile",
        build=pixels(compiled=True),
        note="both compiled",
        memory=pixel_memory,
        devices=("cuda",),
    ),
)
