"""Open-MAGVIT2's autoregressive transformer: what depends on what, sampling with and without memory, names, sizes.

Shapes: B batch, N places, K parts.
"""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskgen.checkpoint import load_module, save_module
from maskgen.noise import SeededNoise
from maskgen.published.open_magvit2 import transformer as magvit2_ar
from maskgen.published.open_magvit2.sampler import PUBLISHED_SAMPLING, sample_parts
from maskgen.published.open_magvit2.transformer import PartsTransformer, PartsTransformerConfig, config_from, convert

SMALL: dict[str, Any] = {
    "part_bits": (2, 3),
    "num_classes": 5,
    "axes": (2, 3),
    "width": 16,
    "layers": 2,
    "part_layers": 1,
    "heads": 2,
    "mlp_width": 24,
}


def model(**changes: Any) -> PartsTransformer:
    """Random weights in which everything matters."""
    torch.manual_seed(1)
    made = PartsTransformer(PartsTransformerConfig(**SMALL | changes)).eval()
    for module in made.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.5)
    return made


def tokens(batch: int = 2, seed: int = 0, config: PartsTransformerConfig | None = None) -> Tensor:
    config = config or PartsTransformerConfig(**SMALL)
    generator = torch.Generator().manual_seed(seed)
    size = (batch, math.prod(config.axes))
    return torch.stack([torch.randint(2**bits, size, generator=generator) for bits in config.part_bits], dim=-1)


def test_a_fresh_model_is_uniform() -> None:
    fresh = PartsTransformer(PartsTransformerConfig(**SMALL)).eval()
    losses = fresh.losses(tokens(), torch.tensor([0, 5]))
    for loss, bits in zip(losses, (2, 3), strict=True):
        torch.testing.assert_close(loss, torch.tensor(bits * math.log(2)))


@torch.no_grad()
def test_nothing_looks_ahead() -> None:
    """Part k of place n depends on the places before n and the parts before k, and on nothing else."""
    net, known, labels = model(), tokens(1), torch.tensor([3])
    before = net(known, labels)
    for place in range(6):
        for k in range(2):
            changed = known.clone()
            changed[0, place, k] = (changed[0, place, k] + 1) % 2 ** SMALL["part_bits"][k]
            for part, (old, new) in enumerate(zip(before, net(changed, labels), strict=True)):
                moved = ((old - new).abs().amax(-1) > 1e-6)[0].tolist()
                within = part > k
                assert moved == [n > place or (n == place and within) for n in range(6)], (place, k, part)
    assert (before[0] - net(known, torch.tensor([4]))[0]).abs().amax(-1).min() > 1e-6


@torch.no_grad()
@pytest.mark.parametrize("guidance", [(0.0, 0.0), (0.9, 1.5)])
def test_sampling_remembers_what_it_would_compute_again(guidance: tuple[float, float]) -> None:
    """The plain loop: a whole forward for every part of every place."""
    net, labels, seeds, temperatures = model(), torch.tensor([0, 4]), [7, 8], (1.1, 0.8)
    noise = SeededNoise(seeds)
    plain = torch.zeros(2, 6, 2, dtype=torch.long)
    nobody = torch.full_like(labels, 5)
    for place in range(6):
        for k in range(2):
            with_class, without = (net(plain, each)[k][:, place] for each in (labels, nobody))
            logits = with_class + guidance[k] * (with_class - without)
            plain[:, place, k] = (logits / temperatures[k] + noise.sample(2 * place + k, logits.shape)).argmax(-1)
    drawn = sample_parts(net, labels, seeds=seeds, temperatures=temperatures, guidance=guidance)
    assert torch.equal(drawn, plain)


@torch.no_grad()
def test_a_seed_is_a_sample_in_any_batch() -> None:
    net, settings = model(), {"temperatures": (1.0, 1.0), "guidance": (0.5, 0.5)}
    together = sample_parts(net, torch.tensor([0, 1, 2]), seeds=[3, 4, 5], **settings)  # type: ignore[arg-type]
    for i in range(3):
        alone = sample_parts(net, torch.tensor([i]), seeds=[3 + i], **settings)  # type: ignore[arg-type]
        assert torch.equal(alone[0], together[i])
    assert together.shape == (3, 6, 2)
    assert together[..., 0].max() < 4
    assert together[..., 1].max() < 8


def test_sampled_parts_follow_the_model() -> None:
    """At a low temperature the likeliest parts are drawn."""
    net, labels = model(), torch.tensor([1])
    drawn = sample_parts(net, labels, seeds=[0], temperatures=(1e-4, 1e-4), guidance=(0.0, 0.0))
    with torch.no_grad():
        for k, logits in enumerate(net(drawn, labels)):
            assert torch.equal(logits.argmax(-1), drawn[..., k])


@pytest.mark.parametrize("bits", [(4,), (1, 2, 3)])
@torch.no_grad()
def test_other_numbers_of_parts(bits: tuple[int, ...]) -> None:
    net = model(part_bits=bits)
    known = tokens(2, config=net.config)
    assert [logits.shape for logits in net(known, torch.tensor([0, 5]))] == [(2, 6, 2**size) for size in bits]
    zeros = (0.0,) * len(bits)
    drawn = sample_parts(net, torch.tensor([2]), seeds=[1], temperatures=(1.0,) * len(bits), guidance=zeros)
    assert drawn.shape == (1, 6, len(bits))


def test_whole_ids() -> None:
    net = model()
    ids = net.whole_ids(torch.tensor([[[3, 5], [1, 0]]]))
    assert ids.tolist() == [[3 + (5 << 2), 1]]


def test_training_drops_and_reaches_every_weight() -> None:
    net, known, labels = model(), tokens(), torch.tensor([0, 5])
    still = torch.stack(net.losses(known, labels))
    torch.testing.assert_close(torch.stack(net.losses(known, labels)), still)
    torch.stack(net.train().losses(known, labels)).sum().backward()
    assert not torch.allclose(torch.stack(net.losses(known, labels)), still)
    # The last part's embedding is read by later places only, so it is reached as well.
    assert [name for name, weight in net.named_parameters() if weight.grad is None] == []


def test_one_batch_is_learned_by_heart() -> None:
    torch.manual_seed(0)
    net = PartsTransformer(PartsTransformerConfig(**SMALL | {"width": 32, "dropout": 0.0}))
    known, labels = tokens(4), torch.arange(4)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(60):
        loss = torch.stack(net.losses(known, labels)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.1
    drawn = sample_parts(net.eval(), labels, seeds=[0] * 4, temperatures=(0.1, 0.1), guidance=(0.0, 0.0))
    assert torch.equal(drawn, known)


def official(net: PartsTransformer) -> dict[str, Tensor]:
    return {f"transformer.{magvit2_ar._official(name)}": tensor for name, tensor in net.state_dict().items()}


def test_official_names() -> None:
    net = model()
    state = official(net) | {
        "first_stage_model.encoder.conv_in.weight": torch.zeros(1),
        "cond_stage_model.x": torch.zeros(1),
    }
    assert {
        "transformer.pre_emb.weight",
        "transformer.class_emb.embedding_table.weight",
        "transformer.spatial_blocks.1.attention.wqkv.weight",
        "transformer.factorized_blocks.0.feed_forward.w2.weight",
        "transformer.spatial_blocks.0.ffn_norm.weight",
        "transformer.head.1.weight",
    } <= state.keys()
    config = config_from(state, heads=2, axes=(2, 3))
    assert config == net.config
    ours = net.state_dict()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in convert(state, config).items())
    bare = {name.removeprefix("transformer."): tensor for name, tensor in state.items()}
    assert convert(bare, config).keys() == ours.keys()
    state["transformer.wrong"] = state.pop("transformer.norm.weight")
    with pytest.raises(ValueError, match="2 weights do not fit: missing norm.weight"):
        convert(state, config)
    with pytest.raises(ValueError, match=r"no Open-MAGVIT2 transformer: missing \['pre_emb.weight'"):
        config_from({"tok_emb.weight": torch.zeros(2, 2)})


def test_published_sizes() -> None:
    counts = {}
    for name, config in magvit2_ar.PUBLISHED.items():
        with torch.device("meta"):
            net = PartsTransformer(config)
        counts[name] = round(sum(weight.numel() for weight in net.parameters()) / 1e6)
        assert config_from(official(net)) == config  # heads of 64
        # 8 / 3 of the width, rounded up to a multiple of 256.
        assert config.mlp_width == -(-int(8 * config.width / 3) // 256) * 256
    assert counts == {"AR_256_B": 344, "AR_256_L": 804, "AR_256_XL": 1487}  # their README: 343M, 804M, 1.5B
    assert counts.keys() == PUBLISHED_SAMPLING.keys()


@torch.no_grad()
def test_saved_and_loaded(tmp_path: Path) -> None:
    net, labels = model(), torch.tensor([1, 2])
    save_module(net, tmp_path)
    again = load_module(tmp_path, PartsTransformer)
    assert again.config == net.config
    for got, expected in zip(again(tokens(), labels), net(tokens(), labels), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"part_bits": (0, 3)}, "expected positive sizes and 62 bits or less"),
        ({"part_bits": (40, 40)}, "62 bits or less"),
        ({"axes": (2, 3, 4)}, r"axes: got \(2, 3, 4\), expected \(h, w\)"),
        ({"axes": (1, 1)}, r"no fewer positions than parts \(2\)"),
        ({"heads": 3}, "heads: got 3 for width 16, expected heads of a multiple of 4"),
        ({"dropout": 1.0}, "dropout: got 1.0, expected 0 <= dropout < 1"),
    ],
)
def test_config_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PartsTransformerConfig(**SMALL | changes)


def test_calls_that_do_not_fit_are_refused() -> None:
    net, labels = model(), torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"tokens: got shape \(2, 5, 2\), expected \[B, 6, 2\]"):
        net(tokens()[:, :5], labels)
    fine: dict[str, Any] = {"seeds": [1, 2], "temperatures": (1.0, 1.0), "guidance": (0.0, 0.0)}
    for changes, message in (
        ({"seeds": [1]}, "seeds: got 1, expected one for each of the 2 items"),
        ({"temperatures": (1.0,)}, "expected 2 positive temperatures and 2 weights"),
        ({"temperatures": (1.0, 0.0)}, "expected 2 positive temperatures"),
        ({"guidance": (-0.5, 0.0)}, "weights of 0 or more, one for each part"),
    ):
        with pytest.raises(ValueError, match=message):
            sample_parts(net, labels, **fine | changes)
