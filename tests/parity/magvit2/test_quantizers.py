"""Quantizers against Open-MAGVIT2's official code: lookup-free, its entropies, ids in parts, and IBQ.

Shapes: B batch, N positions, C codebooks, d bits, M tokens, V codes, D width of a code.
"""

import re

import pytest
import torch
from torch import Tensor

from maskgen.tokenizers.published.image.ibq import IndexQuantizer
from maskgen.tokenizers.quantizers.lookup_free import (
    LFQ,
    LFQConfig,
    bit_entropies,
    entropies,
    factor_ids,
    ids_to_codes,
    join_ids,
)
from maskgen.tokenizers.quantizers.vector import QuantizerConfig
from tests.parity.magvit2.recordings import recording, relative, reverse_bits
from tests.parity.support import own_set

LFQ_CASES = sorted(recording("lfq")[1]["cases"])
# Beside the listed cases: those of the published sizes, ids alone or entropies alone.
UNLISTED = sorted({key.split("/")[0] for key in recording("lfq")[0]} - set(LFQ_CASES))
PUBLISHED_IDS = [case for case in UNLISTED if f"{case}/ids_vqp" in recording("lfq")[0]]
PUBLISHED_ENTROPIES = [case for case in UNLISTED if f"{case}/sample_entropy" in recording("lfq")[0]]
ENTROPY_CASES = sorted(recording("lfq_entropy")[1]["cases"])
SPLITS = sorted(recording("lfq_factorized")[1]["cases"])
IBQ_CASES = sorted({key.split("/")[0] for key in recording("ibq_quantizer")[0]})

LOSSES = {
    "sample_entropy": "sample_entropy",
    "batch_entropy": "batch_entropy",
    "entropy": "entropy_loss",
    "commitment": "commit",
}
CLOSE: dict[str, float] = {"atol": 1e-5, "rtol": 0}


def quantizer(case: str) -> LFQ:
    told = recording("lfq")[1]["cases"][case]
    return LFQ(
        LFQConfig(
            bits=told["bits"],
            codebooks=told["num_codebooks"],
            temperature=told["temperature"],
            sample_weight=told["sample_weight"],
            batch_weight=told["batch_weight"],
        )
    )


def of(name: str, case: str) -> dict[str, Tensor]:
    return {
        key.removeprefix(f"{case}/"): value for key, value in recording(name)[0].items() if key.startswith(f"{case}/")
    }


def fresh(x: Tensor) -> Tensor:
    return x.clone().requires_grad_(True)


@pytest.mark.parametrize("case", LFQ_CASES)
def test_lfq_codes_and_ids(case: str) -> None:
    io, lfq = of("lfq", case), quantizer(case)
    d = lfq.config.bits
    out = lfq(io["x"])
    assert torch.equal(out.ids.flatten(), io["ids"])
    assert torch.equal(lfq.encode(io["x"]), out.ids)
    assert torch.equal(out.latents, io["quant"])
    axes = io["x"].shape[2:]
    assert torch.equal(lfq.lookup(out.ids, axes).flatten(2).transpose(1, 2), io["codes_from_ids"])
    assert torch.equal(ids_to_codes(out.ids, d) > 0, io["bits"])
    assert torch.equal(ids_to_codes(torch.arange(2**d), d), io["codebook"])
    assert torch.equal(reverse_bits(torch.arange(2**d), d), io["perm_official_to_vqp"])


@pytest.mark.parametrize("case", LFQ_CASES)
def test_lfq_losses_and_gradients(case: str) -> None:
    io, lfq = of("lfq", case), quantizer(case)
    x = fresh(io["x"])
    out = lfq(x)
    for ours, official in LOSSES.items():
        torch.testing.assert_close(getattr(out, ours), io[official], **CLOSE)
        (gradient,) = torch.autograd.grad(getattr(out, ours), x, retain_graph=True)
        expected = io[f"grad_{official}"]
        # The recorded gradients of saturated bits are rounding in part (5e-7); ours agree with float64 to 3e-10.
        assert (gradient - expected).abs().max() < 1e-6 + 1e-5 * expected.abs().max(), ours
    pull = (out.latents * io["w"]).sum()
    (gradient,) = torch.autograd.grad(pull, x, retain_graph=True)
    assert torch.equal(gradient, io["grad_straight_through"])
    (gradient,) = torch.autograd.grad(pull + 0.1 * out.entropy + 0.25 * out.commitment, x)
    assert relative(gradient, io["grad_total"]) < 1e-5


@pytest.mark.parametrize("case", LFQ_CASES)
def test_the_other_library_has_the_same_codes_under_other_numbers(case: str) -> None:
    told, io, lfq = recording("lfq")[1]["cases"][case], of("lfq", case), quantizer(case)
    out = lfq.eval()(io["x"])
    runs = sorted({key.split("/")[0] for key in io if key.startswith("vqp")})
    assert runs == sorted(key for key in told if key.startswith("vqp"))
    for run in runs:
        theirs, options = {key: io[f"{run}/{key}"] for key in ("quant", "ids", "commit")}, told[run]
        ids = theirs["ids"].reshape(out.ids.shape)
        assert torch.equal(reverse_bits(ids, lfq.config.bits), out.ids)
        assert torch.equal(ids, reverse_bits(out.ids, lfq.config.bits))
        side = lfq.config.bits**-0.5 if options.get("spherical") else options.get("codebook_scale", 1.0)
        torch.testing.assert_close(theirs["quant"], side * out.latents.sign(), atol=2e-6, rtol=0)
        if not options.keys() & {"spherical", "codebook_scale", "soft_clamp_input_value"}:
            # Plain: the same losses but for its clamp of small chances.
            torch.testing.assert_close(theirs["commit"], io["commit"], **CLOSE)
            rows, temperature = io["x"].flatten(2).mT.reshape(-1, lfq.config.bits), 1 / options["inv_temperature"]
            terms = bit_entropies(rows, temperature=temperature)
            torch.testing.assert_close(terms.sample, io[f"{run}/sample_entropy"], atol=1e-3, rtol=0)


def with_bits(io: dict[str, Tensor]) -> LFQ:
    """One codebook of as many bits as there are channels: the default, 18, in the published sizes."""
    return LFQ(LFQConfig(bits=io["x"].shape[1]))


def test_published_bits_are_recorded() -> None:
    bits = {of("lfq", case)["x"].shape[1] for case in (*PUBLISHED_IDS, *PUBLISHED_ENTROPIES)}
    assert bits == {LFQConfig().bits} or not own_set("magvit2")


@pytest.mark.parametrize("case", PUBLISHED_IDS)
def test_lfq_with_eighteen_bits(case: str) -> None:
    io = of("lfq", case)
    lfq = with_bits(io).eval()
    out = lfq(io["x"])
    assert torch.equal(out.ids.flatten(), io["ids"])
    assert torch.equal(reverse_bits(out.ids, lfq.config.bits).flatten(), io["ids_vqp"])
    assert torch.equal(out.latents, io["quant"])


@pytest.mark.parametrize("case", PUBLISHED_ENTROPIES)
def test_lfq_entropies_of_eighteen_bits(case: str) -> None:
    io = of("lfq", case)
    lfq, x = with_bits(io), fresh(io["x"])
    out = lfq(x)
    assert torch.equal(out.ids.flatten(), io["ids"])
    torch.testing.assert_close(out.commitment, io["commit"], **CLOSE)
    torch.testing.assert_close(out.entropy, io["entropy_loss"], atol=2e-4, rtol=0)
    for name in ("sample_entropy", "batch_entropy"):
        # The recorded sums run over 262144 numbers in float32; README: 2e-4.
        torch.testing.assert_close(getattr(out, name), io[name], atol=2e-4, rtol=0)
        (gradient,) = torch.autograd.grad(getattr(out, name), x, retain_graph=True)
        assert relative(gradient, io[f"grad_{name}"]) < 2e-4


def test_every_key_of_lfq_is_read() -> None:
    # Losses of the other library under options that we have not.
    foreign = re.compile(r"vqp\d_it\d+/(aux_loss|grad_aux|grad_total|batch_entropy|sample_entropy|commit|ids|quant)$")
    known = {"x", "w", "ids", "bits", "quant", "codes_from_ids", "codebook", "perm_official_to_vqp", *LOSSES.values()}
    known |= {f"grad_{name}" for name in (*LOSSES.values(), "straight_through", "total")}
    for key in recording("lfq")[0]:
        case, name = key.split("/", 1)
        assert name in known or foreign.match(name) or case in (*PUBLISHED_IDS, *PUBLISHED_ENTROPIES), key


@pytest.mark.parametrize("case", ENTROPY_CASES)
def test_entropies_of_any_logits(case: str) -> None:
    told, io = recording("lfq_entropy")[1]["cases"][case], of("lfq_entropy", case)
    assert told["masked"] == ("mask" in io)
    logits = fresh(io["logits"])
    found = entropies(logits, temperature=told["temperature"], mask=io.get("mask"))
    loss = told["sample_weight"] * found.sample - told["batch_weight"] * found.batch
    torch.testing.assert_close(found.sample, io["sample_entropy"], **CLOSE)
    torch.testing.assert_close(found.batch, io["batch_entropy"], **CLOSE)
    torch.testing.assert_close(loss, io["loss"], **CLOSE)
    assert relative(torch.autograd.grad(loss, logits)[0], io["grad"]) < 1e-4


@pytest.mark.parametrize("case", SPLITS)
def test_ids_in_parts(case: str) -> None:
    told, io = recording("lfq_factorized")[1]["cases"][case], of("lfq_factorized", case)
    sizes, axes = told["factorized_bits"], (told["h"], told["w"])
    lfq = LFQ(LFQConfig(bits=told["bits"]))
    ids = lfq.encode(io["x"])
    assert torch.equal(ids.flatten(), io["ids"])
    pre, post = factor_ids(ids, sizes)
    assert torch.equal(pre.flatten(), io["ids_pre"])
    assert torch.equal(post.flatten(), io["ids_post"])
    assert torch.equal(join_ids((pre, post), sizes), ids)
    for part, size, codes in ((pre, sizes[0], io["codes_pre"]), (post, sizes[1], io["codes_post"])):
        assert torch.equal(LFQ(LFQConfig(bits=size)).lookup(part, axes), codes)
    assert torch.equal(lfq.lookup(ids, axes), io["codes"])
    torch.testing.assert_close(lfq(io["x"]).latents, io["quant"], atol=0, rtol=0)


@pytest.mark.parametrize("case", IBQ_CASES)
def test_ibq(case: str) -> None:
    told, io = recording("ibq_quantizer")[1][case], of("ibq_quantizer", case)
    config = QuantizerConfig(
        codebook_size=told["n_e"],
        dim=told["e_dim"],
        commitment_weight=told["beta"],
        entropy_weight=1.0,
        entropy_temperature=told["entropy_temperature"],
    )
    quantizer = IndexQuantizer(config, sample_weight=told["sample_weight"], batch_weight=told["batch_weight"])
    quantizer.load_state_dict({"codebook": io["embedding.weight"]})
    z, codebook = fresh(io["z"]), quantizer.codebook
    out = quantizer(z)
    assert torch.equal(out.codes.flatten(), io["ids"])
    assert torch.equal(quantizer.encode(io["z"]), out.codes)
    assert torch.equal(quantizer.lookup(out.codes, z.shape[2:]), io["entry"])
    torch.testing.assert_close(out.latents, io["z_q"], **CLOSE)
    terms = quantizer._quantize(quantizer._rows(z), with_loss=True)[2]
    losses = {
        "st": (out.latents * io["w"]).sum(),
        "quant_loss": terms["quantize"] + terms["q_latent"] + terms["e_latent"],
        "entropy_loss": terms["entropy"],
    }
    torch.testing.assert_close(losses["quant_loss"], io["quant_loss"], **CLOSE)
    torch.testing.assert_close(losses["entropy_loss"], io["entropy_loss"], **CLOSE)
    torch.testing.assert_close(out.loss, io["quant_loss"] + io["entropy_loss"], **CLOSE)
    found = entropies(quantizer._rows(z) @ codebook.t(), temperature=told["entropy_temperature"])
    torch.testing.assert_close(found.sample, io["sample_entropy"], **CLOSE)
    torch.testing.assert_close(found.batch, io["batch_entropy"], **CLOSE)
    for name, loss in losses.items():
        by_z, by_codebook = torch.autograd.grad(loss, (z, codebook), retain_graph=True)
        assert relative(by_z, io[f"grad_z_{name}"]) < 1e-5, name
        assert relative(by_codebook, io[f"grad_embedding_{name}"]) < 1e-5, name
