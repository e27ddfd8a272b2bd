"""MaskBit's tokenizers and the PyTorch port of MaskGIT's, beyond the recorded numbers.

Shapes: B batch, N tokens, K sub-tokens, h w token grid, D width of a code.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from maskgen.checkpoint import load_module, save_module
from maskgen.published.maskbit.transformer import PUBLISHED as GENERATORS
from maskgen.published.maskbit.transformer import MaskBitConfig, MaskBitTransformer
from maskgen.tasks.image.generation import generate
from maskgen.tasks.model_folder import PipelineConfig
from maskgen.tasks.pipeline import Pipeline
from maskgen.tokenizers.image.vqgan import VQGAN, VQGANConfig
from maskgen.tokenizers.layers.conv2d import ConvDownsample
from maskgen.tokenizers.published.image import maskbit, maskgit_torch
from maskgen.tokenizers.published.image.maskbit import PUBLISHED, MaskBitTokenizer, MaskBitTokenizerConfig
from maskgen.tokenizers.published.image.maskbit_codes import BitQuantizer, UnitQuantizer, merge_ids, split_ids
from maskgen.tokenizers.quantizers.vector import QuantizerConfig
from tests.parity.support import LAYOUTS
from tests.selections import flat_sampling

# By hand from the published settings (128 channels, 1,1,2,2,4, 2 blocks), with w the widths of the levels: a block from i
# to o has 2i + 9io + 2o + 9oo (+ oo where i differs from o), a resampling 9ww + w, the latents' convolutions 512 t + t and
# 9 t 512 + 512 for width t, a codebook V t. The same sum gives 54,515,587 for MaskGIT's, which STATE_DICTS.json confirms.
WEIGHTS = {
    "maskbit_tokenizer_10bit": 54_469_005,
    "maskbit_tokenizer_12bit": 54_479_247,
    "maskbit_tokenizer_14bit": 54_489_489,
    "maskbit_tokenizer_16bit": 54_499_731,
    "maskbit_tokenizer_18bit": 54_509_973,
    "vqgan_plus_paper": 55_990_915,
    "vqgan_plus_12bit": 55_007_683,
    "maskgit_tokenizer": 54_515_587,
}

SMALL: dict[str, Any] = {"channels": 32, "multipliers": (1, 1, 1), "res_blocks": 1}
BITS = MaskBitTokenizerConfig(token_size=6, codebook_size=64, **SMALL)
CASES = {
    "bits": BITS,
    "bits-split": dataclasses.replace(BITS, splits=2),
    "lookup": dataclasses.replace(BITS, quantizer="lookup", codebook_size=24, downsample="average"),
    "lookup-split": dataclasses.replace(BITS, quantizer="lookup", splits=3, multipliers=(2, 1, 1)),
    "unit": dataclasses.replace(BITS, quantizer="lookup", codebook_size=24, l2_normalised=True),
}


def official_shapes(
    token_size: int, codebook: int | None, conv: bool, layout: tuple[str, str], level_order: bool
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a published file, written out from the description of the family.

    ``layout`` is what stands between a level, or the middle, and the number of a block.
    """
    widths, shapes = [128, 128, 256, 256, 512], {"encoder.conv_in.weight": (128, 3, 3, 3)}

    def stage(name: str, width: int, out: int) -> None:
        for block in (f"{name}0", f"{name}1"):
            for number, (i, o) in enumerate([(width, out), (out, out)], start=1):
                shapes[f"{block}.norm{number}.weight"] = shapes[f"{block}.norm{number}.bias"] = (i,)
                shapes[f"{block}.conv{number}.weight"] = (o, i, 3, 3)
            if width != out:
                shapes[f"{block}.nin_shortcut.weight"] = (out, out, 1, 1)
            width = out

    def conv3(name: str, width: int, out: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, width, 3, 3), (out,)

    level, middle = layout
    for index, (width, out) in enumerate(zip([128, *widths], widths, strict=False)):
        stage(f"encoder.down.{index}.{level}", width, out)
        if conv and index < 4:
            conv3(f"encoder.down.{index}.down_conv", out, out)
    for run, (width, out) in enumerate(zip([512, *widths[::-1]], widths[::-1], strict=False)):
        number = 4 - run if level_order else run
        stage(f"decoder.up.{number}.{level}", width, out)
        if run < 4:
            conv3(f"decoder.up.{number}.upsample_conv", out, out)
    for part, width in (("encoder", 512), ("decoder", 128)):
        stage(f"{part}.mid.{middle}", 512, 512)
        shapes[f"{part}.norm_out.weight"] = shapes[f"{part}.norm_out.bias"] = (width,)
    conv3("decoder.conv_in", token_size, 512)
    conv3("decoder.conv_out", 128, 3)
    shapes |= {"encoder.conv_out.weight": (token_size, 512, 1, 1), "encoder.conv_out.bias": (token_size,)}
    if codebook is None:
        shapes |= {"quantize.bits_to_indices": (token_size,), "quantize.codebook": (2**token_size, token_size)}
    else:
        shapes["quantize.embedding.weight"] = (codebook, token_size)
    return shapes


def hollow(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Weights of these shapes that hold one number each."""
    return {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}


def small(kind: str = "bits") -> MaskBitTokenizer:
    torch.manual_seed(3)
    return MaskBitTokenizer(CASES[kind]).eval()


def images(batch: int, height: int, width: int) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


def test_the_port_of_maskgit_at_full_size() -> None:
    shapes = official_shapes(256, 1024, False, ("block.", ""), True)
    stated = json.loads(LAYOUTS.read_text(encoding="utf-8"))["maskgit_vqgan_imagenet_f16_256"]
    assert shapes == {name: tuple(shape) for name, shape in stated["keys"].items()}
    assert (len(shapes), stated["n_params"]) == (stated["n_keys"], 54_515_587)
    state = hollow(shapes)
    config = maskgit_torch.PUBLISHED["maskgit-vqgan-imagenet-f16-256"]
    assert maskgit_torch.config_from(state) == config == VQGANConfig()
    converted = maskgit_torch.convert(state, config)
    with torch.device("meta"):
        expected = VQGAN(config).state_dict()
    assert {name: weight.shape for name, weight in converted.items()} == {
        name: weight.shape for name, weight in expected.items()
    }
    assert sum(weight.numel() for weight in converted.values()) == 54_515_587


@pytest.mark.parametrize("name", WEIGHTS)
def test_full_size(name: str) -> None:
    config = PUBLISHED[name]
    codebook = None if config.quantizer == "lookup-free" else config.codebook_size
    legacy = name == "maskgit_tokenizer"
    state = hollow(official_shapes(config.token_size, codebook, not legacy, ("res_blocks.",) * 2, legacy))
    assert maskbit.config_from(state, splits=config.splits) == config
    converted = maskbit.convert(state, config)
    with torch.device("meta"):
        expected = MaskBitTokenizer(config).state_dict()
    assert {key: weight.shape for key, weight in converted.items()} == {
        key: weight.shape for key, weight in expected.items()
    }
    assert sum(weight.numel() for weight in converted.values()) == WEIGHTS[name]


def test_published_tokenizers_fit_the_generators() -> None:
    assert set(PUBLISHED) == set(WEIGHTS)
    for name, generator in GENERATORS.items():
        with torch.device("meta"):
            tokenizer = MaskBitTokenizer(PUBLISHED[name.replace("generator", "tokenizer")])
        assert (tokenizer.vocab_size, tokenizer.num_codebooks) == (generator.vocab_size, generator.splits)
        assert tokenizer.axes((1, 3, 256, 256)) == generator.axes


def test_misfits_at_once_under_official_names() -> None:
    shapes = official_shapes(10, None, True, ("res_blocks.",) * 2, False)
    config = PUBLISHED["maskbit_tokenizer_10bit"]
    del shapes["decoder.up.2.upsample_conv.bias"]
    shapes["encoder.conv_out.bias"] = (11,)
    shapes["encoder.mid.attn.weight"] = (1,)
    wrong = (
        r"MaskBit tokenizer: 3 weights do not fit: missing decoder\.up\.2\.upsample_conv\.bias \(256,\).*; "
        r"unexpected encoder\.mid\.attn\.weight \(1,\); encoder\.conv_out\.bias has shape \(11,\), expected \(10,\)"
    )
    with pytest.raises(ValueError, match=wrong):
        maskbit.convert(hollow(shapes), config)
    shapes = official_shapes(256, 1024, False, ("block.", ""), True)
    shapes["decoder.norm_out.weight"] = (64,)
    shapes["quantize.codebook"] = (4, 4)
    wrong = (
        r"MaskGIT torch tokenizer: 2 weights do not fit: unexpected quantize\.codebook \(4, 4\); "
        r"decoder\.norm_out\.weight has shape \(64,\), expected \(128,\)"
    )
    with pytest.raises(ValueError, match=wrong):
        maskgit_torch.convert(hollow(shapes), VQGANConfig())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (maskgit_torch.config_from, r"no MaskGIT torch tokenizer weights: 5 levels and 0 middle blocks"),
        (lambda s: maskgit_torch.config_from({}), "expected names like 'encoder.down.0.block.0.conv1.weight'"),
        (lambda s: maskbit.config_from({}), "no MaskBit tokenizer weights: 0 levels and 0 middle blocks"),
        (
            lambda s: maskbit.config_from({k: v for k, v in s.items() if k != "encoder.conv_out.weight"}),
            "encoder.conv_out.weight is missing",
        ),
        (lambda s: maskgit_torch.convert(s, VQGANConfig(shortcut="input")), "got quantizer 'vq', shortcut 'input'"),
    ],
)
def test_other_files_are_refused(call: Callable[[dict[str, Tensor]], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(hollow(official_shapes(10, None, True, ("res_blocks.",) * 2, False)))


def test_a_file_without_a_codebook_is_refused() -> None:
    shapes = official_shapes(256, 1024, False, ("block.", ""), True)
    del shapes["quantize.embedding.weight"]
    with pytest.raises(ValueError, match="quantize.embedding.weight is missing"):
        maskgit_torch.config_from(hollow(shapes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codebook_size": 4096}, "codebook_size: got 4096, expected 2.token_size = 64"),
        ({"quantizer": "vq"}, "quantizer: got 'vq', expected 'lookup-free' or 'lookup'"),
        ({"downsample": "max"}, "downsample: got 'max'"),
        ({"l2_normalised": True}, "signs have no length"),
        ({"splits": 4}, "splits: got 4 for ids of 6 bits, expected a divisor"),
        ({"splits": 2, "quantizer": "lookup", "codebook_size": 24}, "expected a power of two"),
        ({"channels": 40}, "expected multiples of groups=32"),
    ],
)
def test_settings_are_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(BITS, **changes)


@pytest.mark.parametrize("kind", CASES)
def test_contract(kind: str, tmp_path: Path) -> None:
    model, signal = small(kind), images(2, 16, 24)
    config = model.config
    K, V = config.splits, model.vocab_size
    assert config.codebook_size == V**K
    assert (model.num_codebooks, model.stride, model.axes(signal.shape)) == (K, (4, 4), (4, 6))
    assert MaskBitTokenizerConfig(**json.loads(json.dumps(dataclasses.asdict(config)))) == config
    save_module(model, tmp_path)
    again = load_module(tmp_path, MaskBitTokenizer)
    with torch.no_grad():
        tokens = model.encode(signal)
        decoded = model.decode(tokens, (4, 6))
        assert torch.equal(again.encode(signal), tokens)
        assert torch.equal(again.decode(tokens, (4, 6)), decoded)
        assert torch.equal(model.encode(signal[1:])[0], tokens[1])
        corner = torch.zeros(2, 64, K, dtype=torch.long)
        corner[1, 7] = V - 1  # row 0, last column of 8
        assert model.encode(signal.to(torch.bfloat16)).shape == tokens.shape
        change = model.decode(corner, (8, 8)).diff(dim=0).abs().sum((0, 1))
    assert change[:4, -4:].mean() > change[-4:, :4].mean()
    assert (tokens.shape, tokens.dtype, decoded.shape) == ((2, 24, K), torch.long, signal.shape)
    assert 0 <= tokens.min() <= tokens.max() < V
    with pytest.raises(TypeError, match=r"got torch\.uint8, expected floating point"):
        model.encode(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"got shape \(3, 8, 8\), expected \[B, 3, H, W\]"):
        model.axes((3, 8, 8))
    with pytest.raises(ValueError, match=f"got ids from 0 to {V}, expected 0 to {V - 1}; the mask id"):
        model.decode(torch.tensor([0] * (4 * K - 1) + [V]).reshape(1, 4, K), (2, 2))


def test_bits_are_signs_lowest_first() -> None:
    quantizer = BitQuantizer(QuantizerConfig(kind="lfq", codebook_size=16, dim=4))
    latents = torch.tensor([0.1, -2.0, 0.0, 3.0]).reshape(1, 4, 1)
    ids = quantizer.encode(latents)
    assert ids.tolist() == [[[1 + 8]]]  # zero is below
    assert quantizer.lookup(ids, (1,)).flatten().tolist() == [1, -1, -1, 1]
    latents.requires_grad_(True)
    quantizer(latents).latents.sum().backward()
    assert torch.equal(latents.grad, torch.ones_like(latents))


def test_unit_codes() -> None:
    """The length of neither a row nor a latent matters, and looked-up rows have length 1."""
    torch.manual_seed(0)
    quantizer = UnitQuantizer(QuantizerConfig(codebook_size=12, dim=5))
    with torch.no_grad():
        quantizer.codebook.copy_(torch.randn(12, 5) * torch.rand(12, 1) * 9)
    latents = torch.randn(2, 5, 7)
    nearest = F.cosine_similarity(latents.transpose(1, 2)[:, :, None], quantizer.codebook, dim=-1).argmax(-1)
    ids = quantizer.encode(latents)
    assert torch.equal(ids.squeeze(-1), nearest)
    assert torch.equal(quantizer.encode(latents * 100), ids)
    torch.testing.assert_close(quantizer.lookup(ids, (7,)).norm(dim=1), torch.ones(2, 7))


@given(st.data())
def test_ids_split_and_merge_exactly(data: st.DataObject) -> None:
    splits, each = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 10))
    bits = splits * each
    ids = torch.tensor(data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=1, max_size=5)))
    tokens = split_ids(ids, bits=bits, splits=splits)
    assert tokens.shape == (*ids.shape, splits)
    assert [[int(i) >> k * each & 2**each - 1 for k in range(splits)] for i in ids] == tokens.tolist()
    assert torch.equal(merge_ids(tokens, bits=bits), ids)


def test_merging_is_exact_where_the_official_float32_is_not() -> None:
    """The official sum of shifted sub-tokens is float32, whose integers end at 2^24."""
    ids = torch.tensor([2**24 - 1, 2**24 + 1, 2**26 - 1])
    tokens = split_ids(ids, bits=26, splits=2)
    official = torch.zeros(3)
    for i in range(2):
        official += tokens[:, i] << (13 * i)
    assert official.long().tolist() == [2**24 - 1, 2**24, 2**26]
    assert torch.equal(merge_ids(tokens, bits=26), ids)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: split_ids(torch.tensor([64]), bits=6, splits=2), ValueError, "got 64 to 64, expected 0 to 63"),
        (lambda: merge_ids(torch.tensor([[0, 8]]), bits=6), ValueError, "got 8 to 8, expected 0 to 7"),
        (lambda: merge_ids(torch.tensor([[-1, 0]]), bits=6), ValueError, "got -1 to -1"),
        (lambda: split_ids(torch.tensor([0]), bits=7, splits=2), ValueError, "got 2 for ids of 7 bits"),
        (
            lambda: split_ids(torch.tensor([0.0]), bits=6, splits=2),
            TypeError,
            "got torch.float32, expected torch.int64",
        ),
    ],
)
def test_split_and_merge_refuse(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(("size", "before"), [(6, 0), (7, 1)])
def test_strided_convolution_pads_the_same_way(size: int, before: int) -> None:
    """One zero right and bottom of even sizes, one on each side of odd ones."""
    down = ConvDownsample(2, kernel=3)
    x = torch.randn(1, 2, size, size)
    expected = F.conv2d(F.pad(x, (before, 1, before, 1)), down.conv.weight, down.conv.bias, stride=2)
    assert torch.equal(down(x), expected)
    assert expected.shape[-1] == -(-size // 2)


def test_sizes_between_tokens_round_up_also_where_the_official_pooling_rounds_down() -> None:
    for kind in ("bits", "lookup"):
        model, signal = small(kind), images(1, 13, 16)
        assert model.axes(signal.shape) == (4, 4)
        with torch.no_grad():
            assert model.encode(signal).shape == (1, 16, 1)
    assert F.avg_pool2d(F.avg_pool2d(images(1, 13, 16), 2, 2), 2, 2).shape[2:] == (3, 4)


def test_a_training_pass_speaks_sub_tokens() -> None:
    torch.manual_seed(0)
    model = small("bits-split")
    out = model(images(2, 16, 16))
    assert torch.equal(out.quantized.codes, model.encode(images(2, 16, 16)))
    assert out.quantized.codes.shape == (2, 16, 2)


def test_a_pipeline_of_sub_tokens(tmp_path: Path) -> None:
    """Tokenizer and generator of one family fit, are saved, loaded and sampled from; whole ids do not fit."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 8, "num_classes": 4, "axes": (4, 4), "width": 16, "layers": 1, "heads": 2, "mlp_width": 16}
    transformer = MaskBitTransformer(MaskBitConfig(**sizes))
    config = PipelineConfig(signal_size=(16, 16), sampling=flat_sampling(steps=3, guidance=1.0))
    with pytest.raises(ValueError, match="do not fit: 64 codes x 1 against 8 x 2"):
        Pipeline(small("bits"), transformer, config, device="cpu")
    pipe = Pipeline(small("bits-split"), transformer, config, device="cpu")
    pipe.save_pretrained(tmp_path)
    again = Pipeline.from_pretrained(tmp_path, device="cpu")
    pictures = [generate(p, labels=[1, 3], seeds=[5, 6]) for p in (pipe, again)]
    assert [picture.size for picture in pictures[0]] == [(16, 16), (16, 16)]
    assert [picture.tobytes() for picture in pictures[0]] == [picture.tobytes() for picture in pictures[1]]
    assert pictures[0][0].tobytes() != pictures[0][1].tobytes()
