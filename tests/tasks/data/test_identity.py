"""The same as before? Whatever decides a result is recognised, and what differs is said with its old and new value."""

import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from maskgen.checkpoint import fingerprint, load_module, read_json, save_module, write_json
from maskgen.data import Source
from maskgen.objectives.masked import MaskedModeling
from maskgen.tasks.commands.tokenize import tokenize_data
from maskgen.tasks.data import Folder, ShardImages, SoundFolder, TokenShards
from maskgen.tasks.data.identity import Compare, describe, differences, refuse_others, short_hash
from maskgen.tasks.data.tokens.cache import cached_tokens, read_tokens, write_tokens
from maskgen.tasks.data.tokens.shards import UNDECISIVE, shard_stamp
from maskgen.tasks.media.audio.files import save_sound
from maskgen.tokenizers.image.toy import ToyTokenizer, ToyTokenizerConfig
from maskgen.tokenizers.image.vqgan import VQGAN
from maskgen.tokenizers.training.reconstruction import ReconstructionSettings
from maskgen.training.run import Interrupted
from tests.tasks.training.test_image import interrupt_at, model, settings, stage1, stage2, toy

TOY = ToyTokenizer(ToyTokenizerConfig(levels=4, patch=2))


def paint(path: Path, grey: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (grey,) * 3).save(path)


def fill(root: Path, grey: int = 20) -> Path:
    for name in "abcdef":
        paint(root / "data" / f"{name}.png", grey + ord(name))
    label(root)
    return root


def label(root: Path, flip: int = 0) -> None:
    (root / "labels.csv").write_text("".join(f"{name}.png,{(n + flip) % 3}\n" for n, name in enumerate("abcdef")))


def data(root: Path, size: int = 8, compare: Compare = "auto") -> Folder:
    how = {"flip": False, "crop": "centre", "compare": compare}
    return Folder(root / "data", size, label_file=root / "labels.csv", **how)


def classes(root: Path, grey: int = 20, names: tuple[str, ...] = ("cat", "dog")) -> Folder:
    for name in names:
        for number in range(3):
            paint(root / name / f"{number}.png", grey)
    return Folder(root, 8)


def replace(path: Path, grey: int) -> None:
    """Another picture of the same size in bytes and with the same time: only its content tells."""
    before = path.stat()
    paint(path, grey)
    assert path.stat().st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "relabelled": (lambda root: label(root, 1), "labels: 2 of class 0, 2 of class 1, 2 of class 2 ("),
    "replaced, same size and time": (lambda root: replace(root / "data" / "d.png", 7), "content: "),
    "renamed": (lambda root: (root / "data" / "b.png").rename(root / "data" / "bb.png"), "names: 6 files ("),
    "one more": (lambda root: paint(root / "data" / "g.png", 9), "names: 6 files ("),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changed_is_said(change: str, tmp_path: Path) -> None:
    before = describe(data=data(fill(tmp_path)))
    act, told = CHANGES[change]
    act(tmp_path)
    if change in ("renamed", "one more"):  # with its line in the labels
        names = sorted(path.name for path in (tmp_path / "data").iterdir())
        (tmp_path / "labels.csv").write_text("".join(f"{name},{n % 3}\n" for n, name in enumerate(names)))
    found = differences(before, describe(data=data(tmp_path)))
    assert any(line.startswith(f"data.files.train.{told}") for line in found), found
    assert all(" before, " in line and line.endswith(" now") for line in found)


def test_copies_are_the_same_where_contents_are_compared(tmp_path: Path) -> None:
    """A copy has other times: contents decide where they are read, and times where they are not."""
    fill(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copy)
    for path in (tmp_path / "b" / "data").iterdir():
        os.utime(path, (1.7e9, 1.7e9))
    for compare, same in (("auto", True), ("content", True), ("times", False)):
        old, new = (describe(data=data(tmp_path / name, compare=compare)) for name in "ab")  # type: ignore[arg-type]
        found = differences(old, new)
        assert (found == []) is same, found
    with pytest.raises(ValueError, match=r"x: holds another run \(data\.files\.train\.times: .*; copy files with"):
        refuse_others(Path("x"), old, new, "another run", "give --again")
    assert found[0].startswith("data.files.train.times: newest ")
    assert "of 2023-11-14 22:13:20 UTC (" in found[0]


def test_settings_of_the_data(tmp_path: Path) -> None:
    old = describe(data=data(fill(tmp_path)))
    assert "data.size[0]: 8 before, 16 now" in differences(old, describe(data=data(tmp_path, 16)))
    first = describe(data=classes(tmp_path / "x"))
    (tmp_path / "x" / "dog").rename(tmp_path / "x" / "wolf")
    found = differences(first, describe(data=Folder(tmp_path / "x", 8)))
    assert found[0] == "data.class_names[1]: dog before, wolf now"


def test_sounds(tmp_path: Path) -> None:
    for name in "ab":
        save_sound(torch.rand(1, 4000) - 0.5, tmp_path / "s" / name / "1.wav", 8000)
    old = describe(data=SoundFolder(tmp_path / "s", 8000, 0.25, labels=True, held_out=0.0))
    shutil.make_archive(str(tmp_path / "s1"), "zip", tmp_path / "s")
    zipped = describe(data=SoundFolder(tmp_path / "s1.zip", 8000, 0.25, labels=True, held_out=0.0))
    save_sound(torch.rand(1, 4000) - 0.5, tmp_path / "s" / "a" / "1.wav", 8000)
    found = differences(old, describe(data=SoundFolder(tmp_path / "s", 8000, 0.25, labels=True, held_out=0.0)))
    assert [line.split(":")[0] for line in found] == ["data.files.train.times", "data.files.train.content"]
    assert "newest a/1.wav of " in found[0]
    shutil.make_archive(str(tmp_path / "s1"), "zip", tmp_path / "s")
    again = describe(data=SoundFolder(tmp_path / "s1.zip", 8000, 0.25, labels=True, held_out=0.0))
    assert [line.split(":")[0] for line in differences(zipped, again)] == ["data.files.train.content"]


@pytest.mark.parametrize("change", ["relabelled", "replaced, same size and time"])
def test_kept_tokens_are_those_of_the_data(change: str, tmp_path: Path) -> None:
    """Stopped before its first checkpoint; with the data corrected, the same command makes the tokens anew and says why."""
    path, said = tmp_path / "tokens.safetensors", list[str]()
    cached_tokens(data(fill(tmp_path)).train(), TOY, path, key="images", say=said.append)
    kept = path.read_bytes()
    cached_tokens(data(tmp_path).train(), TOY, path, key="images", say=said.append)
    assert (path.read_bytes(), said) == (kept, [])
    act, told = CHANGES[change]
    act(tmp_path)
    now = cached_tokens(data(tmp_path).train(), TOY, path, key="images", say=said.append)
    expected = data(tmp_path).train().batch(range(6), range(6))
    assert torch.equal(now.tensors["labels"], expected["labels"])
    assert torch.equal(now.tensors["tokens"], TOY.encode(expected["images"]))
    assert len(said) == 1
    assert "tokens are made anew, the kept ones are of other data or settings (" in said[0]
    assert f"source.{told}" in said[0]


def test_tokens_of_before_are_made_anew(tmp_path: Path) -> None:
    """What an earlier version wrote does not say which labels its tokens have."""
    path, said = tmp_path / "tokens.safetensors", list[str]()
    source = Blind(data(fill(tmp_path)).train())
    cached_tokens(source, TOY, path, key="images", say=said.append)
    assert set(load_file(path)) == {"tokens", "labels"}
    cached_tokens(source, TOY, path, key="images", say=said.append)
    assert said == []
    cached_tokens(source.source, TOY, path, key="images", say=said.append)
    assert "source: nothing before, " in said[0]


class Blind:
    """A source that cannot say what it is made of."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def batch(self, indices: list[int], seeds: list[int]) -> dict[str, torch.Tensor]:
        return self.source.batch(indices, seeds)


def test_a_run_goes_on_with_its_own_labels_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, chosen = toy(tmp_path / "toy"), {"transformer": model(vocab_size=4), "settings": settings(steps=6)}
    fill(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(MaskedModeling, "loss", interrupt_at(2, MaskedModeling.loss))
        with pytest.raises(Interrupted):
            stage2(tokenizer, tmp_path / "run", data=data(tmp_path), **chosen)
    label(tmp_path, 1)
    message = (
        r"run/transformer: holds another run \(data\.files\.train\.labels: 2 of .* now\); give --again to train anew"
    )
    with pytest.raises(ValueError, match=message):
        stage2(tokenizer, tmp_path / "run", data=data(tmp_path), **chosen)
    stage2(tokenizer, tmp_path / "run", data=data(tmp_path), again=True, **chosen)
    stage2(tokenizer, tmp_path / "fresh", data=data(tmp_path), **chosen)
    again, fresh = ((tmp_path / name / "transformer/model.safetensors").read_bytes() for name in ("run", "fresh"))
    assert again == fresh
    assert (tmp_path / "run/transformer/earlier-1/checkpoints").is_dir()


def test_a_finished_run_of_other_data(tmp_path: Path) -> None:
    run, said = tmp_path / "run", list[str]()
    stage1(run, data=classes(tmp_path / "v1", 30))
    first = (run / "model.safetensors").read_bytes()
    shutil.copytree(tmp_path / "v1", tmp_path / "moved", copy_function=shutil.copy)
    stage1(run, data=Folder(tmp_path / "moved", 8), say=said.append)
    assert said == [f"tokenizer: finished before, reused from {run}"]  # where data lie does not matter
    with pytest.raises(
        ValueError, match=r"holds another run \(data\.files\.train\.\w+: .*or name another output folder"
    ):
        stage1(run, data=classes(tmp_path / "v2", 220))
    assert (run / "model.safetensors").read_bytes() == first
    with pytest.raises(ValueError, match="image_size: got 256, but the images are 8 x 8"):
        stage1(run, data=classes(tmp_path / "v2", 220), again=True, loss=ReconstructionSettings(perceptual=None))
    assert (run / "model.safetensors").read_bytes() == first  # what is refused sets nothing aside
    stage1(run, data=classes(tmp_path / "v2", 220), again=True, say=said.append)
    assert said[1:] == [f"tokenizer: the run of before is in {run / 'earlier-1'}"]
    assert fingerprint(load_module(run / "earlier-1", VQGAN)) != fingerprint(load_module(run, VQGAN))
    assert (run / "earlier-1" / "model.safetensors").read_bytes() == first != (run / "model.safetensors").read_bytes()


def test_a_run_grows(tmp_path: Path) -> None:
    """More steps go on from the last checkpoint; how often something is written does not matter."""
    said, pictures = list[str](), classes(tmp_path / "data")
    stage1(tmp_path / "run", data=pictures)
    stage1(tmp_path / "run", data=pictures, settings=settings(log_every=1, keep_last=1), say=said.append)
    stage1(tmp_path / "run", data=pictures, settings=settings(steps=7), say=said.append)
    stage1(tmp_path / "run", data=pictures, settings=settings(steps=7), say=said.append)
    reused = f"tokenizer: finished before, reused from {tmp_path / 'run'}"
    assert said == [reused, "tokenizer: goes on from 4 to 7 steps, its learning rate as in a run of 7", reused]
    lines = (tmp_path / "run" / "log.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines if "lr" in line] == [2, 4, 6, 7]
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(ValueError, match="ended after 7 steps and has no checkpoint to go on from to 9; give --again"):
        stage1(tmp_path / "run", data=pictures, settings=settings(steps=9))


def test_a_run_of_before_is_taken_for_the_same(tmp_path: Path) -> None:
    """An earlier version did not note the files: the run is read, and that is said."""
    said, pictures = list[str](), classes(tmp_path / "data")
    stage1(tmp_path / "run", data=pictures)
    found = read_json(tmp_path / "run" / "run.json")
    del found["data"]["files"]
    write_json(tmp_path / "run" / "run.json", found)
    stage1(tmp_path / "run", data=pictures, say=said.append)
    assert said[0].endswith("does not say which files it was trained on (an earlier maskgen); taken for these")


def test_token_shards(tmp_path: Path) -> None:
    out, said = tmp_path / "tokens", list[str]()
    save_module(TOY, tmp_path / "toy")
    fill(tmp_path)

    def make(again: bool = False) -> None:
        tokenize_data(tokenizer=tmp_path / "toy", data=data(tmp_path), out=out, again=again, say=said.append)

    make()
    found = read_json(out / "tokens.json")
    old = {name: value for name, value in found.items() if name != "made"}  # as an earlier version wrote it
    old["data"] = {name: value for name, value in old["data"].items() if name != "files"}
    run = stage2(tmp_path / "toy", tmp_path / "run", data=TokenShards(out), transformer=model(vocab_size=4))
    label(tmp_path, 1)
    with pytest.raises(ValueError, match=r"tokens: holds other tokens \(data\.files\.train\.labels: .*give --again to"):
        make()
    make(again=True)
    shards = TokenShards(out)
    assert shards.train().batch(range(6), range(6))["labels"].tolist() == [1, 2, 0, 1, 2, 0]
    with pytest.raises(ValueError, match=r"holds another run \(data\.files\.train\.made: \w+ before, \w+ now"):
        stage2(tmp_path / "toy", run, data=shards, transformer=model(vocab_size=4))
    write_json(out / "tokens.json", found)  # whose shard was of the other labels
    with pytest.raises(ValueError, match=r"made of other data or settings \(\w+\) than tokens\.json tells \(\w+\)"):
        TokenShards(out).train().batch([0], [0])
    # As an earlier version wrote all of it: taken for the same data, and its shards are kept.
    (path,) = out.glob("*.safetensors")
    stamp = shard_stamp(old["tokenizer"], short_hash({key: old[key] for key in old if key not in UNDECISIVE}))
    tensors, _ = read_tokens(path)
    for metadata, missing in ((stamp, 0), (shard_stamp(old["tokenizer"], "others"), 1)):
        write_json(out / "tokens.json", old)
        write_tokens(tensors, path, vocab_size=4, metadata=metadata)
        make()
        assert said[-2] == f"tokenize: {missing} of 1 shards to make, 1 view(s) of 6 examples"
        assert len(TokenShards(out).train().batch(range(6), range(6))["labels"]) == 6


def shard(path: Path, grey: int, time: float) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for number in range(4):
            stream = io.BytesIO()
            Image.new("RGB", (8, 8), (grey,) * 3).save(stream, "PNG")
            for name, content in ((f"{number}.png", stream.getvalue()), (f"{number}.cls", str(number % 2).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    os.utime(path, (time, time))


def test_a_packed_shard_that_was_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def grey(shards: str) -> int:
        pictures = ShardImages(shards, num_classes=2, size=8, index=tmp_path / "cache").train()
        return round(float(pictures.batch(range(4), range(4))["images"].mean()) * 255)

    place = tmp_path / "train.tar.gz"
    for value in (50, 200):
        shard(place, value, 1e9 + value)
        assert grey(str(place)) == value
    for project, value in (("a", 10), ("b", 240)):
        (tmp_path / project).mkdir()
        shard(tmp_path / project / "data.tar.gz", value, 1e9)
        monkeypatch.chdir(tmp_path / project)
        assert grey("data.tar.gz") == value
    before = ShardImages(str(place), size=8, index=tmp_path / "cache").train()
    shard(place, 90, 2e9)
    for kept in (tmp_path / "cache").glob("*.tar"):
        kept.unlink()
    with pytest.raises(ValueError, match=r"train\.tar\.gz: has changed since this run looked at it; start the command"):
        before.batch([0], [0])
