"""The choice of what is remasked against the official ``mask_by_random_topk``."""

from pathlib import Path

import pytest
import torch

from maskgen.sampling.selectors.named import get_selector
from tests.parity.support import check_count, load, recordings
from tests.selections import selection

CASES = [
    (path, key.split("/")[0])
    for path in recordings("maskgit", "mask_by_random_topk*.safetensors")
    for key in load(path)
    if key.endswith("/masking")
]


def test_cases_are_found() -> None:
    check_count("maskgit", {case for _, case in CASES}, 2)


@pytest.mark.parametrize(("path", "case"), CASES, ids=lambda value: getattr(value, "stem", value))
def test_mask_by_random_topk(path: Path, case: str) -> None:
    stored = load(path)
    prob, noise = stored["sel_prob"], stored[f"{case}/noise"]
    counts = stored["mask_len"].squeeze(1).long()
    temperature = float(stored[f"{case}/temperature"])
    mask = torch.isfinite(prob)  # given tokens have probability +inf
    masked = get_selector("confidence").remask(selection(prob.log(), mask, counts, noise, temperature))
    assert torch.equal(masked, stored[f"{case}/masking"].bool())
    assert not masked[~mask].any()
