"""VampNet's interface against what the official one recorded: masks, chunks, variations, sound.

The recorded draws of each run are one flat series in the order of the calls; ``Recorded`` hands them to our sampler.
"""

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
from tests.parity.support import files, load, metadata

(PATH,) = files("vampnet", "interface.safetensors")
STORED, META = load(PATH), metadata(PATH)
CASES: dict[str, Any] = META["cases"]
SIZES = META["config"]
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
        sample_rate=META["codec"]["sample_rate"],
        encoder_dim=META["codec"]["encoder_dim"],
        encoder_rates=tuple(META["codec"]["encoder_rates"]),
        decoder_dim=META["codec"]["decoder_dim"],
        decoder_rates=tuple(META["codec"]["decoder_rates"]),
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


def official(sampling: Sampling, **changes: Any) -> Sampling:
    """Settings with the official schedule over the whole batch."""
    return sampling.override(vampnet=VampNetChoices(batch_counts=True), **changes)


def test_every_run_is_replayed() -> None:
    """What is recorded, and where it is looked at; a new recording must find its test."""
    runs = {name.removesuffix(".draw_shapes") for name in CASES}
    assert runs == {*BUILD, *BEATS, *RUNS}


def test_the_codec(interface: VampNet) -> None:
    assert torch.equal(interface.codec.encode(STORED["audio"]), ours("codec.codes"))
    assert torch.allclose(interface.codec.code_tables(), STORED["codebooks"])
    assert torch.allclose(interface.decode(ours("codec.codes")), STORED["codec.audio_out"], **AUDIO)


def test_seconds_and_frames(interface: VampNet) -> None:
    for seconds, frames in zip(STORED["s2t.seconds"].tolist(), STORED["s2t.tokens"].tolist(), strict=True):
        assert interface.frames(seconds) == frames
    assert interface.seconds(45) == pytest.approx(0.45)
    assert interface.fine_chunk == 8, "0.07 s x 100 frames are 7.000000000000001 in floating point"


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
    draws = PromptNoise(tokens=cells, shift=shift, dropped=dropped[None])
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
        others = [beat for beat in chosen if beat not in downbeats]
        before, after = (interface.frames(settings.get(key, 0.0)) for key in ("before", "after"))
        positions = [
            at for beat in others + downbeats for at in range(max(beat - before, 0), min(beat + after, frames))
        ]
        assert len(set(positions)) == len(positions) == len(STORED[f"{name}.bernoulli_u"])
        settings["uniforms"] = torch.ones(1, frames)
        settings["uniforms"][0, positions] = STORED[f"{name}.bernoulli_u"]
    duration = STORED["audio"].shape[2] / interface.codec.sample_rate
    made = interface.beat_mask(duration, chosen, **settings)
    assert torch.equal(made, ours(f"{name}.out"))


def coarse_vamp(interface: VampNet, noise: NoiseOf) -> tuple[Tensor, Tensor]:
    settings = official(FINE, steps=4, temperature=0.9)
    return interface.coarse_vamp(ours("codec.codes"), ours("vamp.mask"), sampling=settings, noise=noise)


def coarse_to_fine(interface: VampNet, noise: NoiseOf) -> tuple[Tensor, Tensor]:
    return interface.coarse_to_fine(
        ours("coarse_vamp.out0"), ours("vamp.mask"), sampling=official(FINE, steps=2), noise=noise
    )


def coarse_to_fine_nomask(interface: VampNet, noise: NoiseOf) -> tuple[Tensor, Tensor]:
    tokens = ours("coarse_vamp.out0")[..., : SIZES["nc"]]
    made, shown = interface.coarse_to_fine(tokens, sampling=official(FINE, steps=2), noise=noise)
    assert (shown[..., SIZES["nc"] :] == SIZES["vocab"]).all(), "nothing of the fine codebooks is given"
    return made, shown


def vamp(steps: int, variations: int = 1, **settings: int) -> Any:
    def run(interface: VampNet, noise: NoiseOf) -> tuple[Tensor, Tensor]:
        return interface.vamp(
            ours("codec.codes").expand(variations, -1, -1),
            ours("vamp.mask").expand(variations, -1, -1),
            sampling=official(FINE, steps=steps),
            fine_sampling=official(FINE, steps=2),
            noise=noise,
            **settings,
        )

    return run


RUNS = {
    "coarse_vamp": coarse_vamp,
    "coarse_to_fine": coarse_to_fine,
    "coarse_to_fine_nomask_from_coarse": coarse_to_fine_nomask,
    "vamp": vamp(3, variations=2),
    "vamp_stretch2": vamp(2, time_stretch=2),
    "vamp_feedback2": vamp(2, feedback_steps=2),
}


@pytest.mark.parametrize("name", RUNS)
def test_runs(interface: VampNet, name: str) -> None:
    noise = Recorded(name)
    tokens, shown = RUNS[name](interface, noise)
    assert noise.used_up(), "recorded draws are left over"
    assert torch.equal(tokens, ours(f"{name}.out0"))
    if f"{name}.out1" in STORED:
        assert torch.equal(shown, ours(f"{name}.out1"))


def test_masked_tokens_sound_like_token_0(interface: VampNet) -> None:
    sound = interface.decode(ours("vamp.out1")[:1])
    assert torch.allclose(sound, STORED["decode_masked.audio"], **AUDIO)


def test_an_item_is_the_same_in_any_batch(interface: VampNet) -> None:
    tokens, mask = ours("codec.codes"), ours("vamp.mask")
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
    made, shown = alone.vamp(ours("codec.codes"), ours("vamp.mask"))
    assert made.shape == shown.shape == (1, 45, SIZES["nc"])
    assert alone.decode(made).shape == (1, 1, 360)
    with pytest.raises(ValueError, match="no fine model"):
        alone.coarse_to_fine(made)


def test_preprocessing(interface: VampNet) -> None:
    stereo = 0.1 * torch.rand(2, 1600 + 13, generator=torch.Generator().manual_seed(0))
    ready = interface.preprocess(stereo, 1600)
    assert ready.shape == (1, 1, 808), "800 + 7 samples at the codec's rate, in whole frames"
    assert (ready[..., 807:] == 0).all()
    assert interface.encode(stereo, 1600).shape == (1, 101, SIZES["nf"])
    loud = interface.preprocess(stereo * 7, 1600)
    assert torch.allclose(ready, loud, atol=1e-5), "one loudness"


def test_refusals(interface: VampNet) -> None:
    tokens, mask = ours("codec.codes"), ours("vamp.mask")
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
