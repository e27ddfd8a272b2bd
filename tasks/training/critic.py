"""``maskgen train critic``: a critic for a model that is already trained, or the model as its own critic."""

from pathlib import Path
from typing import Literal

from maskgen.checkpoint import code_fingerprint, fingerprint, load_module
from maskgen.data import Source
from maskgen.models.base import MaskedTransformer
from maskgen.objectives.critic import CriticModeling, CriticSettings, SelfCriticModeling
from maskgen.objectives.masked import MaskingSettings
from maskgen.published.vampnet.transformer import VampNetTransformer
from maskgen.sampling.critics import check_critic
from maskgen.tasks.conditions.classes import check_class_order
from maskgen.tasks.data.base import SignalData
from maskgen.tasks.pipeline import Pipeline
from maskgen.tasks.training.checks import check_preparation, check_shards, check_signals
from maskgen.tasks.training.runs import Say, run_stage
from maskgen.tasks.training.text import check_captions, with_captions
from maskgen.tasks.training.tokens import training_tokens
from maskgen.tokenizers.audio.base import AudioTokenizer
from maskgen.training.objective import Objective
from maskgen.training.settings import TrainSettings

CriticKind = Literal["separate", "self"]


def train_critic(
    *,
    model: Path,
    data: SignalData,
    settings: TrainSettings,
    out: Path,
    kind: CriticKind = "separate",
    critic: MaskedTransformer | None = None,
    critic_settings: CriticSettings | None = None,
    masking: MaskingSettings | None = None,
    views: int = 1,
    again: bool = False,
    say: Say = print,
) -> Path:
    """Train a critic for a model, or the model to be its own critic.

    The result samples with ``--sampling.select critic`` (or ``self-critic``).

    Args:
        model: folder of the trained model.
        data: what it was trained on.
        settings: how long and how wide.
        out: the model folder to make, with everything of the other. ``separate`` may name the same folder again and then
            only adds ``critic/``; an interrupted run goes on, a finished one is reused.
        kind: ``separate``: a second transformer learns which tokens are the first one's; ``self``: the model goes on
            learning to predict masked tokens, and learns to criticise its own.
        critic: sizes of the second transformer, which then learns from nothing; if left out it begins as a copy of the
            first, which is far quicker. Only for ``separate``.
        critic_settings: what the critic is shown and what it costs.
        masking: what is masked while the model goes on learning. Only for ``self``.
        views: how many differently augmented views of each example are tokenized before training.
        again: train anew even if ``out`` holds a run; that one is moved into ``earlier-1`` beside the new one's files.
        say: told what happens.

    Returns:
        ``out``.

    Raises:
        FileNotFoundError: no model there.
        ValueError: data or a critic that do not fit the model, settings of the other kind, ``self`` into the model's own
            folder, or ``out`` holds another run.
    """
    pipe = Pipeline.from_pretrained(model, device="cpu")
    _check(pipe, data, kind, critic, masking, model.resolve() == out.resolve())
    generator, scored, identity = (
        pipe.transformer,
        critic_settings or CriticSettings(),
        code_fingerprint(pipe.tokenizer),
    )
    check_shards(data, identity, views)
    start, features = critic or generator, out / "tokens" / "text"
    check_captions(pipe.text, generator, data, features, again=again)
    run, title = (out / "critic", "critic") if kind == "separate" else (out / "transformer", "self-critic")

    def make() -> tuple[Objective, Source]:
        told = {"views": views, "seed": settings.seed, "title": title, "again": again, "say": say}
        sources = training_tokens(pipe.tokenizer, data, out / "tokens", generator.num_codebooks, **told)  # type: ignore[arg-type]
        null = None
        if pipe.text is not None:
            sources, null = with_captions(pipe.text, generator, sources, data, features, again=again, say=say)
        tokens, held_out = sources
        trained = _begun(start, generator, pipe)
        if kind == "separate":
            return CriticModeling(trained, generator, scored, null=null, held_out=held_out), tokens
        return SelfCriticModeling(trained, masking or MaskingSettings(), scored, null=null, held_out=held_out), tokens

    def finish() -> None:
        _write(pipe, run, out, kind, model.resolve() == out.resolve())

    parts = {"generator": fingerprint(generator), "tokenizer": identity, "critic": start, "data": data, "kind": kind}
    rest = {"critic_settings": scored, "masking": masking, "settings": settings, "views": views}
    run_stage(run, title, {**parts, **rest}, make, finish=finish, again=again, say=say)
    return out


def _begun(start: MaskedTransformer, generator: MaskedTransformer, pipe: Pipeline) -> MaskedTransformer:
    """The model to train: a copy of the generator, or one of other sizes that begins anew.

    What the generator knows of the tokens is what a critic needs first. Measured on digits in 8 x 8 toy tokens, 2 layers of
    width 48, 400 steps of 32: loss 0.596 from the generator's weights on, 0.653 from new ones, which is that of knowing
    nothing but the mask ratio.
    """
    fresh = type(start)(start.config)
    if start is generator:
        fresh.load_state_dict(generator.state_dict())
    elif isinstance(fresh, VampNetTransformer) and isinstance(pipe.tokenizer, AudioTokenizer):
        fresh.set_code_tables(pipe.tokenizer.code_tables())
    return fresh


def _write(pipe: Pipeline, run: Path, out: Path, kind: CriticKind, same_folder: bool) -> None:
    """Put the trained part beside the others; in the model's own folder they lie there already."""
    if same_folder:
        return
    trained = load_module(run, MaskedTransformer)  # type: ignore[type-abstract]
    # A critic of an earlier training was for another generator than the one that has just learnt to criticise itself.
    transformer, critic = (pipe.transformer, trained) if kind == "separate" else (trained, None)
    parts = {"fine": pipe.fine, "critic": critic, "text": pipe.text}
    Pipeline(pipe.tokenizer, transformer, pipe.config, "cpu", **parts).save_pretrained(out)  # type: ignore[arg-type]


def _check(
    pipe: Pipeline,
    data: SignalData,
    kind: CriticKind,
    critic: MaskedTransformer | None,
    masking: MaskingSettings | None,
    same_folder: bool,
) -> None:
    if kind == "self" and same_folder:
        raise ValueError("out: a self-critic is another model than the one it comes from; name another folder")
    if kind == "self" and critic is not None:
        raise ValueError("critic: got a second transformer, but the kind 'self' has none; leave it out")
    if kind == "separate" and masking is not None:
        raise ValueError("masking: only the kind 'self' goes on learning to predict masked tokens; leave it out")
    if critic is not None:
        check_critic(critic, pipe.transformer)
        text = (pipe.transformer.context_width, pipe.transformer.pooled_width)
        if (critic.context_width, critic.pooled_width) != text:
            raise ValueError(
                f"critic: takes a text of widths {critic.context_width} and {critic.pooled_width} (context, pooled), "
                f"expected the model's {text[0]} and {text[1]}"
            )
    if pipe.modality == "video":
        raise ValueError("model: got one of video, whose sampler 'commit' has no critic")
    if pipe.transformer.coarse_size:
        raise ValueError("model: got the second stage of a cascade, which has no critic yet")
    check_signals(pipe.tokenizer, data)
    check_preparation("model", pipe.config.prepared, data)
    got = {"size": tuple(data.size), "classes": len(data.class_names)}
    expected = {"size": tuple(pipe.config.signal_size), "classes": pipe.transformer.num_classes}
    if got != expected:
        raise ValueError(f"data: got {got}, expected {expected}, what the model was trained on")
    check_class_order(data.class_names, pipe.config.class_names, "the data", "the model")
