"""VampNet's interface against what the official one recorded: masks, chunks, variations, sound.

The recorded draws of each run are one flat series in the order of the calls; ``Recorded`` hands them to our sampler.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from maskgen.published.vampnet.prompt import PromptNoise, VampPrompt
from maskgen.published.vampnet.transformer import VampNetTransformer, read_vampnet, with_code_tables
from maskgen.sampling.settings import Sampling, VampNetChoices
from maskgen.tasks.audio.vampnet import FINE, NoiseOf, VampNet, beat_frames
from maskgen.tokenizers.published.audio.lac import LACConfig, LACTokenizer, convert
from tests.parity.support import check_kinds, files, load, metadata

(PATH,) = files("vampnet", "interface.safetensors")
STORED, META = load(PATH), metadata(PATH)
CASES: dict[str, Any] = META["cases"]
SIZES, CODEC = META["config"], META["codec"]
ROWS, _, FRAMES = STORED["codec.codes"].shape
COARSE_CHUNK, FINE_CHUNK = 0.2, 0.07  # seconds, see the fixtures' README
AUDIO = {"atol": 5e-5, "rtol": 0.0}
OURS = {  # official argument -> field of VampPrompt; seconds are turned into frames first
    **{"rand_mask_intensity": "masked_share", "prefix_s": "prefix", "suffix_s": "suffix", "ncc": "keep"},
    **{"periodic_prompt": "period", "periodic_prompt_width": "width", "upper_codebook_mask": "mask_from"},
    **{"onset_mask_width": "onset_width", "_dropout": "dropout"},
}


class Recorded:
    """The recorded draws of one run, in the order of the calls; ``Noise`` for one run of a model."""

    def __init__(self, run: str) -> None:
        self.shapes = list(CASES[f"{run}.draw_shapes"])
        self.series = {kind: STORED[f"{run}.draw_{kind}"] for kind in ("exponential", "uniform")}
        self.place = dict.fromkeys(self.series, 0)

    def __call__(self, number: int) -> "Recorded":
        return self

    def next(self, kind: str) -> Tensor:
        expected, shape = self.shapes.pop(0)
        assert expected == kind, "the calls come in another order than the official ones"
        first = self.place[kind]
        self.place[kind] = first + torch.Size(shape).numel()
        return self.series[kind][first : self.place[kind]].view(shape)

    def sample(self, step: int, shape: Sequence[int]) -> Tensor:
        """Official tokens are argmax(p / e): Gumbel noise -log e. Conditioning codebooks have no draws and need none."""
        rows, frames, books, codes = shape
        sampled = self.next("exponential").view(rows, frames, -1, codes)
        return torch.nn.functional.pad(-sampled.log(), (0, 0, books - sampled.shape[2], 0))

    def choice(self, step: int, shape: Sequence[int]) -> Tensor:
        rows, frames, books = shape
        sampled = self.next("uniform").view(rows, frames, -1)
        return torch.nn.functional.pad(-(-sampled.log()).log(), (books - sampled.shape[2], 0))

    def used_up(self) -> bool:
        return not self.shapes and all(self.place[kind] == len(self.series[kind]) for kind in self.series)


def model(kind: str) -> VampNetTransformer:
    (path,) = files("vampnet", f"{kind}_official_weights.pth")
    config, state = read_vampnet(path)
    built = VampNetTransformer(config)
    built.load_state_dict(with_code_tables(state, STORED["codebooks"], config))
    return built.eval()


@pytest.fixture(scope="module")
def interface() -> VampNet:
    (path,) = files("vampnet", "lac_params.safetensors")
    config = LACConfig(
        sample_rate=CODEC["sample_rate"],
        encoder_dim=CODEC["encoder_dim"],
        encoder_rates=tuple(CODEC["encoder_rates"]),
        decoder_dim=CODEC["decoder_dim"],
        decoder_rates=tuple(CODEC["decoder_rates"]),
        codebooks=SIZES["nf"],
        codebook_size=SIZES["vocab"],
        codebook_dim=SIZES["lat"],
    )
    codec = LACTokenizer(config)
    codec.load_state_dict(convert(load(path), config))
    coarse, fine = model("coarse"), model("c2f")
    return VampNet(codec, coarse, fine, coarse_seconds=COARSE_CHUNK, fine_seconds=FINE_CHUNK)


def ours(name: str) -> Tensor:
    """A recorded ``[B, K, T]`` as our ``[B, T, K]``; masks as bool."""
    found = STORED[name].transpose(1, 2)
    return found.bool() if "mask" in name and "masked" not in name and "nomask" not in name else found


def masked(rows: int) -> Tensor:
    """The mask of the runs, for so many rows."""
    return ours("vamp.mask")[:rows].expand(rows, -1, -1)


def official(sampling: Sampling, **changes: Any) -> Sampling:
    """Settings with the official schedule over the whole batch."""
    return sampling.override(vampnet=VampNetChoices(batch_counts=True), **changes)


def test_every_run_is_replayed() -> None:
    """What is recorded, and where it is looked at; a new recording must find its test."""
    runs = {name.removesuffix(".draw_shapes") for name in CASES}
    assert runs == {*BUILD, *BEATS, *RUNS}
    assert BUILD
    assert BEATS
    named = ["coarse_vamp", "coarse_to_fine", "coarse_to_fine_nomask_from_coarse"]
    check_kinds("vampnet", RUNS, [*named, "vamp", "vamp_stretch2", "vamp_feedback2"])


def test_the_codec(interface: VampNet) -> None:
    assert torch.equal(interface.codec.encode(STORED["audio"]), ours("codec.codes"))
    assert torch.allclose(interface.codec.code_tables(), STORED["codebooks"])
    assert torch.allclose(interface.decode(ours("codec.codes")), STORED["codec.audio_out"], **AUDIO)


def test_seconds_and_frames(interface: VampNet) -> None:
    for seconds, frames in zip(STORED["s2t.seconds"].tolist(), STORED["s2t.tokens"].tolist(), strict=True):
        assert interface.frames(seconds) == frames
    assert interface.seconds(FRAMES) == pytest.approx(FRAMES * CODEC["hop_length"] / CODEC["sample_rate"])
    predicted = {"coarse_vamp": SIZES["nc"], "coarse_to_fine": SIZES["nf"] - SIZES["nc"]}
    lengths = {run: math.prod(CASES[f"{run}.draw_shapes"][0][1][:-1]) // (ROWS * k) for run, k in predicted.items()}
    assert interface.coarse_chunk == lengths["coarse_vamp"]
    # In floating point 0.07 s x 100 frames are 7.000000000000001, so the recorded chunks have 8.
    assert interface.fine_chunk == lengths["coarse_to_fine"]


BUILD = [name for name in CASES if name.startswith("build_mask")]


@pytest.mark.parametrize("name", BUILD)
def test_build_mask(interface: VampNet, name: str) -> None:
    fields = {}
    for argument, value in CASES[name].items():
        fields[OURS[argument]] = interface.frames(value) if argument.endswith("_s") else value
    prompt = VampPrompt(**fields)
    offsets = STORED[f"{name}.randint0"]  # drawn only where there is a period; then the dropped frames follow
    dropped = STORED[f"{name}.randint1"] if prompt.period else offsets
    shift = offsets if prompt.period else torch.zeros(1, dtype=torch.long)
    cells = STORED[f"{name}.bernoulli_u"].transpose(1, 2)
    # One offset and one set of dropped frames for all rows.
    draws = PromptNoise(tokens=cells, shift=shift.expand(ROWS), dropped=dropped.expand(ROWS, -1))
    made = interface.build_mask(ours("codec.codes"), prompt, draws=draws)
    assert torch.equal(made, ours(f"{name}.out"))


BEATS = [name for name in CASES if name.startswith("beat_mask")]
CHOICES = {  # official argument -> ours, for which beats and for what lies around them
    **{"mask_upbeats": "use_beats", "mask_downbeats": "use_downbeats"},
    **{"beat_downsample_factor": "every", "downbeat_downsample_factor": "every_downbeat"},
}
AROUND = {"before_beat_s": "before", "after_beat_s": "after", "invert": "invert", "dropout": "dropout"}


@pytest.mark.parametrize("name", BEATS)
def test_beat_mask(interface: VampNet, name: str) -> None:
    arguments = CASES[name]
    assert set(arguments) <= {*CHOICES, *AROUND}
    beats, downbeats = ([interface.frames(time) for time in STORED[kind].tolist()] for kind in ("beats", "downbeats"))
    chosen = beat_frames(beats, downbeats, **{CHOICES[key]: arguments[key] for key in arguments if key in CHOICES})
    settings = {AROUND[key]: arguments[key] for key in arguments if key in AROUND}
    frames = STORED[f"{name}.out"].shape[2]
    if "dropout" in settings:  # the official draws come beat after beat, then downbeat after downbeat
        others, downs = ([beat for beat in chosen if (beat in downbeats) is down] for down in (False, True))
        before, after = (interface.frames(settings.get(key, 0.0)) for key in ("before", "after"))
        positions = [at for beat in others + downs for at in range(max(beat - before, 0), min(beat + after, frames))]
        assert len(set(positions)) == len(positions) == len(STORED[f"{name}.bernoulli_u"])
        settings["uniforms"] = torch.ones(1, frames)
        settings["uniforms"][0, positions] = STORED[f"{name}.bernoulli_u"]
    duration = STORED["audio"].shape[2] / interface.codec.sample_rate
    made = interface.beat_mask(duration, chosen, **settings)
    expected = ours(f"{name}.out")
    assert torch.equal(made.expand_as(expected), expected)


def steps_of(run: str, chunks: int, others: int = 0) -> int:
    """Steps a chunk was sampled in: each has drawn exponentials once; ``others`` belong to the second model."""
    drawn = sum(kind == "exponential" for kind, _ in CASES[f"{run}.draw_shapes"])
    steps, rest = divmod(drawn - others, chunks)
    assert steps > 0 == rest
    return steps


def coarse_vamp(interface: VampNet, run: str, noise: NoiseOf) -> tuple[Tensor, Tensor]:
    steps = steps_of(run, math.ceil(FRAMES / interface.coarse_chunk))
    settings = official(FINE, steps=steps, temperature=0.9)  # README
    return interface.coarse_vamp(ours("codec.codes"), masked(ROWS), sampling=settings, noise=noise)


def fine_steps(interface: VampNet, run: str) -> int:
    return steps_of(run, math.ceil(FRAMES / interface.fine_chunk))


def coarse_to_fine(interface: VampNet, run: str, noise: NoiseOf) -> tuple[Tensor, Tensor]:
    tokens, settings = ours("coarse_vamp.out0"), official(FINE, steps=fine_steps(interface, run))
    return interface.coarse_to_fine(tokens, masked(len(tokens)), sampling=settings, noise=noise)


def coarse_to_fine_nomask(interface: VampNet, run: str, noise: NoiseOf) -> tuple[Tensor, Tensor]:
    tokens, settings = ours("coarse_vamp.out0")[..., : SIZES["nc"]], official(FINE, steps=fine_steps(interface, run))
    made, shown = interface.coarse_to_fine(tokens, sampling=settings, noise=noise)
    assert (shown[..., SIZES["nc"] :] == SIZES["vocab"]).all(), "nothing of the fine codebooks is given"
    return made, shown


def vamp(interface: VampNet, run: str, noise: NoiseOf) -> tuple[Tensor, Tensor]:
    """Variations are the rows of the result; what is stretched or fed back stands in the name."""
    rows, _, frames = STORED[f"{run}.out0"].shape
    stretch, feedback = (int(found[1]) if (found := re.search(rf"_{word}(\d+)", run)) else 1 for word in CHANGES)
    assert frames == FRAMES * stretch
    fine = fine_steps(interface, "coarse_to_fine")  # the README has them alike
    others = fine * math.ceil(frames / interface.fine_chunk)
    steps = steps_of(run, feedback * math.ceil(frames / interface.coarse_chunk), others)
    return interface.vamp(
        ours("codec.codes").expand(rows, -1, -1),
        masked(rows),
        sampling=official(FINE, steps=steps),
        fine_sampling=official(FINE, steps=fine),
        noise=noise,
        time_stretch=stretch,
        feedback_steps=feedback,
    )


CHANGES = ("stretch", "feedback")
KINDS = {
    "coarse_vamp": coarse_vamp,
    "coarse_to_fine": coarse_to_fine,
    "coarse_to_fine_nomask_from_coarse": coarse_to_fine_nomask,
    r"vamp(_(stretch|feedback)\d+)*": vamp,
}
RUNS = {
    name: made
    for name in (key.removesuffix(".draw_shapes") for key in CASES)
    for pattern, made in KINDS.items()
    if re.fullmatch(pattern, name)
}


@pytest.mark.parametrize("name", RUNS)
def test_runs(interface: VampNet, name: str) -> None:
    noise = Recorded(name)
    tokens, shown = RUNS[name](interface, name, noise)
    assert noise.used_up(), "recorded draws are left over"
    assert torch.equal(tokens, ours(f"{name}.out0"))
    if f"{name}.out1" in STORED:
        assert torch.equal(shown, ours(f"{name}.out1"))


def test_masked_tokens_sound_like_token_0(interface: VampNet) -> None:
    expected = STORED["decode_masked.audio"]
    sound = interface.decode(ours("vamp.out1")[: len(expected)])
    assert sound.shape == expected.shape
    assert torch.allclose(sound, expected, **AUDIO)


def test_an_item_is_the_same_in_any_batch(interface: VampNet) -> None:
    tokens, mask = ours("codec.codes")[:1], masked(1)
    both, shown = interface.vamp(tokens.expand(2, -1, -1), mask.expand(2, -1, -1), seeds=[3, 8])
    alone, _ = interface.vamp(tokens, mask, seeds=[8])
    assert torch.equal(both[1:], alone)
    assert not torch.equal(both[0], both[1])
    assert torch.equal(both[shown < SIZES["vocab"]], shown[shown < SIZES["vocab"]]), "what is given stays"


def test_equal_chunks_have_their_own_noise(interface: VampNet) -> None:
    frames = interface.coarse_chunk
    tokens = ours("codec.codes")[:, :frames].repeat(1, 2, 1)
    made, shown = interface.coarse_vamp(tokens, torch.ones_like(tokens, dtype=torch.bool))
    assert (shown == SIZES["vocab"]).all(), "nothing is given, so the edges of chunks are not"
    coarse = made[..., : SIZES["nc"]]
    assert not torch.equal(coarse[:, :frames], coarse[:, frames:])
    assert torch.equal(made[..., SIZES["nc"] :], tokens[..., SIZES["nc"] :])


def test_without_a_fine_model_the_coarse_codebooks_are_left(interface: VampNet) -> None:
    alone = VampNet(interface.codec, interface.coarse, coarse_seconds=COARSE_CHUNK)
    made, shown = alone.vamp(ours("codec.codes"), masked(ROWS))
    assert made.shape == shown.shape == (ROWS, FRAMES, SIZES["nc"])
    assert alone.decode(made).shape == STORED["codec.audio_out"].shape
    with pytest.raises(ValueError, match="no fine model"):
        alone.coarse_to_fine(made)


def test_preprocessing(interface: VampNet) -> None:
    rate, hop = CODEC["sample_rate"], CODEC["hop_length"]
    samples, frames = rate + 7, math.ceil((rate + 7) / hop)
    stereo = 0.1 * torch.rand(2, 2 * rate + 13, generator=torch.Generator().manual_seed(0))
    ready = interface.preprocess(stereo, 2 * rate)
    assert ready.shape == (1, 1, frames * hop), "a second and 7 samples at the codec's rate, in whole frames"
    assert (ready[..., samples:] == 0).all()
    assert interface.encode(stereo, 2 * rate).shape == (1, frames, SIZES["nf"])
    loud = interface.preprocess(stereo * 7, 2 * rate)
    assert torch.allclose(ready, loud, atol=1e-5), "one loudness"


def test_refusals(interface: VampNet) -> None:
    tokens, mask = ours("codec.codes"), masked(ROWS)
    with pytest.raises(ValueError, match="expected both"):
        interface.coarse_vamp(tokens, mask[:, 1:])
    with pytest.raises(ValueError, match="time_stretch 0"):
        interface.vamp(tokens, mask, time_stretch=0)
    with pytest.raises(ValueError, match="one of the two"):
        interface.vamp(tokens, mask, seeds=[1], noise=Recorded("vamp"))
    with pytest.raises(ValueError, match="coarse < fine <= codec"):
        VampNet(interface.codec, interface.coarse, interface.coarse)
    with pytest.raises(ValueError, match="more than 0"):
        VampNet(interface.codec, interface.coarse, coarse_seconds=0)
    with pytest.raises(ValueError, match="every 0"):
        beat_frames([1], [1], every=0)
