"""Models go to the Hugging Face Hub and come back whole; the Hub is played by a folder."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.utils import filter_repo_objects

from maskgen.tasks.pipeline import Pipeline
from tests.support import tiny_pipeline
from tests.tasks.pipeline.test_folders import filled


def test_pushing_to_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, Any]] = []

    class Api:
        def create_repo(self, repository: str, **options: Any) -> None:
            calls.append((repository, options))

        def upload_folder(self, *, repo_id: str, folder_path: str) -> str:
            found = sorted(str(p.relative_to(folder_path)) for p in Path(folder_path).rglob("*") if p.is_file())
            calls.append((repo_id, found))
            assert torch.equal(filled(Pipeline.from_pretrained(folder_path, device="cpu")), filled(tiny_pipeline()))
            return f"https://huggingface.co/{repo_id}/commit/1"

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    address = tiny_pipeline().push_to_hub("someone/digits", private=True)
    assert address == "https://huggingface.co/someone/digits/commit/1"
    parts = [f"{part}/{name}" for part in ("tokenizer", "transformer") for name in ("config.json", "model.safetensors")]
    assert calls == [
        ("someone/digits", {"private": True, "exist_ok": True}),
        ("someone/digits", ["pipeline.json", *parts]),
    ]


def test_every_part_comes_back_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is uploaded is what is fetched: the patterns must not leave out a part."""
    pipe = tiny_pipeline()
    critic = tiny_pipeline(seed=1).transformer
    repository, fetched = tmp_path / "repository", tmp_path / "fetched"
    Pipeline(pipe.tokenizer, pipe.transformer, pipe.config, "cpu", critic=critic).save_pretrained(repository)
    (repository / "samples").mkdir()
    (repository / "samples" / "big.bin").write_bytes(b"not part of the model")

    def snapshot(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        held = [str(path.relative_to(repository)) for path in repository.rglob("*") if path.is_file()]
        for file in filter_repo_objects(held, allow_patterns=allow_patterns):
            (fetched / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(repository / file, fetched / file)
        return str(fetched)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    found = Pipeline.from_pretrained("someone/digits", device="cpu")
    assert found.critic is not None
    assert all(torch.equal(a, b) for a, b in zip(found.critic.parameters(), critic.parameters(), strict=True))
    assert not (fetched / "samples").exists()
