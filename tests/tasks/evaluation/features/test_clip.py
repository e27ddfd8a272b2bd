"""CLIP's features are those of ``transformers``, and what is no CLIP is refused in one line."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from maskgen.tasks.evaluation.features.base import JointFeatures
from maskgen.tasks.evaluation.features.clip import ClipFeatures
from maskgen.tasks.evaluation.features.dual_encoder import open_dual_encoder
from maskgen.tasks.evaluation.measures import caption_scores
from maskgen.tasks.evaluation.sets.base import open_samples
from tests.support import text_encoder_folder
from tests.tasks.evaluation.support import arrays, clip_folder, evaluation_run

TEXTS = ["a red cat", "two dogs", "a small blue house on a hill", "x"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip_folder(tmp_path_factory.mktemp("clip") / "clip")


def captioned(folder: Path, count: int = 12, sides: tuple[int, ...] = (20,)) -> Path:
    """Pictures with a file of their name and the ending txt beside each."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        picture = arrays(count, 0, sides[number % len(sides)])[number]
        Image.fromarray(picture).save(folder / f"{number:03d}.png")
        (folder / f"{number:03d}.txt").write_text(f"{TEXTS[number % 4]} {number}\n", encoding="utf-8")
    return folder


def direct(clip: Path, folder: Path) -> torch.Tensor:
    """Cosines as anyone would compute them with ``transformers``, one pair at a time."""
    from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

    model, processor = CLIPModel.from_pretrained(clip).eval(), CLIPImageProcessor.from_pretrained(clip)
    tokenizer, found = AutoTokenizer.from_pretrained(clip), []
    for path in sorted(folder.glob("*.png")):
        with Image.open(path) as picture, torch.no_grad():
            pixels = processor(picture.convert("RGB"), return_tensors="pt")
            words = tokenizer(
                path.with_suffix(".txt").read_text(encoding="utf-8").strip(),
                truncation=True,
                max_length=20,
                return_tensors="pt",
            )
            out = model(**pixels, input_ids=words["input_ids"])
        found.append(float((out.image_embeds * out.text_embeds).sum()))
    return torch.tensor(found)


@pytest.mark.parametrize("sides", [(20,), (20, 13, 8)])
def test_the_score_is_that_of_transformers(sides: tuple[int, ...], clip: Path, tmp_path: Path) -> None:
    folder = captioned(tmp_path / "made", sides=sides)
    found = caption_scores(
        open_samples(folder, "image"), evaluation_run(tmp_path, dual_encoder=ClipFeatures(str(clip))), "x"
    )
    assert found is not None
    expected = direct(clip, folder)
    assert [row["cosine"] for row in found.rows] == pytest.approx(expected.tolist(), abs=1e-5)
    assert found.metrics["clip_score"].value == pytest.approx(float(expected.mean()), abs=1e-5)
    assert found.metrics["clip_score"].note == f"CLIP {clip}"
    assert found.metrics["clip_r_precision"].note.startswith("R = 12, chance 0.08333")
    assert [row["caption"] for row in found.rows[:2]] == ["a red cat 0", "two dogs 1"]
    assert found.warnings == []


def test_long_captions_are_counted(clip: Path, tmp_path: Path) -> None:
    folder = captioned(tmp_path / "made")
    (folder / "003.txt").write_text("a cat and a dog " * 20, encoding="utf-8")
    dual_encoder = open_dual_encoder(str(clip))
    assert isinstance(dual_encoder, JointFeatures)
    found = caption_scores(open_samples(folder, "image"), evaluation_run(tmp_path, dual_encoder=dual_encoder), "x")
    assert found is not None
    assert found.warnings == [f"CLIP {clip}: 1 of 12 captions are longer than its window; cut"]
    assert [row["cosine"] for row in found.rows] == pytest.approx(direct(clip, folder).tolist(), abs=1e-5)


def test_the_same_captions_everywhere(clip: Path, tmp_path: Path) -> None:
    folder = captioned(tmp_path / "made", 4)
    for path in folder.glob("*.txt"):
        path.write_text("a cat", encoding="utf-8")
    run = evaluation_run(tmp_path, dual_encoder=ClipFeatures(str(clip)))
    found = caption_scores(open_samples(folder, "image"), run, "x")
    assert found is not None
    assert found.metrics.keys() == {"clip_score"}
    assert found.warnings == [f"clip_r_precision: left out, all captions of {folder} are the same"]


def test_identity_follows_what_decides_the_numbers(clip: Path, tmp_path: Path) -> None:
    other = clip_folder(tmp_path / "clip", seed=1)
    first, second = (ClipFeatures(str(folder)).identity().rpartition(" ")[2] for folder in (clip, other))
    assert first.split("-")[-2] != second.split("-")[-2]
    same = clip_folder(tmp_path / "same")
    place = same / "preprocessor_config.json"
    place.write_text(
        json.dumps(json.loads(place.read_text("utf-8")) | {"image_mean": [0.5, 0.5, 0.5]}), encoding="utf-8"
    )
    third = ClipFeatures(str(same)).identity()
    assert third.split("-")[-2] == first.split("-")[-2]
    assert third.split("-")[-1] != first.split("-")[-1]


def test_what_is_no_clip(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="a model of type 'clip_text_model'; expected a CLIP with both towers"):
        ClipFeatures(str(text_encoder_folder(tmp_path / "text")))
    with pytest.raises(FileNotFoundError, match="is no folder with a CLIP .* give a folder that has them all"):
        open_dual_encoder(str(tmp_path / "nothing"))
    half = clip_folder(tmp_path / "half")
    (half / "preprocessor_config.json").unlink()
    with pytest.raises(FileNotFoundError, match="is no folder with a CLIP"):
        ClipFeatures(str(half))
    from safetensors.torch import load_file, save_file

    whole = load_file(half / "model.safetensors")
    kept = {name: tensor for name, tensor in whole.items() if not name.startswith("vision")}
    save_file(kept, half / "model.safetensors", metadata={"format": "pt"})
    clip_file = clip / "preprocessor_config.json"
    (half / "preprocessor_config.json").write_bytes(clip_file.read_bytes())
    with pytest.raises(ValueError, match="lacks .* weights of a CLIP, such as vision_model"):
        ClipFeatures(str(half))
