"""Models of text measured: captions as prompts on any number of processes, and masked tokens that are told theirs."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import maskgen.tasks.evaluation.made.making
from maskgen.tasks.conditions.text.prompts import Wording
from maskgen.tasks.data.images.folders import Folder
from maskgen.tasks.evaluation.features.base import PixelFeatures
from maskgen.tasks.evaluation.features.clip import ClipFeatures
from maskgen.tasks.evaluation.models import evaluate_model
from maskgen.tasks.evaluation.samples import Target
from maskgen.tasks.evaluation.sets.base import open_samples
from maskgen.tasks.evaluation.settings import Evaluation
from maskgen.tasks.image.generation import generate
from maskgen.tasks.pipeline import Pipeline
from tests.support import text_encoder_folder, text_pipeline
from tests.tasks.evaluation.support import ONE_AT_A_TIME, SETTINGS, clip_folder, evaluation_run, pictures, together

PIXELS = PixelFeatures(2)


@pytest.fixture(autouse=True)
def one_generator_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def locked(*args: Any, **kwargs: Any) -> Any:
        with ONE_AT_A_TIME:
            return generate(*args, **kwargs)

    monkeypatch.setattr(maskgen.tasks.evaluation.made.making, "generate", locked)


def sample_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.*")}


def test_captions_are_shared_by_any_number_of_processes(tmp_path: Path) -> None:
    real, clip = pictures(tmp_path / "real", 20, 1, side=16), clip_folder(tmp_path / "clip")
    for number, path in enumerate(sorted(real.rglob("*.png"))):
        path.with_suffix(".txt").write_text(f"{['cat', 'dog', 'house', 'tree'][number % 4]} {number}", encoding="utf-8")
    text_pipeline(text_encoder_folder(tmp_path / "encoder")).save_pretrained(tmp_path / "model")

    def measured(count: int) -> Evaluation:
        out = tmp_path / f"of-{count}"

        def work(state: Any) -> Evaluation | None:
            with ONE_AT_A_TIME:
                pipe, dual_encoder = Pipeline.from_pretrained(tmp_path / "model", device="cpu"), ClipFeatures(str(clip))
            settings = dataclasses.replace(SETTINGS, count=16, metrics=("fid", "text"))
            run = evaluation_run(out, PIXELS, settings=settings, state=state, dual_encoder=dual_encoder)
            return evaluate_model(pipe, "text", Target(real=open_samples(real, "image")), run)

        first, *others = together(count, work)
        assert others == [None] * (count - 1)
        return first

    alone, both = measured(1), measured(2)
    assert sample_files(tmp_path / "of-1" / "samples") == sample_files(tmp_path / "of-2" / "samples")
    assert alone.metrics == both.metrics
    assert alone.captions == both.captions
    assert alone.floor == both.floor


def test_masked_tokens_of_a_model_of_text(tmp_path: Path) -> None:
    real = pictures(tmp_path / "real", 8, 1, side=16)
    words = ["cat", "dog", "house", "tree"]
    for number, path in enumerate(sorted(real.rglob("*.png"))):
        path.with_suffix(".txt").write_text(words[number % 4], encoding="utf-8")
    pipe = text_pipeline(text_encoder_folder(tmp_path / "encoder"))
    settings = dataclasses.replace(SETTINGS, metrics=("masked",), ratios=(1.0,))

    def loss(**options: Any) -> tuple[float, list[str]]:
        data = Folder(root=real, size=16, test_root=real, classes=False, **options)
        found = evaluate_model(pipe, "text", Target(), evaluation_run(tmp_path / "out", settings=settings), data=data)
        assert found is not None
        return found.masked[0].loss.value, found.warnings

    told, silent = loss(captions="txt"), loss()
    assert told[0] != silent[0]
    assert told[1] == []
    assert silent[1] == ["masked tokens: the data have no captions, so the model was told the empty prompt"]
    prompts = [words[row % 4] for row in range(8)]
    images = torch.stack([open_samples(real, "image").read(row, row + 1)[0] for row in range(8)]).float() / 255
    tokens, cond = pipe.encode(images), pipe.cond([-1] * 8, Wording(prompts))
    logits = pipe.transformer(torch.full_like(tokens, pipe.transformer.vocab_size), cond)
    expected = nn.functional.cross_entropy(logits.flatten(0, 2), tokens.flatten())
    assert told[0] == pytest.approx(float(expected), rel=1e-4)
