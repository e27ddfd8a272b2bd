"""What is refused before a run starts, and what is said of it."""

from pathlib import Path
from typing import Any

import pytest
import torch

import maskgen.training.accelerator
from maskgen.training.accelerator import make_accelerator
from maskgen.training.distributed.whole_batch import mean_over_processes
from tests.core.toys import Line, LineConfig, LineObjective, fit, points, settings, weights
from tests.core.training.many_processes import run_processes


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    message = r"num_processes: got 8 on this machine, which has 2 GPU\(s\); launch with --num_processes 2"
    with pytest.raises(ValueError, match=message):
        make_accelerator(settings(), tmp_path)


def test_a_launch_for_gpus_where_there_are_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # what `accelerate launch` leaves behind
    with pytest.raises(ValueError, match=r"num_processes: got 8 on this machine, which has no GPU.*torchrun"):
        make_accelerator(settings(), tmp_path)


def test_precisions_that_a_device_lacks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mixed_precision: got fp16, which needs a GPU; use bf16 or no on the CPU"):
        fit(LineObjective(), points(), tmp_path / "run", mixed_precision="fp16")
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(ValueError, match=r"the launcher says bf16, the run's settings say no; give --settings\."):
        make_accelerator(settings(), tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    with pytest.raises(ValueError, match="mixed_precision: got bf16, which Tesla T4 lacks; use fp16 or no"):
        make_accelerator(settings(mixed_precision="bf16"), tmp_path)


def test_trackers_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tracker: got 'paper', expected one of aim, .*wandb, or null"):
        fit(LineObjective(), points(), tmp_path, tracker="paper")
    monkeypatch.setattr(maskgen.training.accelerator, "get_available_trackers", lambda: [])
    with pytest.raises(ImportError, match="tracker: wandb is not installed; pip install wandb, or set tracker to null"):
        fit(LineObjective(), points(), tmp_path, tracker="wandb")
    with pytest.warns(UserWarning, match=r"tensorboard is not installed, so only log.jsonl is written; pip install"):
        fit(LineObjective(), points(), tmp_path, tracker="tensorboard", log_every=3)
    assert (tmp_path / "log.jsonl").is_file()


def test_the_first_fsdp_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(ValueError, match="fsdp_version: got 1, expected 2; set it in the Accelerate config"):
        make_accelerator(settings(), tmp_path)
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(ValueError, match=r"muon_lr: got 0\.02 under FSDP2, which spreads each matrix over processes"):
        make_accelerator(settings(optimizer={"muon_lr": 0.02}), tmp_path)


class Two(LineObjective):
    def networks(self) -> dict[str, torch.nn.Module]:
        return {"model": self.model, "other": torch.nn.Linear(1, 1)}


def two_networks(out: Path) -> None:
    try:
        fit(Two(), points(), out)
    except ValueError as error:
        expected = "FSDP2: got 2 networks (model, other), expected one"
        raise SystemExit(7 if str(error).startswith(expected) else 1) from None


def test_two_networks_cannot_be_sharded(tmp_path: Path) -> None:
    assert run_processes(2, two_networks, tmp_path, fsdp=True) == [7, 7]


class Wrapped(Line):
    def forward(self, x: torch.Tensor) -> Any:
        return LineConfig(inputs=super().forward(x))  # a dataclass, which FSDP2 cannot look into


class HiddenOutput(LineObjective):
    def __init__(self) -> None:
        super().__init__()
        self.model = Wrapped(LineConfig())

    def loss(self, network: str, modules: Any, batch: Any, step: int) -> Any:
        return modules["model"](batch["x"]).inputs.square().mean(), {}


def hidden_output(out: Path) -> None:
    try:
        fit(HiddenOutput(), points(), out)
    except ValueError as error:
        expected = "FSDP2: got a model that returns a LineConfig, expected tensors"
        raise SystemExit(7 if str(error).startswith(expected) else 1) from None


def test_outputs_that_sharding_cannot_follow(tmp_path: Path) -> None:
    assert run_processes(2, hidden_output, tmp_path / "sharded", fsdp=True) == [7, 7]
    assert run_processes(1, hidden_output, tmp_path / "plain") == [0]


def summed() -> None:
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    assert mean_over_processes(torch.tensor([1.0 + rank, 2.0])).tolist() == [1.5, 2.0]
    torch.distributed.destroy_process_group()


def test_means_over_processes() -> None:
    assert run_processes(2, summed) == [0, 0]
    value = torch.tensor(3.0, requires_grad=True)
    assert not mean_over_processes(value).requires_grad


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
def test_two_precisions_in_one_process(tmp_path: Path) -> None:
    """Each training of a notebook has its own, and one from before goes on in its own."""
    before = make_accelerator(settings(), tmp_path / "before")
    trained = [
        fit(LineObjective(), points(), tmp_path / name, mixed_precision=name.split("-")[0]) for name in PRECISIONS
    ]
    first, other, again = (torch.cat([weight.flatten() for weight in weights(one).values()]) for one in trained)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.allclose(first, other, atol=0.05)
    assert (before.mixed_precision, before.state.mixed_precision) == ("no", "no")


PRECISIONS = ("no", "bf16", "no-again")
