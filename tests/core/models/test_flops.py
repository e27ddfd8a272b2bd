"""Operations of a training step, from the config, against torch's counter on the same model."""

import json
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from maskgen.conditioning import Cond
from maskgen.data import TensorSource
from maskgen.models.base import MaskedTransformer
from maskgen.models.flops import forward_flops, training_flops
from maskgen.objectives.masked import MaskedModeling, MaskingSettings
from maskgen.training.log import peak_flops
from tests.core.toys import FAMILIES, Line, LineConfig, fit, shaken, transformer


def counted(model: MaskedTransformer, rows: int, *, backward: bool) -> int:
    tokens = torch.randint(11, (rows, 12, model.num_codebooks))
    with FlopCounterMode(display=False) as counter:
        logits = model(tokens, Cond(labels=torch.zeros(rows, dtype=torch.long)))
        if backward:
            logits.square().mean().backward()
    return int(counter.get_total_flops())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rows", [1, 3])
def test_forward_and_backward(family: str, rows: int) -> None:
    changes = {"num_codebooks": 2} if family == "modern" else {}
    model = shaken(transformer(family, attention="eager", **changes))
    assert forward_flops(model, rows) == counted(model, rows, backward=False)
    # A little less than three times: nobody asks for the gradient of the rotary angles.
    assert training_flops(model, rows) == pytest.approx(counted(model, rows, backward=True), rel=0.01)


def test_other_models_are_not_counted() -> None:
    assert training_flops(Line(LineConfig()), 4) == 0


def test_the_log_says_how_well_the_device_is_used(tmp_path: Path) -> None:
    model = transformer("modern")
    source = TensorSource(tokens=torch.randint(11, (8, 12, 1)))
    fit(MaskedModeling(model, MaskingSettings()), source, tmp_path, steps=4, log_every=2, accumulation=2)
    for line in map(json.loads, (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()):
        assert 0 <= line["data_wait"] < 1
        assert line["tokens_per_second"] == pytest.approx(12 * line["examples_per_second"])
        used = line["mfu"] * peak_flops(torch.device("cpu"), "no")
        assert used == pytest.approx(training_flops(model, 2) / 2 * line["examples_per_second"])
        assert 0 < line["mfu"] < 1


def test_the_peak_of_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    here = peak_flops(torch.device("cpu"), "no")
    assert 1e8 < here < 1e14
    assert peak_flops(torch.device("cpu"), "no") == here  # measured once
    for index, (name, half, single) in enumerate(
        (
            ("NVIDIA H200", 989e12, 67e12),
            ("NVIDIA H100 PCIe", 756e12, 51e12),
            ("NVIDIA A100-SXM4-80GB", 312e12, 19.5e12),
        )
    ):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert peak_flops(torch.device("cuda", index), "bf16") == half
        assert peak_flops(torch.device("cuda", index), "no") == single
    peak_flops.cache_clear()
