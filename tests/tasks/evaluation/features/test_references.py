"""References: computed once, found again by what they depend on; statistics of others, and for others."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import maskgen.tasks.evaluation.features.references
from maskgen.tasks.evaluation.features.base import FeatureBatch, FeatureExtractor, PixelFeatures
from maskgen.tasks.evaluation.features.extraction import Extraction, FeatureSet, extract
from maskgen.tasks.evaluation.features.references import (
    Reference,
    cached_reference,
    check_size,
    is_statistics,
    read_statistics,
    write_statistics,
)
from maskgen.tasks.evaluation.sets.base import open_samples
from maskgen.tasks.evaluation.sets.processes import Processes
from tests.tasks.evaluation.support import arrays, pictures, single, together


class Classified(FeatureExtractor):
    """Pixels of 4 x 4, and logits; resizes what it is given."""

    def __init__(self, identity: str = "classified-1") -> None:
        self.name, self.input_size, self._identity = "classified", (4, 4), identity

    def identity(self) -> str:
        return self._identity

    def embed(self, batch: torch.Tensor) -> FeatureBatch:
        assert batch.shape[1:] == (3, 4, 4)
        return FeatureBatch(batch.mean(1).flatten(1), batch.flatten(1)[:, :3])


@pytest.fixture
def extractions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the sets that features were computed of."""
    seen: list[str] = []

    def watched(samples: Any, how: Extraction, name: str) -> FeatureSet | None:
        seen.append(Path(samples.name).name)
        return extract(samples, how, name)

    monkeypatch.setattr(maskgen.tasks.evaluation.features.references, "extract", watched)
    return seen


def reference(place: Path, tmp_path: Path, extractor: FeatureExtractor | None = None, **changes: Any) -> Reference:
    settings = {"resize": "tf1-bilinear", "team": Processes(single(), tmp_path)} | changes
    how = Extraction(extractor=extractor or Classified(), **settings)
    found = cached_reference(open_samples(place, "image"), how, cache=tmp_path / "cache")
    assert found is not None
    return found


def same(first: Reference, second: Reference) -> None:
    for name in ("features", "owners", "logits"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name
    assert torch.equal(first.gaussian.covariance, second.gaussian.covariance)
    for name in ("name", "data", "extractor", "resize", "shape", "samples", "skipped"):
        assert getattr(first, name) == getattr(second, name), name


def test_computed_once(tmp_path: Path, extractions: list[str]) -> None:
    folder = pictures(tmp_path / "real", 12, 0)
    made = reference(folder, tmp_path)
    same(made, reference(folder, tmp_path))
    assert extractions == ["real"]
    assert (made.samples, made.gaussian.count, made.shape, made.resize) == (12, 12, (3, 8, 8), "tf1-bilinear")
    assert made.logits is not None


def test_another_one_is_computed_anew(tmp_path: Path, extractions: list[str]) -> None:
    """Other data, another extractor, another rule: each is another reference."""
    folder = pictures(tmp_path / "real", 12, 0)
    reference(folder, tmp_path)
    reference(folder, tmp_path, Classified("classified-2"))
    bicubic = reference(folder, tmp_path, resize="pil-bicubic")
    assert bicubic.resize == "pil-bicubic"
    (folder / "left" / "0002.png").write_bytes((folder / "left" / "0004.png").read_bytes())
    reference(folder, tmp_path)
    assert extractions == ["real"] * 4
    assert len(list((tmp_path / "cache").iterdir())) == 4
    copied = Path(shutil.copytree(folder, tmp_path / "copy"))
    assert reference(copied, tmp_path).name == str(folder)  # the same data elsewhere: nothing is computed
    assert extractions == ["real"] * 4


def test_the_rule_does_not_matter_where_nothing_is_resized(tmp_path: Path, extractions: list[str]) -> None:
    folder = pictures(tmp_path / "real", 12, 0)
    for rule in ("tf1-bilinear", "pil-bicubic"):
        assert reference(folder, tmp_path, PixelFeatures(2), resize=rule).resize == ""
    assert extractions == ["real"]


def test_several_processes(tmp_path: Path, extractions: list[str]) -> None:
    folder = pictures(tmp_path / "real", 12, 0)
    alone = reference(folder, tmp_path)

    def work(state: Any) -> Reference | None:
        team, samples = Processes(state, tmp_path / "parts"), open_samples(folder, "image")
        how = Extraction(extractor=Classified(), resize="tf1-bilinear", team=team, batch_size=2)
        found = [cached_reference(samples, how, cache=tmp_path / "other", name=name) for name in ("first", "again")]
        team.close()
        return found[1]

    first, *others = together(3, work)
    same(first, alone)
    assert others == [None, None]
    assert len(extractions) == 1 + 3  # all three compute their share once; then nobody does


def test_a_damaged_file(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "real", 12, 0)
    reference(folder, tmp_path)
    (path,) = (tmp_path / "cache").iterdir()
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"truncated or no reference of maskgen .*; delete it"):
        reference(folder, tmp_path)


def test_statistics_go_out_and_come_back(tmp_path: Path) -> None:
    made = reference(pictures(tmp_path / "real", 12, 0), tmp_path)
    write_statistics(tmp_path / "real.npz", made)
    with np.load(tmp_path / "real.npz", allow_pickle=False) as found:  # as pytorch-fid and ADM read them
        np.testing.assert_array_equal(found["mu"], made.gaussian.mean.numpy())
        np.testing.assert_array_equal(found["sigma"], made.gaussian.covariance.numpy())
    assert is_statistics(tmp_path / "real.npz")
    again = read_statistics(tmp_path / "real.npz", Classified(), "tf1-bilinear")
    assert torch.equal(again.gaussian.covariance, made.gaussian.covariance)
    assert (again.gaussian.count, again.shape, again.name) == (12, (3, 8, 8), made.name)
    assert again.features is None
    with pytest.raises(
        ValueError, match="statistics made by classified-1, but the samples are measured with classified-2"
    ):
        read_statistics(tmp_path / "real.npz", Classified("classified-2"), "tf1-bilinear")
    with pytest.raises(ValueError, match="images resized by tf1-bilinear, but the protocol resizes by pil-bicubic"):
        read_statistics(tmp_path / "real.npz", Classified(), "pil-bicubic")


def test_statistics_of_others(tmp_path: Path) -> None:
    """They name no extractor, so they are taken for Inception's."""
    np.savez(tmp_path / "adm.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    inception = Classified("inception-v3-2015-12-05-0123")
    found = read_statistics(tmp_path / "adm.npz", inception, "tf1-bilinear")
    assert (found.gaussian.width, found.gaussian.count, found.shape) == (2048, 0, ())
    with pytest.raises(
        ValueError, match=r"made by inception-v3-2015-12-05-\.\.\. of 2048 features, but .* with classified-1"
    ):
        read_statistics(tmp_path / "adm.npz", Classified(), "tf1-bilinear")
    np.savez(tmp_path / "small.npz", mu=np.zeros(64), sigma=np.eye(64))
    with pytest.raises(ValueError, match="of 64 features"):
        read_statistics(tmp_path / "small.npz", inception, "tf1-bilinear")
    np.savez(tmp_path / "nan.npz", mu=np.zeros(2048), sigma=np.full((2048, 2048), np.nan))
    with pytest.raises(ValueError, match=r"nan\.npz: got statistics that are not finite"):
        read_statistics(tmp_path / "nan.npz", inception, "tf1-bilinear")
    np.savez(tmp_path / "wrong.npz", mu=np.zeros(3), sigma=np.eye(2))
    with pytest.raises(ValueError, match=r"got no statistics, expected mu \[F\] and sigma \[F, F\]"):
        read_statistics(tmp_path / "wrong.npz", Classified(), "tf1-bilinear")
    np.savez(tmp_path / "batch.npz", arrays(3, 0))
    assert not is_statistics(tmp_path / "batch.npz")
    assert not is_statistics(tmp_path)


def test_another_size_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"made: samples of size \[8, 8\], but the reference real has \[16, 16\]; resize"
    ):
        check_size((3, 8, 8), "made", (3, 16, 16), "real")
    check_size((), "made", (3, 16, 16), "real")
    check_size((3, 8, 8), "made", (), "real")
