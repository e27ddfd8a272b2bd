"""Clips as tokens of several tasks: the same as encoding each padded clip by itself, drawn by seed, kept on disk.

Shapes: B batch, N tokens, K codebooks.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from maskgen.conditioning import NO_LABEL
from maskgen.objectives.multitask import draw_tasks
from maskgen.sampling.commit import Prompt
from maskgen.tasks.conditions.trained import named_task
from maskgen.tasks.conditions.video import TokenCells
from maskgen.tasks.training.video_tokens import CommitSource, TaskTokens, commit_tokens
from tests.tasks.video.toys import LENGTH, SIDE, Boxes, tokenizer

TEN = dict.fromkeys(("FP3", "FI", "OPC", "OPV", "OPH", "OPD", "IPC", "IPD", "CG", "CFP"), 1.0)
N = LENGTH // 2 * (SIDE // 2) ** 2


class Shaded(Boxes):
    """Augmented: the seed says how dark a clip is."""

    def batch(self, indices: Any, seeds: Any) -> Any:
        batch = self._source.batch(indices, seeds)
        shade = torch.tensor([seed % 5 / 4 for seed in seeds])
        return batch | {"video": batch["video"] * shade.view(-1, 1, 1, 1, 1)}

    def __len__(self) -> int:
        return self.count

    def train(self) -> Any:
        return self


@pytest.mark.parametrize("alone", [False, True])
def test_batches_are_what_the_tasks_say(alone: bool) -> None:
    codec, data = tokenizer(alone), Boxes(6, frames=LENGTH + alone)
    source = commit_tokens(data.train(), codec, TEN, views=8, seed=100)
    assert len(source) == 48
    indices = [47, 0, 3, 3, *range(8, 40)]
    batch = source.batch(indices, [0] * len(indices))
    clips, labels = (
        data._source.batch([index % 6 for index in indices], indices)[name] for name in ("video", "labels")
    )
    assert batch["tokens"].dtype == batch["condition"].dtype == torch.long
    assert torch.equal(batch["tokens"], codec.encode(clips))
    cells = TokenCells.of(codec, clips.shape)
    drawn = [list(TEN)[number] for number in draw_tasks(list(TEN.values()), [100 + index for index in indices])]
    assert set(drawn) == set(TEN)
    for row, name in enumerate(drawn):
        task = named_task(name)
        condition = task.condition(clips[row : row + 1], cells)
        known = condition.tokens.flatten()[:, None]
        assert torch.equal(batch["given"][row], known), name
        expected = codec.encode(condition.clip)[0]
        assert torch.equal(batch["condition"][row][known], expected[known]), name
        assert batch["task"][row] == task.prompt(), name
        assert batch["labels"][row] == (labels[row] if task.class_conditional else NO_LABEL), name


def test_an_example_is_its_index() -> None:
    source = commit_tokens(Boxes().train(), tokenizer(), TEN)
    whole = source.batch([0, 1, 2, 3], [7, 8, 9, 10])
    part = source.batch([2, 1], [0, 0])
    for name, tensor in whole.items():
        assert torch.equal(part[name], tensor[[2, 1]])


def test_weights() -> None:
    source = commit_tokens(Boxes(40).train(), tokenizer(), {"FP": 3.0, "OPC": 1.0}, views=25)
    batch = source.batch(range(1000), [0] * 1000)
    assert abs((batch["task"] == Prompt.FRAME_PREDICTION).float().mean() - 0.75) < 0.05
    assert "labels" not in batch, "no task asks for the class"


def test_inpaintings_prompt() -> None:
    for own in (False, True):
        source = commit_tokens(Boxes().train(), tokenizer(), {"IPC": 1.0}, inpainting_prompt=own)
        assert source.batch([0], [0])["task"].tolist() == [Prompt.INPAINTING if own else Prompt.OUTPAINTING]


def test_generation_without_classes() -> None:
    source = commit_tokens(Boxes(labels=False).train(), tokenizer(), {"CG": 1.0})
    batch = source.batch([0, 1], [0, 1])
    assert batch.keys() == {"tokens", "condition", "given", "task"}
    assert not batch["given"].any()
    with pytest.raises(ValueError, match="got class-conditional tasks, but no labels"):
        commit_tokens(Boxes(labels=False).train(), tokenizer(), {"CFP": 1.0})


def test_views() -> None:
    data = Shaded()
    source = commit_tokens(data.train(), tokenizer(), {"FP": 1.0, "CG": 1.0}, views=2, seed=3)
    assert len(source) == 8
    again = data.batch([1], [3 + 4 + 1])["video"]
    assert torch.equal(source.batch([5], [0])["tokens"], tokenizer().encode(again))
    with pytest.raises(ValueError, match="views: got 0, expected at least 1"):
        commit_tokens(data.train(), tokenizer(), {"FP": 1.0}, views=0)


def test_they_are_kept_small() -> None:
    source = commit_tokens(Boxes().train(), tokenizer(), TEN)
    assert source.tokens.dtype == torch.int16
    assert source.conditions.dtype == torch.int16
    assert source.conditions.shape == source.tokens.shape == (4, N, 1)


def test_tokens_on_disk(tmp_path: Path) -> None:
    path, data = tmp_path / "tokens" / "train.safetensors", Boxes()
    plain = commit_tokens(data.train(), tokenizer(), TEN)
    before = data.asked
    made = commit_tokens(data.train(), tokenizer(), TEN, path=path)
    assert data.asked > before + 4
    before, written = data.asked, path.read_bytes()
    found = commit_tokens(data.train(), tokenizer(), TEN, path=path)
    assert data.asked <= before + 4, "only what tells that they are the same clips, and their size"
    assert path.read_bytes() == written
    for other in (made, found):
        for index, seed in enumerate(range(4)):
            a, b = plain.batch([index], [seed]), other.batch([index], [seed])
            assert all(torch.equal(a[name], b[name]) for name in a)
    # Prompts are no part of the tokens; everything else makes them anew.
    commit_tokens(data.train(), tokenizer(), TEN, path=path, inpainting_prompt=True)
    assert path.read_bytes() == written
    for changes in ({"views": 2}, {"seed": 5}, {"tasks": {**TEN, "FI": 2.0}}):
        commit_tokens(data.train(), tokenizer(), **{"tasks": TEN, "path": path, **changes})  # type: ignore[arg-type]
        assert path.read_bytes() != written
    shifted = Boxes(shift=50)
    found = commit_tokens(shifted.train(), tokenizer(), TEN, path=path)
    assert torch.equal(found.tokens, commit_tokens(shifted.train(), tokenizer(), TEN).tokens)
    path.write_bytes(written[:30])
    with pytest.raises(ValueError, match=r"train\.safetensors: truncated or not a file of tokens .*; delete it"):
        commit_tokens(data.train(), tokenizer(), TEN, path=path)


def test_refusals() -> None:
    tokens = torch.zeros(3, 4, 1, dtype=torch.int16)
    chosen = torch.zeros(3, dtype=torch.long)
    task = TaskTokens(prompt=1, positions=torch.tensor([0]), class_conditional=False)
    with pytest.raises(ValueError, match=r"got 1 tasks and lengths \[2, 3\], expected one length"):
        CommitSource(tokens, tokens[:2], chosen, [task])
    with pytest.raises(ValueError, match="got 0 tasks"):
        CommitSource(tokens, tokens, chosen, [])
    with pytest.raises(ValueError, match="expected one of FP"):
        commit_tokens(Boxes().train(), tokenizer(), {"XY": 1.0})
    with pytest.raises(ValueError, match="got 8 frames, 4 token frames; expected more than the 9 that are given"):
        commit_tokens(Boxes().train(), tokenizer(), {"FP9": 1.0})
