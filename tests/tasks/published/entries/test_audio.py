"""Published sound models: their entries, how their files are told apart, and their way into folders of ours.

Shapes: B batch, C channels, S samples, T frames, K codebooks.
"""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from torch import Tensor

from maskgen.checkpoint import load_module
from maskgen.published.vampnet import transformer as vampnet
from maskgen.tasks.pipeline import Pipeline
from maskgen.tasks.published.catalog import CATALOG, find, table
from maskgen.tasks.published.convert import convert_files, fetch
from maskgen.tasks.published.entries.base import Published
from maskgen.tasks.published.entries.families import FAMILIES, looks_like
from maskgen.tokenizers.audio.base import AudioTokenizer
from maskgen.tokenizers.published.audio.encodec import EncodecTokenizer, EncodecTokenizerConfig
from tests.parity.support import files, load, metadata
from tests.tasks.commandline import files as listing
from tests.tasks.commandline import refused, run

SOUND = [entry for entry in CATALOG.values() if entry.modality == "audio"]
CODECS = [entry for entry in SOUND if entry.transformer is None]
RATE = 800  # of the recorded LAC
each_codec = pytest.mark.parametrize("entry", CODECS, ids=lambda entry: entry.name)

# Section 7 of the specification: rate, channels, frames a second, codebooks, licence.
FACTS = {
    "encodec_24khz": (24_000, 1, Fraction(75), 8, "CC BY-NC 4.0"),
    "encodec_48khz": (48_000, 2, Fraction(150), 4, "CC BY-NC 4.0"),
    "encodec_32khz": (32_000, 1, Fraction(50), 4, "CC BY-NC 4.0"),
    "dac_16khz": (16_000, 1, Fraction(50), 12, "MIT"),
    "dac_24khz": (24_000, 1, Fraction(75), 32, "MIT"),
    "dac_44khz": (44_100, 1, Fraction(44_100, 512), 9, "MIT"),
}


def part(name: str, start: str) -> dict[str, Tensor]:
    """Recorded weights of one model."""
    (path,) = files("vampnet", f"{name}.safetensors")
    return {key.removeprefix(start): tensor for key, tensor in load(path).items() if key.startswith(start)}


def dac_arguments() -> dict[str, Any]:
    arguments: dict[str, Any] = metadata(files("vampnet", "dac_tiny.safetensors")[0])["kwargs"]
    return arguments


RECORDED: dict[str, tuple[str, Callable[[], dict[str, Tensor]]]] = {
    "lac": ("lac", lambda: part("lac_params", "")),
    "dac": ("dac", lambda: part("dac_tiny", "params.")),
    "encodec-mono": ("encodec", lambda: part("encodec_tiny", "mono_causal.params.")),
    "encodec-stereo": ("encodec", lambda: part("encodec_tiny", "stereo_chunked.params.")),
    "vampnet-coarse": ("vampnet", lambda: part("coarse_params", "")),
    "vampnet-fine": ("vampnet", lambda: part("c2f_params", "")),
}


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Official-style files of the recorded tiny models, which fit each other."""
    folder = tmp_path_factory.mktemp("official")
    found = {"tokenizer": folder / "codec.pth", "dac": folder / "dac.pth"}
    torch.save(
        {"state_dict": part("lac_params", ""), "metadata": {"kwargs": {"sample_rate": RATE}}}, found["tokenizer"]
    )
    torch.save({"state_dict": part("dac_tiny", "params."), "metadata": {"kwargs": dac_arguments()}}, found["dac"])
    (found["transformer"],) = files("vampnet", "coarse_official_weights.pth")
    (found["fine"],) = files("vampnet", "c2f_official_weights.pth")
    return found


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, official: dict[str, Path]) -> None:
    """The recorded sizes in the place of the published ones."""
    for name, file in (("vampnet_coarse", official["transformer"]), ("vampnet_c2f", official["fine"])):
        monkeypatch.setitem(vampnet.PUBLISHED, name, vampnet.read_vampnet(file)[0])


def whole(official: dict[str, Path], out: Path, **changes: Any) -> None:
    given = {name: official[name] for name in ("tokenizer", "transformer", "fine")}
    convert_files("vampnet", out, **(given | changes))


class TestEntries:
    def test_all_of_the_issue(self) -> None:
        assert {entry.name for entry in SOUND} == {*FACTS, "vampnet"}

    @each_codec
    def test_figures(self, entry: Published) -> None:
        rate, channels, frames, codebooks, licence = FACTS[entry.name]
        assert (entry.sample_rate, entry.frame_rate, entry.codebooks) == (rate, frames, codebooks)
        assert entry.licence == licence
        assert entry.tokenizer is not None
        codec: Any = entry.tokenizer.kind.empty(entry.tokenizer.kind.published(entry.tokenizer.sizes))
        assert isinstance(codec, AudioTokenizer)
        assert (codec.sample_rate, codec.channels, codec.frame_rate, codec.num_codebooks) == (
            rate,
            channels,
            frames,
            codebooks,
        )
        count = sum(weight.numel() for weight in codec.parameters())
        told = entry.tokenizer.parameters
        assert told is None or count <= told <= count + 50_000  # weight norm has a number more a channel

    def test_vampnet(self) -> None:
        entry = find("vampnet")
        assert list(entry.parts) == ["tokenizer", "transformer", "fine"]
        assert {weights.file for weights in entry.parts.values()} == {"codec.pth", "coarse.pth", "c2f.pth"}
        assert {weights.repository for weights in entry.parts.values()} == {"hugggof/vampnet"}
        for sampling, steps in ((entry.sampling, 12), (entry.fine_sampling, 2)):
            assert sampling is not None
            assert (sampling.sampler, sampling.steps, sampling.schedule) == ("vampnet", steps, "cosine")
            assert (sampling.temperature, sampling.choice_temperature, sampling.vampnet.sample_cutoff) == (
                1.0,
                10.5,
                1.0,
            )
            assert not sampling.filter.enabled
        assert entry.frame_rate == Fraction(44_100, 768)
        assert entry.signal_size == (441_000,)
        assert entry.convert_command == (
            "maskgen convert --family vampnet --tokenizer FILE --transformer FILE --fine FILE --out DIR"
        )
        sizes = [entry.parts[name] for name in ("transformer", "fine")]
        for weights, lora in zip(sizes, (2_867_200, 2_293_760), strict=True):
            shapes = vampnet.official_shapes(weights.kind.published(weights.sizes))
            assert sum(torch.Size(shape).numel() for shape in shapes.values()) == weights.parameters
            assert sum(torch.Size(shape).numel() for name, shape in shapes.items() if ".lora_" in name) == lora

    def test_the_table(self) -> None:
        lines = {line.split()[0]: " ".join(line.split()) for line in table().splitlines()}
        assert lines["encodec_48khz"].startswith("encodec_48khz tokenizer 48 kHz, 150 frames/s x 4 14.9 M - - CC BY-NC")
        assert lines["dac_16khz"] == "dac_16khz tokenizer 16 kHz, 50 frames/s x 12 - - - MIT"
        assert "vampnet tokenizer + transformer + fine 44.1 kHz, 57.42 frames/s x 14 - - 12 + 2 CC" in lines["vampnet"]

    def test_hashes_are_those_of_the_file_names(self) -> None:
        for name, start in (("encodec_24khz", "d7cc33bc"), ("encodec_48khz", "7e698e3e")):
            weights = find(name).parts["tokenizer"]
            assert (weights.sha256, weights.url.endswith(f"-{start}.th")) == (start, True)


class TestFamilies:
    @pytest.mark.parametrize("name", RECORDED)
    def test_what_recordings_look_like(self, name: str) -> None:
        family, weights = RECORDED[name]
        names = list(weights())
        assert {looks_like(names[:i] + names[i + 1 :]) for i in range(len(names))} == {family}
        assert looks_like(names) == family

    def test_names_of_the_hub(self) -> None:
        for name, family in (("encodec_24khz", "encodec"), ("encodec_48khz", "encodec"), ("dac_44khz", "dac")):
            weights = CATALOG[name].parts["tokenizer"]
            model: Any = weights.kind.empty(weights.kind.published(weights.sizes))
            (library,) = model.children()  # transformers' own model
            assert looks_like(library.state_dict()) == family


class TestCodecs:
    def same(self, folder: Path, family: str, io: dict[str, Tensor]) -> AudioTokenizer:
        codec = load_module(folder, AudioTokenizer)  # type: ignore[type-abstract]
        assert type(codec) is FAMILIES[family].model()
        with torch.no_grad():
            tokens = codec.encode(io["audio"])
        assert torch.equal(tokens.transpose(1, 2), io["codes"])
        return codec

    def test_dac(self, official: dict[str, Path], tmp_path: Path) -> None:
        convert_files("dac_44khz", tmp_path / "m", tokenizer=official["dac"], any_size=True)
        assert listing(tmp_path / "m") == ["config.json", "model.safetensors"]
        codec = self.same(tmp_path / "m", "dac", part("dac_tiny", "io."))
        assert codec.sample_rate == dac_arguments()["sample_rate"]

    def test_encodec(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        torch.save(part("encodec_tiny", "mono_causal.params."), tmp_path / "w.th")
        words = ("--tokenizer", tmp_path / "w.th", "--out", tmp_path / "m")
        line = refused(capsys, "convert", "--family", "encodec_24khz", *words)
        assert "sizes that encodec_24khz has not (" in line
        assert "filters 4 instead of 32" in line
        assert "for weights of your own training give --any_size true" in line
        run("convert", "--family", "encodec_24khz", *words, "--any-size", "true")
        io = part("encodec_tiny", "mono_causal.io.")
        self.same(tmp_path / "m", "encodec", {"audio": io["audio"], "codes": io["codes0"]})

    def test_a_folder_of_the_hub(self, tmp_path: Path) -> None:
        config = EncodecTokenizerConfig(
            bandwidth=1.6, bandwidths=(1.6,), filters=4, dim=16, ratios=(4, 2), codebook_size=16, sample_rate=800
        )
        codec = EncodecTokenizer(config).eval()
        codec.codec.save_pretrained(tmp_path / "hub")
        convert_files("encodec_24khz", tmp_path / "m", tokenizer=tmp_path / "hub", any_size=True)
        again = load_module(tmp_path / "m", EncodecTokenizer)
        assert again.config == config
        assert again.identity() == codec.identity()
        (tmp_path / "empty").mkdir()
        with pytest.raises(FileNotFoundError, match=r"empty: holds neither model.safetensors nor pytorch_model.bin"):
            convert_files("encodec_24khz", tmp_path / "n", tokenizer=tmp_path / "empty")

    @pytest.mark.parametrize("name", ["encodec_24khz", "encodec_48khz", "encodec_32khz"])
    def test_published_encodec_given_by_another_name(self, name: str, tmp_path: Path) -> None:
        """Full-size names and shapes that take no memory."""
        weights = CATALOG[name].parts["tokenizer"]
        model: Any = weights.kind.empty(weights.kind.published(weights.sizes))
        zero = {key: torch.zeros(1).expand(tensor.shape) for key, tensor in model.codec.state_dict().items()}
        torch.save(zero, tmp_path / "w")
        others = [entry.name for entry in CODECS if entry.name.startswith("encodec") and entry.name != name]
        for other in others:
            message = f"w: these are the weights of {name}, use --family {name}$"
            with pytest.raises(ValueError, match=message):
                convert_files(other, tmp_path / "m", tokenizer=tmp_path / "w")
        with pytest.raises(ValueError, match="expected VampNet's codec .*looks like an EnCodec; use --tokenizer with"):
            convert_files("vampnet", tmp_path / "m", tokenizer=tmp_path / "w")

    def test_other_mistakes(self, official: dict[str, Path], tmp_path: Path) -> None:
        with pytest.raises(
            ValueError, match="ema: got True, but a Descript Audio Codec was published without averaged"
        ):
            convert_files("dac_44khz", tmp_path / "m", tokenizer=official["dac"], ema=True)
        with pytest.raises(ValueError, match="fine: got .*, but dac_44khz is a tokenizer alone"):
            convert_files("dac_44khz", tmp_path / "m", fine=official["fine"])
        with pytest.raises(
            ValueError, match=r"expected a Descript .*looks like a VampNet transformer; use --transformer"
        ):
            convert_files("dac_44khz", tmp_path / "m", tokenizer=official["fine"])
        torch.save({"fc.weight": torch.ones(1)}, tmp_path / "u.pt")
        with pytest.raises(ValueError, match=r"its 1 weights are of no family known here \(fc.weight, "):
            convert_files("dac_44khz", tmp_path / "m", tokenizer=tmp_path / "u.pt")
        assert not (tmp_path / "m").exists()


@pytest.mark.usefixtures("tiny")
class TestVampNet:
    def test_a_whole_model(self, official: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        words = [word for name in ("tokenizer", "transformer", "fine") for word in (f"--{name}", official[name])]
        run("convert", "--family", "vampnet", *words, "--out", tmp_path / "m")
        assert capsys.readouterr().out == f"vampnet in {tmp_path / 'm'}\n"
        parts = [
            f"{name}/{file}"
            for name in ("fine", "tokenizer", "transformer")
            for file in ("config.json", "model.safetensors")
        ]
        assert listing(tmp_path / "m") == sorted(["pipeline.json", "fine", "tokenizer", "transformer", *parts])
        pipe = Pipeline.from_pretrained(tmp_path / "m", device="cpu")
        entry = find("vampnet")
        assert pipe.config.sampling == entry.sampling
        assert pipe.config.fine_sampling == entry.fine_sampling
        assert isinstance(pipe.tokenizer, AudioTokenizer)
        assert pipe.config.tokenizer_identity == pipe.tokenizer.identity()
        assert pipe.axes == vampnet.PUBLISHED["vampnet_coarse"].axes
        tables = pipe.tokenizer.code_tables()
        for model in (pipe.transformer, pipe.fine):
            assert isinstance(model, vampnet.VampNetTransformer)
            assert torch.equal(model.code_tables, tables[: model.num_codebooks])
        # The same as saving the modules, byte for byte.
        pipe.save_pretrained(tmp_path / "saved")
        for name in parts:
            assert (tmp_path / "saved" / name).read_bytes() == (tmp_path / "m" / name).read_bytes()

    def test_the_logits_are_the_recorded_ones(self, official: dict[str, Path], tmp_path: Path) -> None:
        whole(official, tmp_path / "m")
        pipe = Pipeline.from_pretrained(tmp_path / "m", device="cpu")
        io = load(files("vampnet", "forward.safetensors")[0])
        for name, model in (("coarse", pipe.transformer), ("c2f", pipe.fine)):
            assert isinstance(model, vampnet.VampNetTransformer)
            model.set_code_tables(io["codebooks"])  # recorded with a codec of its own
            with torch.no_grad():
                logits = model.predicted_logits(io[f"{name}.codes_masked"].transpose(1, 2))
            torch.testing.assert_close(logits.flatten(1, 2).transpose(1, 2), io[f"{name}.logits"], atol=5e-5, rtol=0)

    def test_without_the_fine_model(self, official: dict[str, Path], tmp_path: Path) -> None:
        whole(official, tmp_path / "m", fine=None)
        pipe = Pipeline.from_pretrained(tmp_path / "m", device="cpu")
        assert pipe.fine is None
        assert pipe.config.fine_sampling is None
        convert_files("vampnet", tmp_path / "codec", tokenizer=official["tokenizer"])
        assert listing(tmp_path / "codec") == ["config.json", "model.safetensors"]

    def test_swapped_files(self, official: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        def refusal(message: str, **changes: Any) -> None:
            with pytest.raises(ValueError, match=message) as error:
                whole(official, tmp_path / "m", **changes)
            assert "\n" not in str(error.value)
            assert not (tmp_path / "m").exists()

        coarse, fine, codec = official["transformer"], official["fine"], official["tokenizer"]
        refusal(
            r"coarse_.*: expected the coarse-to-fine transformer of vampnet, but this looks like the coarse "
            r"transformer \(0 of its 4 codebooks are only read\); give it as --transformer$",
            fine=coarse,
        )
        refusal(
            r"c2f_.*: expected the coarse transformer of vampnet, but this looks like the coarse-to-fine transformer "
            r"\(4 of its 6 codebooks are only read\); give it as --fine$",
            transformer=fine,
        )
        refusal(
            r"codec.pth: expected a VampNet transformer, but this looks like VampNet's codec \(LAC\); "
            "give it as --tokenizer$",
            transformer=codec,
        )
        refusal(
            r"expected VampNet's codec \(LAC\), but this looks like a VampNet transformer; give it as --transformer$",
            tokenizer=coarse,
        )
        refusal(
            "looks like a Descript Audio Codec; use --tokenizer with --family dac_16khz, dac_24",
            tokenizer=official["dac"],
        )
        refusal("fine: give --tokenizer FILE as well; a VampNet transformer holds no code tables", tokenizer=None)
        refusal("transformer: give --tokenizer FILE as well; a VampNet", tokenizer=None, fine=None)
        refusal("fine: give --transformer FILE as well", transformer=None)
        line = refused(capsys, "convert", "--family", "vampnet", "--fine", fine, "--out", tmp_path / "m")
        assert "fine: give --tokenizer FILE and --transformer FILE as well" in line

    def test_another_codec(self, official: dict[str, Path], tmp_path: Path) -> None:
        """A LAC with fewer codebooks than the fine model reads."""
        state = part("lac_params", "")
        few = {name: tensor for name, tensor in state.items() if not name.startswith("quantizer.quantizers.5.")}
        torch.save({"state_dict": few, "metadata": {"kwargs": {"sample_rate": RATE}}}, tmp_path / "codec.pth")
        with pytest.raises(
            ValueError, match=r"c2f_official_weights.pth: code tables: got \[5, 16, 8\], expected 6 or more"
        ):
            whole(official, tmp_path / "m", tokenizer=tmp_path / "codec.pth")

    def test_fetched_by_name(self, official: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[tuple[str, str]] = []
        places = {"codec.pth": "tokenizer", "coarse.pth": "transformer", "c2f.pth": "fine"}

        def download(repository: str, file: str) -> str:
            asked.append((repository, file))
            return str(official[places[file]])

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
        monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "cache"))
        pipe = Pipeline.from_pretrained("vampnet", device="cpu")
        assert asked == [("hugggof/vampnet", file) for file in places]
        assert pipe.fine is not None
        assert fetch("vampnet") == tmp_path / "cache" / "maskgen" / "vampnet-1"
        assert len(asked) == 3


def test_sizes_of_your_own(official: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"coarse_.*: sizes that vampnet has not \(vocab_size 16 instead of 1024, .*any_size"
    ):
        whole(official, tmp_path / "m")
    whole(official, tmp_path / "m", any_size=True)
    assert Pipeline.from_pretrained(tmp_path / "m", device="cpu").transformer.vocab_size == 16
