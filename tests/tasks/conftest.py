"""A tiny saved model, and working directories with pictures or with settings of both training stages."""

from pathlib import Path

import pytest

from tests.support import make_tiny_pipeline
from tests.tasks.commandline import TOKENIZER, TRANSFORMER, mask, picture, write_yaml


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "model"
    make_tiny_pipeline(folder)
    return folder


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a picture and a mask."""
    monkeypatch.chdir(tmp_path)
    picture().save("image.png")
    mask().save("mask.png")
    return tmp_path


@pytest.fixture
def configs(place: Path) -> Path:
    """A working directory with six small images in two classes and the settings of both stages."""
    for index in range(6):
        path = place / "data" / ("cat" if index % 2 else "dog") / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(10, 8 + index).save(path)
    write_yaml(TOKENIZER, place / "tokenizer.yaml")
    write_yaml(TRANSFORMER, place / "transformer.yaml")
    return place
