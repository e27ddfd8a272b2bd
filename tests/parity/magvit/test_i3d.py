"""I3D and the Frechet distance against official MAGVIT: blocks number for number, the whole by its parameter tree."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from maskgen.tasks.evaluation.features.i3d import (
    I3D,
    Branch,
    I3DFeatures,
    Unit3D,
    i3d_state_dict,
    official_shapes,
    read_i3d,
)
from maskgen.tasks.evaluation.metrics.frechet import Moments, frechet_distance
from maskgen.tasks.media.video.frames import resize_tf1
from tests.parity.magvit.models import first, group, last
from tests.parity.support import facts, load, metadata, recordings

FILES = [path for path in recordings("magvit", "misc*.safetensors") if "i3d_block_in" in load(path)]
LAYOUTS = facts("magvit", "full_shapes_i3d_*.json")


def label(path: Path) -> str:
    return path.stem


def loaded(module: nn.Module, params: dict[str, Tensor]) -> nn.Module:
    module.load_state_dict(i3d_state_dict(params))
    return module.eval()


def weights(seed: int = 0) -> dict[str, Tensor]:
    """Random weights in the official tree, of a size that keeps values near 1 through all layers."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in official_shapes(I3D()).items():
        scale = math.sqrt(2 / math.prod(shape[:-1])) if name.endswith("kernel") else 0.1
        found[name] = torch.randn(shape, generator=generator) * scale
        if name.endswith("variance"):
            found[name] = 1 + found[name].abs()
    return found


def test_everything_was_found() -> None:
    assert FILES
    assert LAYOUTS


@pytest.mark.parametrize("path", FILES, ids=label)
def test_branch(path: Path) -> None:
    data = load(path)
    x = first(data["i3d_block_in"])
    branch = loaded(Branch(x.shape[1], tuple(metadata(path)["branch_chns"])), group(data, "branch/params/"))
    with torch.no_grad():
        torch.testing.assert_close(last(branch(x)), data["branch/out"], rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("path", FILES, ids=label)
def test_unit_with_stride(path: Path) -> None:
    data = load(path)
    x, params = first(data["i3d_block_in"]), group(data, "unit_s2/params/")
    kernel, _, _, channels, width = params["conv_3d/kernel"].shape
    unit = loaded(Unit3D(channels, width, kernel, 2), params)
    with torch.no_grad():
        torch.testing.assert_close(last(unit(x)), data["unit_s2/out"], rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("path", FILES, ids=label)
def test_frechet_distance(path: Path) -> None:
    data, found = load(path), []
    for name in ("frechet/a", "frechet/b"):
        moments = Moments(data[name].shape[1])
        moments.update(data[name])
        found.append(moments.gaussian())
    assert frechet_distance(*found) == pytest.approx(float(data["frechet/distance_unbiased_cov"]), rel=1e-5)


@pytest.mark.parametrize("path", LAYOUTS, ids=label)
def test_the_whole_network_has_the_official_tree(path: Path) -> None:
    wanted = json.loads(path.read_text(encoding="utf-8"))
    shapes = official_shapes(I3D())
    assert shapes == {name: tuple(shape) for name, shape in wanted["shapes"].items()}
    assert sum(map(math.prod, shapes.values())) == wanted["num_params"]
    state = i3d_state_dict({name: torch.zeros(shape, device="meta") for name, shape in shapes.items()})
    assert {name: tensor.shape for name, tensor in state.items()} == {
        name: tensor.shape for name, tensor in I3D().state_dict().items()
    }


def test_files_in_both_layouts_are_the_same_network(tmp_path: Path) -> None:
    official = weights()
    save_file({name: tensor.contiguous() for name, tensor in official.items()}, tmp_path / "flax.safetensors")
    torch.save(pytorch_i3d(official), tmp_path / "rgb_imagenet.pt")
    one, two = read_i3d(tmp_path / "flax.safetensors"), read_i3d(tmp_path / "rgb_imagenet.pt")
    assert one.state_dict().keys() == two.state_dict().keys()
    assert all(torch.equal(tensor, two.state_dict()[name]) for name, tensor in one.state_dict().items())


def test_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clips are resized as TensorFlow 1 does it, scaled to [-1, 1]; the features are the mean logits."""
    path = tmp_path / "i3d.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in weights().items()}, path)
    clip = torch.rand(1, 3, 9, 20, 28)
    extractor, through = I3DFeatures(path), I3DFeatures(path, first_size=(64, 64))
    seen: list[Tensor] = []
    real = I3D.forward

    def watched(self: I3D, video: Tensor) -> Tensor:
        seen.append(video)
        return real(self, video) if len(seen) == 1 else torch.zeros(1, 400)

    monkeypatch.setattr(I3D, "forward", watched)
    found = extractor.embed(clip).features
    assert found.shape == (1, 400)
    assert found.std() > 1e-3
    torch.testing.assert_close(seen[0], resize_tf1(clip, (224, 224)) * 2 - 1)
    through.embed(clip)
    torch.testing.assert_close(seen[1], resize_tf1(resize_tf1(clip, (64, 64)), (224, 224)) * 2 - 1)
    assert through.identity() != extractor.identity()
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"I3D: got shape .*expected \[B, 3, T, 224, 224\] with 9 frames or more"):
        extractor.embed(clip[:, :, :8])


def test_files_that_are_refused(tmp_path: Path) -> None:
    official = {name: tensor.contiguous() for name, tensor in weights().items()}
    with pytest.raises(FileNotFoundError, match="no such file"):
        I3DFeatures(tmp_path / "nowhere.flax")
    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"no weights of I3D \(its names are a, \.\.\.\); expected MAGVIT's i3d_k400"):
        read_i3d(tmp_path / "other.safetensors")
    del official["Mixed_4e/Branch_1.Conv3d_0b_3x3/batch_norm/beta"]
    save_file(official, tmp_path / "less.safetensors")
    with pytest.raises(ValueError, match=r"1 weights do not fit: missing layers\.Mixed_4e\.units\.2\.bias"):
        read_i3d(tmp_path / "less.safetensors")
    gains = pytorch_i3d(weights())
    gains["Mixed_3b.b0.bn.weight"] *= 2
    torch.save(gains, tmp_path / "gains.pt")
    with pytest.raises(ValueError, match=r"Mixed_3b\.b0\.bn\.weight is not 1 everywhere"):
        read_i3d(tmp_path / "gains.pt")


def pytorch_i3d(official: dict[str, Tensor]) -> dict[str, Tensor]:
    """The official tree under the names of pytorch-i3d."""
    units = {
        "Branch_0.Conv3d_0a_1x1": "b0",
        "Branch_1.Conv3d_0a_1x1": "b1a",
        "Branch_1.Conv3d_0b_3x3": "b1b",
        "Branch_2.Conv3d_0a_1x1": "b2a",
        "Branch_2.Conv3d_0b_3x3": "b2b",
        "Branch_3.Conv3d_0b_1x1": "b3b",
        "Logits.Conv3d_0c_1x1": "logits",
    }
    leaves = {
        "conv_3d/kernel": "conv3d.weight",
        "conv_3d/bias": "conv3d.bias",
        "batch_norm/beta": "bn.bias",
        "batch_norm/moving_mean": "bn.running_mean",
        "batch_norm/moving_variance": "bn.running_var",
    }
    found = {}
    for name, tensor in official.items():
        *place, owner, leaf = name.split("/")
        key = ".".join(units.get(part, part) for part in place)
        moved = tensor.permute(4, 3, 0, 1, 2).contiguous() if leaf == "kernel" else tensor
        found[f"{key}.{leaves[f'{owner}/{leaf}']}"] = moved
        if leaf == "beta":
            found[f"{key}.bn.weight"] = torch.ones_like(tensor)
            found[f"{key}.bn.num_batches_tracked"] = torch.tensor(0)
    return found
