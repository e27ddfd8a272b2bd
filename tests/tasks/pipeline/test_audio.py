"""Pipelines of sound: any length, first codebooks alone, two transformers, and the codec that the tokens belong to.

Shapes: B batch, T frames, K codebooks, V codes.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskgen.checkpoint import save_module
from maskgen.conditioning import Cond
from maskgen.models.base import MaskedTransformer
from maskgen.models.modern import ModernConfig, ModernTransformer
from maskgen.published.vampnet.blocks import VampNetConfig
from maskgen.published.vampnet.transformer import VampNetTransformer
from maskgen.sampling.settings import Sampling
from maskgen.tasks.conditions.request import Request
from maskgen.tasks.image.generation import generate
from maskgen.tasks.model_folder import PipelineConfig
from maskgen.tasks.pipeline import Pipeline
from maskgen.testing import OracleModel
from maskgen.tokenizers.audio.toy import ToyAudioTokenizer, ToyAudioTokenizerConfig
from tests.support import toy_pipeline

V, HOP, FRAMES = 8, 4, 12
STEPS = Sampling(steps=3)


def codec(codebooks: int = 3, **changes: Any) -> ToyAudioTokenizer:
    return ToyAudioTokenizer(ToyAudioTokenizerConfig(codebooks=codebooks, levels=V, hop=HOP, **changes))


def model(codebooks: int = 3, seed: int = 0, **changes: Any) -> ModernTransformer:
    """Random weights, under which every token and place matters."""
    sizes: dict[str, Any] = {"vocab_size": V, "num_codebooks": codebooks, "num_classes": 0, "axes": (FRAMES,)}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = ModernTransformer(ModernConfig(**{**sizes, "width": 16, "layers": 1, "heads": 2, **changes}))
        for module in made.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.3)
    return made


def pipeline(coarse: int = 3, fine: int | None = None, **config: Any) -> Pipeline:
    second = None if fine is None else model(fine, seed=1)
    return Pipeline(
        codec(), model(coarse), PipelineConfig(signal_size=(HOP * FRAMES - 1,), **config), "cpu", fine=second
    )


def tokens(batch: int, frames: int, codebooks: int, seed: int = 0) -> Tensor:
    return torch.randint(V, (batch, frames, codebooks), generator=torch.Generator().manual_seed(seed))


def middle(like: Tensor) -> Tensor:
    mask = torch.zeros_like(like, dtype=torch.bool)
    mask[:, 3:-3] = True
    return mask


def fill(pipe: Pipeline, known: Tensor, mask: Tensor, seeds: Sequence[int] = (4, 5, 6), **changes: Any) -> Tensor:
    axes = (known.shape[1],)
    own = {name: changes.pop(name) for name in ("axes", "batch_size", "start_step") if name in changes}
    request = Request(**{"seeds": seeds, "sampling": STEPS, **changes})
    return pipe.fill(known, mask, request, **{"axes": axes, **own})


class Oracle(MaskedTransformer):
    """Answers with ``answer`` and keeps what it was shown."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.oracle = OracleModel(answer, V)
        self.vocab_size, self.num_codebooks, self.num_classes, self.null_class = V, answer.shape[-1], 0, True
        self.seen: list[Tensor] = []

    def forward(self, tokens: Tensor, cond: Cond, axes: Sequence[int] | None = None) -> Tensor:
        assert tuple(axes or ()) == (tokens.shape[1],)
        assert cond.labels is None
        self.seen.append(tokens.clone())
        return self.oracle(tokens)


def test_a_round_trip_changes_nothing(tmp_path: Path) -> None:
    before = pipeline(2, fine=3, fine_sampling=Sampling(steps=2))
    before.save_pretrained(tmp_path)
    loaded = Pipeline.from_pretrained(tmp_path, device="cpu")
    assert loaded.config == before.config
    assert loaded.config.tokenizer_identity == codec().identity()
    assert (loaded.modality, loaded.axes, loaded.grid_size) == ("audio", (FRAMES,), (HOP * FRAMES,))
    known = tokens(3, FRAMES, 3)
    assert torch.equal(fill(loaded, known, middle(known)), fill(before, known, middle(known)))
    assert loaded.fine is not None
    assert not any(weight.requires_grad for weight in loaded.fine.parameters())


def test_saving_a_model_without_a_fine_part_over_one_with(tmp_path: Path) -> None:
    pipeline(2, fine=3).save_pretrained(tmp_path)
    assert Pipeline.from_pretrained(tmp_path, device="cpu").fine is not None
    pipeline(2).save_pretrained(tmp_path)
    assert Pipeline.from_pretrained(tmp_path, device="cpu").fine is None


def test_encode_and_decode_any_length() -> None:
    pipe = pipeline()
    sound = torch.rand(2, 1, 31, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found, scale = pipe.encode_scaled(sound)
    assert (found.shape, scale) == ((2, 8, 3), None)
    assert torch.equal(found, pipe.encode(sound))
    decoded = pipe.decode(found, (8,))
    assert (decoded.shape, decoded.dtype) == ((2, 1, 32), torch.float32)  # whole hops, nothing cropped, nothing clamped
    assert decoded.min() < 0
    assert torch.equal(pipe.encode(decoded), found)
    louder = pipe.decode(found, (8,), torch.tensor([1.0, 3.0]))
    assert torch.equal(louder, decoded * torch.tensor([1.0, 3.0])[:, None, None])
    with pytest.raises(ValueError, match="encode_scaled: only sound has it, but this model's modality is image"):
        toy_pipeline().encode_scaled(torch.zeros(1, 3, 16, 16))
    with pytest.raises(ValueError, match="scale: only sound has it"):
        toy_pipeline().decode(torch.zeros(1, 64, 1, dtype=torch.long), None, torch.ones(1))


def test_decoding_in_parts_keeps_each_scale() -> None:
    pipe = pipeline()
    known, scale = tokens(40, 5, 3), torch.arange(1.0, 41.0)
    whole = pipe.decode(known, (5,), scale)
    assert torch.equal(whole[37:38], pipe.decode(known[37:38], (5,), scale[37:38]))


def test_filling_any_length() -> None:
    pipe = pipeline()
    for frames in (7, FRAMES, 29):
        known = tokens(3, frames, 3)
        mask = middle(known)
        found = fill(pipe, known, mask)
        assert found.shape == known.shape
        assert torch.equal(found[~mask], known[~mask])
        assert found.max() < V
        assert torch.equal(found, fill(pipe, torch.where(mask, 7 - known, known), mask))


@pytest.mark.parametrize(("coarse", "fine"), [(3, None), (2, 3)])
def test_an_item_does_not_depend_on_its_batch(coarse: int, fine: int | None) -> None:
    pipe = pipeline(coarse, fine)
    known = tokens(3, 10, 3)
    mask = middle(known)
    mask[1] = True  # rows may hide different places
    whole = fill(pipe, known, mask)
    for batch_size in (1, 2):
        assert torch.equal(fill(pipe, known, mask, batch_size=batch_size), whole)
    for row in range(3):
        assert torch.equal(fill(pipe, known[row : row + 1], mask[row : row + 1], [4 + row]), whole[row : row + 1])
    assert not torch.equal(fill(pipe, known, mask, [7, 8, 9]), whole)


def test_a_coarse_model_alone() -> None:
    pipe = pipeline(2)
    known = tokens(3, 9, 2)
    found = fill(pipe, known, middle(known))
    assert pipe.decode(found, (9,)).shape == (3, 1, 36)
    with pytest.raises(ValueError, match="tokens: got 3 codebooks, expected 2"):
        fill(pipe, tokens(3, 9, 3), middle(tokens(3, 9, 3)))


def test_the_fine_transformer_adds_what_the_coarse_one_leaves_open() -> None:
    answer = tokens(1, 9, 3, seed=5)[0]
    coarse, fine = Oracle(answer[:, :2]), Oracle(answer)
    pipe = Pipeline(codec(), coarse, PipelineConfig(signal_size=(36,)), "cpu", fine=fine)
    known = tokens(2, 9, 3)
    mask = middle(known)
    mask[:, 0, 2] = True  # a place whose finest token alone is hidden
    steps: list[int] = []
    found = fill(pipe, known, mask, [1, 2], fine_sampling=Sampling(steps=2), callback=lambda step: steps.append(1))
    assert torch.equal(found, torch.where(mask, answer.expand(2, -1, -1), known))
    assert (len(coarse.seen), len(fine.seen), len(steps)) == (3, 2, 5)
    assert all(seen.shape[-1] == 2 for seen in coarse.seen)
    # the fine one sees what the coarse one decided, and hides no more than was asked
    assert torch.equal(fine.seen[0][..., :2], found[..., :2])
    assert torch.equal(fine.seen[0][..., 2] == V, mask[..., 2])
    only = fill(pipe, known[..., :2], mask[..., :2], [1, 2])
    assert torch.equal(only, found[..., :2])
    assert len(fine.seen) == 2  # it was not asked
    with pytest.raises(ValueError, match="tokens: got 1 codebooks, expected 2 or 3"):
        fill(pipe, known[..., :1], mask[..., :1], [1, 2])


@pytest.mark.parametrize("sampler", ["maskgit", "vampnet", "codebook"])
def test_nothing_coarse_or_nothing_at_all_is_hidden(sampler: Any) -> None:
    pipe, known = pipeline(2, 3), tokens(2, 9, 3)
    settings = Sampling(sampler=sampler, steps=2)
    mask = torch.zeros_like(known, dtype=torch.bool)
    assert torch.equal(fill(pipe, known, mask, [1, 2], sampling=settings, fine_sampling=settings), known)
    mask[..., 2] = True
    found = fill(pipe, known, mask, [1, 2], sampling=settings, fine_sampling=settings)
    assert torch.equal(found[..., :2], known[..., :2])
    assert found.max() < V
    assert not torch.equal(found, known)


def test_attention_override(tmp_path: Path) -> None:
    pipeline(2, 3).save_pretrained(tmp_path)
    loaded = Pipeline.from_pretrained(tmp_path, device="cpu", attention="eager")
    assert loaded.fine is not None
    assert loaded.fine.config.attention == loaded.transformer.config.attention == "eager"
    config = VampNetConfig(vocab_size=V, num_codebooks=3, code_width=1, axes=(12,), width=8, layers=1, heads=2)
    Pipeline(codec(), VampNetTransformer(config), PipelineConfig(signal_size=(48,)), "cpu").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="attention: got 'eager', but VampNetConfig has no choice of back-end"):
        Pipeline.from_pretrained(tmp_path, device="cpu", attention="eager")


def test_the_fine_transformer_has_settings_and_noise_of_its_own() -> None:
    known = tokens(1, 12, 3)
    mask = torch.ones_like(known, dtype=torch.bool)
    two, five = pipeline(2, 3, fine_sampling=Sampling(steps=2)), pipeline(2, 3, fine_sampling=Sampling(steps=5))
    first, second = fill(two, known, mask, [3]), fill(five, known, mask, [3])
    assert torch.equal(first[..., :2], second[..., :2])
    assert not torch.equal(first[..., 2], second[..., 2])
    assert torch.equal(fill(five, known, mask, [3], fine_sampling=Sampling(steps=2)), first)
    assert pipeline(2, 3).config.fine_sampling == Sampling()
    # were the noise of both stages the same, uniform models would agree where the shapes do
    flat = Oracle(torch.zeros(12, 3, dtype=torch.long))
    flat.oracle.logits.zero_()
    narrow = Oracle(torch.zeros(12, 2, dtype=torch.long))
    narrow.oracle.logits.zero_()
    pipe = Pipeline(codec(), narrow, PipelineConfig(signal_size=(48,)), "cpu", fine=flat)
    found = fill(pipe, known, mask, [3], sampling=Sampling(steps=1), fine_sampling=Sampling(steps=1))[0]
    same = Pipeline(codec(), flat, PipelineConfig(signal_size=(48,)), "cpu")
    alone = fill(same, known, mask, [3], sampling=Sampling(steps=1))[0]
    assert not torch.equal(found[:, 2], alone[:, 2])


def test_a_coarse_model_with_classes(tmp_path: Path) -> None:
    coarse = model(2, num_classes=2)
    config = PipelineConfig(signal_size=(48,), class_names=("dog", "cat"))
    pipe = Pipeline(codec(), coarse, config, "cpu", fine=model(3, seed=1))
    known = tokens(2, 12, 3)
    mask = torch.ones_like(known, dtype=torch.bool)
    dogs, cats = (
        fill(pipe, known, mask, [1, 2], cond=pipe.cond(pipe.class_ids([name] * 2))) for name in ("dog", "cat")
    )
    assert not torch.equal(dogs, cats)


def test_parts_that_do_not_fit() -> None:
    config = PipelineConfig(signal_size=(48,))
    with pytest.raises(ValueError, match="tokenizer and transformer do not fit: 8 codes x 3 against 8 x 4"):
        Pipeline(codec(), model(4), config, "cpu")
    with pytest.raises(ValueError, match="do not fit: 8 codes x 3 against 9 x 2"):
        Pipeline(codec(), model(2, vocab_size=9), config, "cpu")
    with pytest.raises(ValueError, match="the first has all 3 codebooks of the tokenizer; leave one out"):
        Pipeline(codec(), model(3), config, "cpu", fine=model(3))
    with pytest.raises(ValueError, match="tokenizer and fine transformer do not fit: 8 codes x 3 against 8 x 2"):
        Pipeline(codec(), model(1), config, "cpu", fine=model(2))


def test_another_codec_is_refused(tmp_path: Path) -> None:
    """Of the same sizes even: its codes are other sounds."""
    pipeline(2).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "pipeline.json").read_text(encoding="utf-8"))["config"]["tokenizer_identity"]
    assert written == codec().identity()
    save_module(codec(sample_rate=16000), tmp_path / "tokenizer")
    with pytest.raises(ValueError, match=rf"got ToyAudioTokenizer-16000-4-\w+, but .* the codes of {written}; put"):
        Pipeline.from_pretrained(tmp_path, device="cpu")


def test_stereo() -> None:
    pipe = Pipeline(codec(channels=2), model(3), PipelineConfig(signal_size=(48,)), "cpu")
    assert pipe.axes == (12,)
    assert pipe.decode(pipe.encode(torch.zeros(1, 2, 20)), (5,)).shape == (1, 2, 20)


def test_image_tasks_refuse_it() -> None:
    with pytest.raises(ValueError, match="generate needs an image model, but this model's modality is audio"):
        generate(pipeline(), None)
    with pytest.raises(ValueError, match="infilling needs an audio model, but this model's modality is image"):
        toy_pipeline().require("audio", "infilling")
