"""Every order, guidance and temperature by name, through the pipeline, JSON and the command line."""

import dataclasses
import json
import math
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from maskgen.checkpoint import build_config, write_json
from maskgen.conditioning import Cond
from maskgen.models.modern import ModernConfig, ModernTransformer
from maskgen.sampling.critics import critic_scores
from maskgen.sampling.filters import TokenFilter, filtered_logits
from maskgen.sampling.guidance import Guidance, guided_logits, model_logits, self_guided_logits
from maskgen.sampling.loop import sample
from maskgen.sampling.selectors.named import get_selector
from maskgen.sampling.settings import Sampling
from maskgen.sampling.speed.compiled import accelerated
from maskgen.tasks.cli import build_parser
from maskgen.tasks.conditions.request import Request
from maskgen.tasks.data.identity import describe
from maskgen.tasks.pipeline import Pipeline
from maskgen.tasks.training.runs import finished_before
from tests.selections import flat_sampling, former_keys
from tests.support import oracle_pipeline, tiny_audio_pipeline, tiny_pipeline
from tests.tasks.commandline import run

LABELS, SEEDS = [1, 2, 3], [5, 6, 7]
PLAIN = [
    "confidence",
    "random",
    "halton",
    "moment",
    "entropy:3",
    "remdm-cap:0.3",
    "remdm-rescale",
    "remdm-conf",
    "span3",
]


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    """With a critic of other weights than the generator."""
    plain = tiny_pipeline()
    critic = tiny_pipeline(seed=1).transformer
    return Pipeline(plain.tokenizer, plain.transformer, plain.config, "cpu", critic=critic)


def scene(pipe: Pipeline) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens of three items and a mask that differs from row to row; the last row has nothing hidden."""
    generator = torch.Generator().manual_seed(0)
    places = math.prod(pipe.axes)
    tokens = torch.randint(0, pipe.tokenizer.vocab_size, (3, places, 1), generator=generator)
    return tokens, torch.rand(3, places, 1, generator=generator) < torch.tensor([0.9, 0.3, 0.0])[:, None, None]


def fill(pipe: Pipeline, rows: slice = slice(None), **settings: Any) -> torch.Tensor:
    tokens, mask = scene(pipe)
    chosen = pipe.sampling(flat_sampling(**{"steps": 5, **settings}))
    return pipe.fill(
        tokens[rows], mask[rows], Request(cond=pipe.cond(LABELS[rows]), seeds=SEEDS[rows], sampling=chosen)
    )


def expected(pipe: Pipeline, logits_fn: Any, **options: Any) -> torch.Tensor:
    tokens, mask = scene(pipe)
    hidden = tokens.masked_fill(mask, pipe.transformer.vocab_size)
    return sample(logits_fn, hidden, mask, **{"steps": 5, "seeds": SEEDS, **options})


@pytest.mark.parametrize("select", [*PLAIN, "critic", "self-critic"])
def test_every_order_by_name(pipe: Pipeline, select: str) -> None:
    tokens, mask = scene(pipe)
    done = fill(pipe, select=select)
    assert torch.equal(done[~mask], tokens[~mask])
    assert done.max() < pipe.tokenizer.vocab_size
    cond = Cond(labels=torch.tensor(LABELS))
    judge = pipe.transformer if select == "self-critic" else pipe.critic
    assert judge is not None
    chosen = get_selector(select, axes=pipe.axes, critic=critic_scores(judge, cond))
    assert torch.equal(done, expected(pipe, model_logits(pipe.transformer, cond), select=chosen))
    assert torch.equal(fill(pipe, slice(1, 2), select=select), done[1:2])


def test_the_orders_differ(pipe: Pipeline) -> None:
    found = [fill(pipe, select=select) for select in [*PLAIN, "critic", "self-critic"]]
    assert all(not torch.equal(a, b) for i, a in enumerate(found) for b in found[:i])


def test_a_critic_that_is_not_there_is_asked_for() -> None:
    message = (
        "select: 'critic' needs a critic, .* got none; train one with `maskgen train critic`, or choose another order"
    )
    with pytest.raises(ValueError, match=message):
        fill(tiny_pipeline(), select="critic")
    assert fill(tiny_pipeline(), select="self-critic").shape == (3, 64, 1)


def test_guidance_by_name(pipe: Pipeline) -> None:
    cond, model = Cond(labels=torch.tensor(LABELS)), pipe.transformer
    shared: dict[str, Any] = {"steps": 5, "axes": pipe.axes}
    plain, course = Guidance(scale=1.5), Guidance(scale=1.5, ramp="power-cosine", power=2.0, interval=(0.3, 0.8))
    settings = {
        "guidance": 1.5,
        "guidance_ramp": "power-cosine",
        "guidance_power": 2.0,
        "guidance_interval": (0.3, 0.8),
    }
    assert torch.equal(fill(pipe, **settings), expected(pipe, guided_logits(model, cond, course, **shared)))
    away = Cond(labels=torch.full((3,), 7))
    found = fill(pipe, guidance=1.5, guidance_from="label", negative_label=7)
    assert torch.equal(found, expected(pipe, guided_logits(model, cond, plain, against=away, **shared)))
    weaker: dict[str, Any] = {"seeds": SEEDS, "mask_id": model.vocab_size}
    dropping = dataclasses.replace(course, drop=0.6)
    found = fill(pipe, **settings, guidance_from="self", guidance_drop=0.6)
    assert torch.equal(found, expected(pipe, self_guided_logits(model, cond, dropping, **shared, **weaker)))
    assert torch.equal(fill(pipe, guidance_from="self"), fill(pipe))


def test_guidance_of_a_model_without_an_unconditional_mode() -> None:
    strict = oracle_pipeline(torch.zeros(64, 1, dtype=torch.long), null_class=False)
    message = (
        r"guidance: got 1.0, but this model has no unconditional mode \(it was trained without label dropout\); use 0"
    )
    with pytest.raises(ValueError, match=message):
        fill(strict, guidance=1.0)
    for settings in ({"guidance_from": "self"}, {"guidance_from": "label", "negative_label": 3}):
        assert fill(strict, guidance=1.0, **settings).shape == (3, 64, 1)


def test_a_negative_label_must_be_a_class(pipe: Pipeline) -> None:
    for label in (10, -1):
        with pytest.raises(ValueError, match=f"guidance.negative_label: got {label}, expected 0 to 9"):
            fill(pipe, guidance=1.0, guidance_from="label", negative_label=label)
    model = ModernTransformer(ModernConfig(vocab_size=32, num_classes=0, axes=(8, 8), width=16, layers=1, heads=2))
    plain = Pipeline(pipe.tokenizer, model, dataclasses.replace(pipe.config, class_names=()), "cpu")
    with pytest.raises(
        ValueError, match="guidance.negative_label: got 0, expected none, for this model has no classes"
    ):
        plain.sampling(flat_sampling(guidance=1.0, guidance_from="label", negative_label=0))


def test_temperatures_by_name(pipe: Pipeline) -> None:
    cond = Cond(labels=torch.tensor(LABELS))
    words = {"temperature": "linear:1.5,0.5", "choice_temperature": "cosine:2,0"}
    assert torch.equal(fill(pipe, **words), expected(pipe, model_logits(pipe.transformer, cond), **words))
    assert not torch.equal(fill(pipe, **words), fill(pipe))


def test_speeds_by_name(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    cond = Cond(labels=torch.tensor(LABELS))
    prediction = model_logits(pipe.transformer, cond)
    for select, reuse in (("confidence", 2), ("halton", 3)):
        chosen = get_selector(select, axes=pipe.axes)
        found = fill(pipe, select=select, reuse=reuse, steps=9)
        assert torch.equal(found, expected(pipe, prediction.reusing(reuse), select=chosen, steps=9))
    half = accelerated(pipe.transformer, bfloat16=True)
    assert torch.equal(fill(pipe, bfloat16=True), expected(pipe, model_logits(half, cond)))
    monkeypatch.setattr(torch, "compile", lambda function, **settings: 1 / 0)
    with pytest.warns(UserWarning, match="compile: torch.compile does not work here .ZeroDivisionError: .*; going on"):
        assert torch.equal(fill(pipe, compile=True), fill(pipe))
    kept = {"top_k": 2, "guidance": 1.0}
    filtered = filtered_logits(
        guided_logits(pipe.transformer, cond, Guidance(scale=1.0), steps=5), TokenFilter(top_k=2)
    )
    assert torch.equal(fill(pipe, **kept), expected(pipe, filtered))
    with pytest.raises(ValueError, match="reuse: got 2, but OracleTransformer computes all positions or none; use 1"):
        fill(oracle_pipeline(torch.zeros(64, 1, dtype=torch.long)), reuse=2)


def test_halton_by_codebook() -> None:
    """The order for one codebook of sound after the other, along its one axis."""
    pipe = tiny_audio_pipeline()
    tokens = torch.randint(0, 8, (2, 20, 3))
    mask = torch.rand(2, 20, 3) < 0.7
    settings = Sampling(sampler="codebook", steps=3, select="halton")
    done = pipe.fill(tokens, mask, Request(seeds=[1, 2], sampling=settings, fine_sampling=settings))
    assert torch.equal(done[~mask], tokens[~mask])
    alone = pipe.fill(tokens[1:], mask[1:], Request(seeds=[2], sampling=settings, fine_sampling=settings))
    assert torch.equal(alone[0], done[1])


def test_a_critic_in_the_model_folder(tmp_path: Path, pipe: Pipeline) -> None:
    pipe.save_pretrained(tmp_path)
    read = Pipeline.from_pretrained(tmp_path, device="cpu")
    assert torch.equal(fill(read, select="critic"), fill(pipe, select="critic"))
    tiny_pipeline().save_pretrained(tmp_path)
    assert Pipeline.from_pretrained(tmp_path, device="cpu").critic is None
    other = ModernTransformer(ModernConfig(vocab_size=32, num_classes=9, axes=(8, 8), width=16, layers=1, heads=2))
    with pytest.raises(ValueError, match="the critic does not fit the generator: num_classes is 9, expected 10"):
        Pipeline(pipe.tokenizer, pipe.transformer, pipe.config, "cpu", critic=other)


def test_settings_survive_json() -> None:
    settings = flat_sampling(
        select="remdm-conf:0.5",
        temperature="linear:1.2,0.8",
        choice_temperature=3,
        guidance=1.0,
        guidance_ramp="power-cosine",
        guidance_interval=(0.25, 1.0),
        guidance_from="label",
        negative_label=4,
    )
    written = json.loads(json.dumps(dataclasses.asdict(settings)))
    assert build_config(Sampling, written, "here") == settings
    assert build_config(Sampling, {"temperature": 0.5}, "here") == Sampling(temperature=0.5)


def test_models_saved_before_settings_had_groups_load(tmp_path: Path) -> None:
    chosen = flat_sampling(steps=4, guidance=1.5, guidance_ramp="linear", top_k=5)
    plain = tiny_pipeline()
    config = dataclasses.replace(plain.config, sampling=chosen, fine_sampling=chosen)
    Pipeline(plain.tokenizer, plain.transformer, config, "cpu").save_pretrained(tmp_path)
    path = tmp_path / "pipeline.json"
    description = json.loads(path.read_text(encoding="utf-8"))
    for name in ("sampling", "fine_sampling"):
        description["config"][name] = former_keys(description["config"][name])
    assert (description["config"]["sampling"]["guidance"], description["config"]["sampling"]["top_k"]) == (1.5, 5)
    path.write_text(json.dumps(description), encoding="utf-8")
    assert Pipeline.from_pretrained(tmp_path, device="cpu").config == config


def test_runs_of_before_settings_had_groups_go_on(tmp_path: Path) -> None:
    settings = describe(sampling=Sampling(steps=3), steps=7)
    told: list[str] = []
    for saved in (settings, settings | {"sampling": former_keys(settings["sampling"])}):
        write_json(tmp_path / "run.json", saved | {"finished": True})
        assert finished_before(tmp_path, settings, "stage", told.append)
    with pytest.raises(ValueError, match=r"holds another run \(sampling\.\S*top_k"):
        finished_before(tmp_path, describe(sampling=flat_sampling(steps=3, top_k=2), steps=7), "stage", told.append)


def test_manifests_of_before_settings_had_groups(tmp_path: Path, pipe: Pipeline) -> None:
    pipe.save_pretrained(tmp_path / "model")
    words = (
        "--model",
        tmp_path / "model",
        "--labels",
        "1",
        "--sampling.guidance.scale",
        2,
        "--sampling.filter.top_k",
        3,
    )
    run("generate", *words, "--out", tmp_path / "first")
    manifest = json.loads((tmp_path / "first" / "manifest.json").read_text(encoding="utf-8"))
    manifest["sampling"] = former_keys(manifest["sampling"])
    write_json(tmp_path / "former.json", manifest)
    run("generate", "--manifest", tmp_path / "former.json", "--out", tmp_path / "again")
    made = [(tmp_path / folder / manifest["items"][0]["file"]).read_bytes() for folder in ("first", "again")]
    assert made[0] == made[1]


def test_settings_on_the_command_line() -> None:
    words = ["generate", "--sampling.select", "halton", "--sampling.temperature", "cosine:1.2,0.8"]
    words += ["--sampling.choice_temperature=2", "--sampling.guidance.interval", "[0.2,0.9]"]
    words += ["--sampling.guidance.against", "label", "--sampling.guidance.negative_label", "3"]
    words += ["--sampling.filter.top-p", "0.9", "--sampling.speed.reuse", "2"]
    parsed = build_parser().instantiate(build_parser().parse_args(words)).generate.sampling
    assert parsed == flat_sampling(
        select="halton",
        temperature="cosine:1.2,0.8",
        choice_temperature=2,
        guidance_interval=(0.2, 0.9),
        guidance_from="label",
        negative_label=3,
        top_p=0.9,
        reuse=2,
    )


def test_the_command_samples_with_them(tmp_path: Path, pipe: Pipeline) -> None:
    pipe.save_pretrained(tmp_path / "model")
    for select in ("critic", "halton"):
        out = tmp_path / select
        settings = ("--sampling.select", select, "--sampling.steps", 2, "--sampling.temperature", "linear:1,0.5")
        run("generate", "--model", tmp_path / "model", "--labels", "1", "--out", out, *settings)
        assert json.loads((out / "manifest.json").read_text(encoding="utf-8"))["sampling"]["select"] == select


def test_the_commands_of_the_docs_parse() -> None:
    text = (Path(__file__).resolve().parents[3] / "docs" / "samplers.md").read_text(encoding="utf-8")
    commands = [line for line in text.splitlines() if line.startswith("maskgen ")]
    assert len(commands) > 2
    for command in commands:
        build_parser().parse_args(shlex.split(command)[1:])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"select": "halten"}, "selector: got 'halten', expected one of 'confidence', 'random', 'halton'"),
        ({"select": "remdm-cap:2"}, r"remdm-cap: got 2.0, expected a number in \[0, 1\]"),
        (
            {"select": "critic", "sampler": "codebook"},
            "'critic' works with the sampler 'maskgit' only, got sampler 'code",
        ),
        ({"temperature": "hot"}, "temperature: got 'hot', expected a finite number of 0 or more, 'constant:A'"),
        ({"choice_temperature": "linear:1"}, "choice_temperature: got 'linear:1'"),
        (
            {"temperature": "linear:1,2", "sampler": "vampnet"},
            "temperature: got 'linear:1,2', which works with .* 'maskgit'",
        ),
        (
            {"choice_temperature": "constant:1", "sampler": "onedtok"},
            "choice_temperature: .* give a number with 'onedtok'",
        ),
        ({"guidance_interval": (0.5, 0.2)}, r"guidance.interval: got \(0.5, 0.2\), expected 0 <= first <= last <= 1"),
        ({"guidance_from": "noise"}, "guidance.against: got 'noise', expected 'unconditional', 'label' or 'self'"),
        ({"guidance_from": "label"}, "guidance.negative_label: got None with guidance.against 'label'"),
        ({"negative_label": 3}, "guidance.negative_label: got 3 with guidance.against 'unconditional'"),
        ({"guidance_drop": 0.0}, "guidance.drop: got 0.0, expected a share over 0, at most 1"),
        ({"guidance_ramp": "steep"}, "guidance.ramp: got 'steep'"),
        ({"reuse": 0}, r"speed.reuse: got 0, expected at least 1 \(every step computes all positions\)"),
        ({"reuse": 2, "sampler": "halton"}, "speed.reuse: got 2 with the sampler 'halton', works with 'maskgit' only"),
    ],
)
def test_mistakes_are_explained(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        flat_sampling(**settings)
