"""Inflation of 2D weights against the official MAGVIT code."""

import pytest
import torch
from torch import Tensor

from maskgen.tokenizers.video.inflation import inflate, inflate_kernel
from tests.parity.magvit.models import group
from tests.parity.support import check_kinds, load, own_set, recordings

SETS = recordings("magvit", "inflation*.safetensors")


def ours(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """[kt, kh, kw, in, out] and [kh, kw, in, out] to channels first; dense kernels and biases stay."""
    orders = {5: (4, 3, 0, 1, 2), 4: (3, 2, 0, 1)}
    return {
        name: array.permute(orders[array.ndim]) if array.ndim in orders else array for name, array in weights.items()
    }


@pytest.mark.parametrize("path", SETS, ids=lambda path: path.stem)
def test_both_modes(path) -> None:
    data = load(path)
    modes = {key.split("/")[0].removeprefix("out_") for key in data if key.startswith("out_")}
    check_kinds("magvit", modes, {"central", "average"})
    for mode in modes:
        flat, deep = ours(group(data, "in2d/")), ours(group(data, "in3d/"))
        got, kept = inflate(flat, deep, mode)
        expected = ours(group(data, f"out_{mode}/"))
        assert got.keys() == expected.keys()
        for name, array in expected.items():
            assert torch.equal(got[name], array), name
        assert kept == [name for name in deep if torch.equal(expected[name], deep[name])]
        even = any(array.ndim == 5 and array.shape[2] % 2 == 0 for array in expected.values())
        assert even or not own_set("magvit"), "an even kernel tells the middle"


@pytest.mark.parametrize("path", SETS, ids=lambda path: path.stem)
def test_kernels_that_we_keep_reversed(path) -> None:
    """A transposed convolution of ours holds the official kernel back to front, in time as well."""
    data = load(path)
    for key, expected in ours(group(data, "out_central/")).items():
        if expected.ndim == 5:
            flat = ours({key: data[f"in2d/{key}"]})[key]
            got = inflate_kernel(flat.flip(2, 3), expected.shape[2], "central", backwards=True)
            assert torch.equal(got, expected.flip(2, 3, 4)), key
