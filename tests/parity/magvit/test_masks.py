"""COMMIT's training masks, inputs, targets and weights against the official code, with its recorded random numbers.

Official grids are [B, t, h, w]; sequences [B, S] begin with a task prompt and a class. Shapes: B batch, N tokens.
"""

import pytest
import torch
from torch import Tensor

from maskgen.objectives.commit_masking import (
    CommitExample,
    ConditionMode,
    LossOn,
    block_scores,
    commit_counts,
    commit_example,
)
from maskgen.sampling.commit import CommitInputs, Prompt
from maskgen.sampling.selectors.ranking import mask_lowest
from maskgen.schedules import get_schedule
from tests.parity.support import check_count, check_kinds, files, load, metadata

TRACES, CASES, SETTINGS = (files("magvit", f"{name}.safetensors")[0] for name in ("mask_traces", "mask_cases", "tasks"))
MODES: dict[str | None, ConditionMode] = {
    "cond->input": "commit",
    "input->input": "keep",
    "cond->cond": "replace",
    None: "ignore",
}
LOSSES: dict[str | None, LossOn] = {"mask+refine+recons": "all", "mask+refine": "masked", None: "all"}
TASKS = sorted({name.split("/")[0] for name in load(TRACES) if "/" in name})
NAMED = [name for name in metadata(CASES) if name.startswith("case")]


class Recorded:
    """One recording with our shapes: grids as [B, N, 1], the condition's region spread over the grid."""

    def __init__(self, stored: dict[str, Tensor], name: str) -> None:
        self.stored, self.name = stored, name
        self.axes = tuple(stored["inputs"].shape[1:])
        self.tokens = self.flat(stored["inputs"]).long()
        region = stored.get(f"{name}/cond_mask", stored.get("cond_mask", torch.zeros(1, 1, 1, 1)))
        self.known = self.flat(region.bool().expand(stored["inputs"].shape))
        self.condition = self.flat(stored["cond_inputs"]).long()

    def flat(self, grid: Tensor) -> Tensor:
        return grid.reshape(len(grid), -1, 1)

    def grid(self, name: str) -> Tensor:
        """A recorded grid, or the grid of a recorded sequence with its two prefix positions."""
        found = self.stored[f"{self.name}/{name}"]
        return self.flat(found[:, 2:] if found.ndim == 2 else found)

    def prefix(self, name: str) -> Tensor:
        return self.stored[f"{self.name}/{name}"][:, :2].long()

    def official(self, tokens: Tensor, mask_id: int) -> Tensor:
        """Our ids as theirs: the mask is -1."""
        return tokens.masked_fill(tokens == mask_id, -1)


def hidden_by(recorded: Recorded, scores: Tensor, ratio: Tensor | float, mode: ConditionMode) -> Tensor:
    among = ~recorded.known if mode in ("keep", "replace") else torch.ones_like(recorded.known)
    total = among.flatten(1).sum(1)
    return mask_lowest(scores, among, commit_counts(total, torch.as_tensor(ratio)))


def compare(recorded: Recorded, example: CommitExample) -> None:
    inputs: CommitInputs = example.inputs
    assert torch.equal(recorded.official(inputs.tokens, inputs.mask_id), recorded.grid("masked_inputs").long())
    assert torch.equal(
        recorded.official(inputs.unconditional, inputs.mask_id), recorded.grid("uncond_masked_inputs").long()
    )
    assert torch.equal(inputs.segments, recorded.grid("segment_ids").long())
    assert torch.equal(example.targets, recorded.grid("targets").long())
    assert torch.equal(example.weights.float(), recorded.grid("weights"))


def test_recordings_are_found() -> None:
    stored = load(TRACES)
    assert set(TASKS) == set(metadata(TRACES)["tokens"])
    check_count("magvit", TASKS, 11)
    check_count("magvit", NAMED, 6)
    check_count("magvit", [task for task in TASKS if f"{task}/ratio_uniform" in stored], 6)
    check_kinds("magvit", {metadata(CASES)[name]["condition_mode"] for name in NAMED}, MODES)


@pytest.mark.parametrize("task", TASKS)
def test_mask_of_a_task(task: str) -> None:
    stored, codes = load(TRACES), metadata(TRACES)["codebook"]
    recorded = Recorded(stored, task)
    mode: ConditionMode = "replace" if task == "latent_frame_prediction" else "commit"
    if f"{task}/ratio_uniform" in stored:
        sampled = get_schedule("cosine")(stored[f"{task}/ratio_uniform"], torch.tensor(recorded.tokens[0].numel()))
        assert torch.equal(sampled, stored[f"{task}/mask_ratio"])
    scores = recorded.flat(stored[f"{task}/mask_score_uniform"])
    masked = hidden_by(recorded, scores, stored[f"{task}/mask_ratio"], mode)
    grids = (recorded.tokens, recorded.condition, recorded.known, masked)
    compare(recorded, commit_example(*grids, mask_id=codes, mode=mode))
    only_hidden = commit_example(*grids, mask_id=codes, mode=mode, loss_on="masked")
    assert torch.equal(only_hidden.weights.float(), recorded.grid("weights_mask+refine").float())


@pytest.mark.parametrize("task", TASKS)
def test_prefix_of_a_task(task: str) -> None:
    """What ``Cond`` must hold: the prompt, and the class of class-conditional tasks only; nothing of both for guidance."""
    settings, stored = metadata(TRACES), load(TRACES)
    recorded, none = Recorded(stored, task), settings["codebook"] + settings["num_classes"]
    labels = stored["label"].flatten().long() + settings["codebook"]
    class_conditional = metadata(SETTINGS)[f"cfg_{task}"].get("class_conditional", False)
    for name in ("masked_inputs", "uncond_masked_inputs", "targets"):
        prompt, classes = recorded.prefix(name).unbind(1)
        by_class = class_conditional and name != "uncond_masked_inputs"
        assert torch.equal(classes, labels if by_class else torch.full_like(labels, none))
        expected = -3 - Prompt.FULL_GENERATION if name == "uncond_masked_inputs" else settings["tokens"][task]
        assert set(prompt.tolist()) == {expected}
    assert not stored[f"{task}/weights"][:, :2].any()
    assert not stored[f"{task}/segment_ids"][:, :2].any()


@pytest.mark.parametrize("name", NAMED)
def test_case(name: str) -> None:
    stored, case = load(CASES), metadata(CASES)[name]
    recorded, mode = Recorded(stored, name), MODES[case["condition_mode"]]
    scores = recorded.grid("score_uniform")
    offsets = stored[f"{name}/offsets"][:, 1:].tolist()
    if f"{name}/tie_uniform" in stored:
        assert len(offsets) > 1
        scores = block_scores(scores, recorded.axes, case["block_shape"], offsets, recorded.grid("tie_uniform"))
    masked = hidden_by(recorded, scores, case["mask_ratio"], mode)
    example = commit_example(
        recorded.tokens,
        recorded.condition.expand_as(recorded.tokens),
        recorded.known,
        masked,
        mask_id=1 + int(recorded.tokens.max()),
        mode=mode,
        loss_on=LOSSES[case["weight_mode"]],
    )
    compare(recorded, example)


@pytest.mark.parametrize("name", [name for name in load(CASES) if name.startswith("limits_")])
def test_limits_of_the_count(name: str) -> None:
    """A ratio of nearly nothing, so that the limits decide; only the lower limit of 1 and what follows from it is ours."""
    stored = load(CASES)
    least, most = (None if part == "None" else int(part) for part in name.split("/")[0].split("_")[1:])
    scores = stored["limits/mask_score"].flatten(1)[..., None]
    total = torch.full((len(scores),), scores.shape[1])
    counts = commit_counts(total, torch.tensor(1e-6)).clamp(min=least or 1)
    masked = mask_lowest(scores, torch.ones_like(scores, dtype=torch.bool), counts)
    expected = stored[name].bool().flatten(1)[..., None]
    if most == 0:
        # The official index is then -1, the highest score: everything is masked. Here one token stays masked instead.
        assert expected.all()
        assert masked.flatten(1).sum(1).tolist() == [1] * len(scores)
    else:
        assert torch.equal(masked, expected)
