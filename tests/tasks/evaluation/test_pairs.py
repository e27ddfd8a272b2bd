"""Results beside the truth: what can be read at all, numbers of several processes, clips that a task completed."""

from pathlib import Path
from typing import Any

import pytest
import torch

from maskgen.tasks.data.broken import Broken
from maskgen.tasks.evaluation.metrics.reconstruction import PixelScores
from maskgen.tasks.evaluation.pairs import ClipScores, join_scores, readable
from maskgen.tasks.evaluation.sets.base import SampleSet, open_samples
from maskgen.tasks.evaluation.sets.processes import Processes
from maskgen.tasks.evaluation.settings import EvaluationSettings
from tests.tasks.evaluation.support import evaluation_run, pictures, tensors, together


def looked_through(place: Path, out: Path, count: int, broken: float) -> list[tuple[SampleSet, dict[int, str]]]:
    def work(state: Any) -> tuple[SampleSet, dict[int, str]]:
        settings = EvaluationSettings(batch_size=2, broken=broken)
        run = evaluation_run(out, settings=settings, state=state)
        found = readable(open_samples(place, "image"), run, "x")
        run.team.close()
        return found

    return together(count, work)


@pytest.mark.parametrize("count", [1, 3])
def test_what_can_be_read(count: int, tmp_path: Path) -> None:
    """All processes leave out the same samples."""
    place = pictures(tmp_path / "set", 9, 0)
    whole = looked_through(place, tmp_path, count, 0.0)
    assert [(len(samples), skipped) for samples, skipped in whole] == [(9, {})] * count
    for name in ("left/0002.png", "right/0005.png"):
        (place / name).write_bytes(b"x")
    for samples, skipped in looked_through(place, tmp_path, count, 0.3):
        assert list(skipped) == [1, 7]
        assert len(samples) == 7
        assert not any(isinstance(sample, Broken) for sample in samples.read(0, 7))
        assert samples.labels == [0] * 4 + [1] * 3
    with pytest.raises(ValueError, match=r"set: 2 of 9 samples cannot be read, expected at most a share of 0.2"):
        looked_through(place, tmp_path, count, 0.2)
    pictures(place / "right" / "z", 2, 0, side=12)
    with pytest.raises(ValueError, match=r"different sizes: \[8, 8\] \(number 0\) and \[12, 12\] \(number 9\)"):
        looked_through(place, tmp_path, count, 0.3)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_numbers_do_not_depend_on_the_processes(count: int, tmp_path: Path) -> None:
    first, second = tensors(10, 0), tensors(10, 1)
    alone = PixelScores(("psnr",))
    alone.update(first, second)

    def work(state: Any) -> dict[str, Any]:
        team, scores, order = Processes(state, tmp_path / "parts"), PixelScores(("psnr",)), []
        for block in team.blocks(10, 3):
            scores.update(first[block.start : block.stop], second[block.start : block.stop])
            order += block
        found = join_scores(scores, order, team=team, name="x", draws=20)
        assert team.main == bool(found)
        team.close()
        return found

    found, *others = together(count, work)
    assert found == alone.metrics(draws=20)
    assert others == [{}] * (count - 1)


def test_clips_that_a_task_completed() -> None:
    """What was given counts in the numbers of whole clips and not in the others."""
    truth = torch.zeros(2, 3, 4, 6, 6)
    made, padded, rebuilt = truth + 0.2, truth + 0.4, truth + 0.1
    made[:, :, :2] = truth[:, :, :2]
    given = torch.zeros(1, 1, 4, 6, 6, dtype=torch.bool)
    given[:, :, :2] = True
    given[:, :, 2, :3] = True
    scores = ClipScores(PixelScores(("psnr",)))
    scores.update(truth, made, padded, rebuilt, given)
    found = scores.metrics(draws=10)
    assert found["psnr"].value == pytest.approx(13.9794, abs=1e-3)  # of the frames that differ: equal ones are infinite
    assert found["psnr_new"].value == pytest.approx(13.9794, abs=1e-3)
    assert found["psnr_new_padding"].value == pytest.approx(7.9588, abs=1e-3)
    assert found["psnr_new_tokenizer"].value == pytest.approx(19.8, abs=0.2)  # 0.1 is no 8-bit value
    assert found["psnr_new"].count == 2
    other = ClipScores(PixelScores(("psnr",)))
    other.load(scores.values())
    assert other.metrics(draws=10) == found
    without = ClipScores(PixelScores(("ssim",)))
    without.update(truth.repeat(1, 1, 1, 2, 2), truth.repeat(1, 1, 1, 2, 2), padded, rebuilt, given)
    assert without.metrics(draws=1).keys() == {"ssim"}
