"""Files of published weights become folders of ours; and every mistake with them."""

from pathlib import Path
from typing import Any

import pytest
import torch

import maskgen.tasks.published.convert
from maskgen.checkpoint import load_module, save_state
from maskgen.models.bert import BertConfig, BertTransformer
from maskgen.published import maskgit
from maskgen.tasks.conditions.classes import imagenet_classes
from maskgen.tasks.image.generation import generate
from maskgen.tasks.pipeline import Pipeline
from maskgen.tasks.published.catalog import CATALOG
from maskgen.tasks.published.convert import convert_files
from maskgen.tokenizers.base import Tokenizer
from tests.flax_files import nested, write_flax
from tests.tasks.commandline import files as listing
from tests.tasks.commandline import refused, run
from tests.tasks.published.tiny_maskgit import (
    NAME,
    TOKENIZER,
    TRANSFORMER,
    official_transformer,
    put_into_catalog,
    shapes,
    write,
)


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write(tmp_path_factory.mktemp("official"))


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    put_into_catalog(monkeypatch, tmp_path)


def convert(official: dict[str, Path], out: Path, **changes: Any) -> None:
    convert_files(NAME, out, **({"tokenizer": official["tokenizer"], "transformer": official["transformer"]} | changes))


class TestFiles:
    def test_a_whole_model(self, official: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        words = ("--tokenizer", official["tokenizer"], "--transformer", official["transformer"])
        run("convert", "--family", NAME, *words, "--out", tmp_path / "m")
        assert capsys.readouterr().out == f"{NAME} in {tmp_path / 'm'}\n"
        parts = [
            f"{part}/{name}" for part in ("tokenizer", "transformer") for name in ("config.json", "model.safetensors")
        ]
        assert listing(tmp_path / "m") == sorted(["pipeline.json", "tokenizer", "transformer", *parts])
        pipe = Pipeline.from_pretrained(tmp_path / "m", device="cpu")
        assert (pipe.transformer.config, pipe.tokenizer.config) == (TRANSFORMER, TOKENIZER)
        assert (pipe.config.signal_size, pipe.axes) == ((8, 8), (4, 4))
        assert pipe.config.class_names == imagenet_classes()
        assert (pipe.config.sampling.steps, pipe.config.sampling.choice_temperature) == (12, 4.5)
        (image,) = generate(pipe, "golden retriever", seeds=[3], steps=2)
        (again,) = generate(pipe, 207, seeds=[3], steps=2)
        assert image.tobytes() == again.tobytes()
        # The same as building the modules and saving them, byte for byte.
        pipe.save_pretrained(tmp_path / "saved")
        for name in parts:
            assert (tmp_path / "saved" / name).read_bytes() == (tmp_path / "m" / name).read_bytes()

    @pytest.mark.parametrize("part", ["tokenizer", "transformer"])
    def test_one_half(self, part: str, official: dict[str, Path], tmp_path: Path) -> None:
        convert_files(NAME, tmp_path / "half", **{part: str(official[part])})
        assert listing(tmp_path / "half") == ["config.json", "model.safetensors"]
        kind: Any = Tokenizer if part == "tokenizer" else BertTransformer
        assert load_module(tmp_path / "half", kind).config == (TOKENIZER if part == "tokenizer" else TRANSFORMER)

    def test_other_containers_and_averaged_weights(self, official: dict[str, Path], tmp_path: Path) -> None:
        plain, averaged = official_transformer(TRANSFORMER), official_transformer(TRANSFORMER)
        torch.save({"state_dict": plain, "ema": averaged}, tmp_path / "w.ckpt")
        for ema, expected in ((False, plain), (True, averaged)):
            convert_files(NAME, tmp_path / str(ema), transformer=tmp_path / "w.ckpt", ema=ema)
            model = load_module(tmp_path / str(ema), BertTransformer)
            assert torch.equal(model.word_embedding.weight, expected["params/Embed_0/word_embeddings/embedding"])

    def test_half_precision_is_kept_on_disk_and_exact_in_memory(self, tmp_path: Path) -> None:
        state = {name: tensor.bfloat16() for name, tensor in official_transformer(TRANSFORMER).items()}
        write_flax(tmp_path / "w", nested(state))
        convert_files(NAME, tmp_path / "m", transformer=tmp_path / "w")
        assert (tmp_path / "m" / "model.safetensors").stat().st_size < 1.2 * (tmp_path / "w").stat().st_size
        model = load_module(tmp_path / "m", BertTransformer)
        name = "params/TransformerLayer_1/Mlp_0/intermediate_output/kernel"
        assert torch.equal(model.blocks[1].expand.weight, state[name].float().t())

    def test_sizes_of_your_own(
        self, official: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        given = {"tokenizer": official["tokenizer"], "transformer": official["transformer"]}
        words = [word for part, path in given.items() for word in (f"--{part}", str(path))]
        line = refused(capsys, "convert", "--family", "maskgit-imagenet256", *words, "--out", tmp_path / "m")
        # It is the tiny one that this test put into the catalog.
        assert f"these are the weights of {NAME}, use --family {NAME}: MaskGIT tokenizer: " in line
        run("convert", "--family", "maskgit-imagenet256", *words, "--any-size", "true", "--out", tmp_path / "m")
        pipe = Pipeline.from_pretrained(tmp_path / "m", device="cpu")
        assert (pipe.transformer.config, pipe.config.signal_size) == (TRANSFORMER, (8, 8))
        assert pipe.config.sampling == CATALOG["maskgit-imagenet256"].sampling


class TestMistakes:
    def refusal(self, out: Path, message: str, family: str = NAME, **given: Any) -> str:
        with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
            convert_files(family, out, **given)
        assert "\n" not in str(error.value)
        assert not out.exists() or not any(out.iterdir())
        return str(error.value)

    def test_the_tokenizer_given_as_transformer(self, official: dict[str, Path], tmp_path: Path) -> None:
        self.refusal(
            tmp_path / "m",
            r"expected a MaskGIT transformer \(flax\), but this looks like a MaskGIT tokenizer \(flax\); "
            "give it as --tokenizer$",
            transformer=official["tokenizer"],
        )
        self.refusal(
            tmp_path / "m",
            "this looks like a MaskGIT transformer .*; give it as --transformer$",
            tokenizer=official["transformer"],
        )

    def test_another_family(self, official: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        torch.save({"model": {"encoder.conv_blocks.0.res.0.conv1.weight": torch.ones(1)}}, tmp_path / "w.pt")
        line = self.refusal(
            tmp_path / "m",
            "looks like a LlamaGen tokenizer; use --tokenizer with --family",
            tokenizer=tmp_path / "w.pt",
        )
        assert "llamagen-vq16" in line
        torch.save({"transformer_layers.0.x": torch.ones(1)}, tmp_path / "v.pt")
        advice = "looks like an aMUSEd transformer .*; use --transformer with --family amused-256, amused-512"
        self.refusal(tmp_path / "m", advice, transformer=tmp_path / "v.pt")
        torch.save({"down_blocks.0.res_blocks.0.x": torch.ones(1)}, tmp_path / "v.pt")
        advice = "looks like an open-muse transformer .*; use --transformer with --family amused-256, amused-512"
        self.refusal(tmp_path / "m", advice, transformer=tmp_path / "v.pt")
        for name in ("amused-256", "amused-512"):
            monkeypatch.delitem(CATALOG, name)
        self.refusal(
            tmp_path / "m", "looks like an open-muse transformer .*; it has no entry", transformer=tmp_path / "v.pt"
        )
        torch.save({"fc.weight": torch.ones(1), "fc.bias": torch.ones(1)}, tmp_path / "u.pt")
        self.refusal(
            tmp_path / "m",
            r"its 2 weights are of no family known here \(fc.bias, fc.weight, \.\.\.\)",
            transformer=tmp_path / "u.pt",
        )

    def test_another_resolution(self, official: dict[str, Path], tmp_path: Path) -> None:
        line = self.refusal(
            tmp_path / "m",
            "these are the weights of tiny-wide, use --family tiny-wide: ",
            tokenizer=official["tokenizer"],
            transformer=official["wide"],
        )
        assert "Embed_0/position_embeddings/embedding has shape (65, 32), expected (17, 32)" in line

    def test_the_512_model_given_as_the_256_one(self, tmp_path: Path) -> None:
        """Full-size names and shapes that take no memory."""
        config = maskgit.PUBLISHED["maskgit-imagenet512"]
        path = tmp_path / "maskgit_imagenet512_checkpoint"
        state = {name: torch.zeros(1).expand(tensor) for name, tensor in shapes(config).items()}
        torch.save(state, path)
        self.refusal(
            tmp_path / "m",
            "these are the weights of maskgit-imagenet512, use --family maskgit-imagenet512: MaskGIT transformer: 1 weights",
            family="maskgit-imagenet256",
            transformer=path,
        )

    def test_sizes_nobody_published(self, tmp_path: Path) -> None:
        deep = BertConfig(vocab_size=1024, num_classes=3, axes=(4, 4), width=32, layers=3, heads=4, mlp_width=64)
        write_flax(tmp_path / "w", nested(official_transformer(deep)))
        line = self.refusal(
            tmp_path / "m", "sizes that maskgit-imagenet256 has not ", "maskgit-imagenet256", transformer=tmp_path / "w"
        )
        assert "num_classes 3 instead of 1000, axes (4, 4) instead of (16, 16), width 32 instead of 768" in line
        assert "for weights of your own training give --any_size true)" in line

    def test_every_wrong_name_at_once(self, tmp_path: Path) -> None:
        state = official_transformer(TRANSFORMER)
        state["params/MlmLayer_0/mlm_bias/biases"] = state.pop("params/MlmLayer_0/mlm_bias/bias")
        state["params/Embed_0/embeddings_ln/scale"] = torch.ones(5)
        write_flax(tmp_path / "w", nested(state))
        line = self.refusal(tmp_path / "m", "3 weights do not fit", transformer=tmp_path / "w")
        assert "missing MlmLayer_0/mlm_bias/bias (1065,) (nearest: MlmLayer_0/mlm_bias/biases)" in line
        assert "unexpected MlmLayer_0/mlm_bias/biases (1065,)" in line
        assert "Embed_0/embeddings_ln/scale has shape (5,), expected (32,)" in line
        assert line.startswith(f"{tmp_path / 'w'}: ")

    def test_truncated(self, official: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "w"
        path.write_bytes(official["transformer"].read_bytes()[:-100])
        self.refusal(tmp_path / "m", "w: truncated: the file ends after", transformer=path)
        line = refused(capsys, "convert", "--family", NAME, "--transformer", path, "--out", tmp_path / "m")
        assert "truncated" in line
        assert listing(tmp_path) == ["w"]

    def test_halves_that_do_not_fit(self, official: dict[str, Path], tmp_path: Path) -> None:
        other = BertConfig(vocab_size=32, num_classes=7, axes=(4, 4), width=32, layers=1, heads=2, mlp_width=64)
        write_flax(tmp_path / "w", nested(official_transformer(other)))
        (tmp_path / "m").mkdir()  # an empty folder is taken
        convert_files(NAME, tmp_path / "m", tokenizer=official["tokenizer"], transformer=official["transformer"])
        assert Pipeline.from_pretrained(tmp_path / "m", device="cpu").transformer.config == TRANSFORMER
        self.refusal(
            tmp_path / "n",
            "table: got 40 rows, expected 64 codes",
            tokenizer=official["tokenizer"],
            transformer=tmp_path / "w",
            any_size=True,
        )

    def test_what_is_asked(self, official: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.refusal(tmp_path / "m", f"{NAME}: got no file, expected --tokenizer FILE and --transformer FILE")
        self.refusal(
            tmp_path / "m",
            "transformer: got .*, but llamagen-vq16 is a tokenizer alone",
            "llamagen-vq16",
            transformer=official["transformer"],
        )
        self.refusal(tmp_path / "m", "got 'maskgit', expected a published name such as", "maskgit")
        self.refusal(tmp_path / "m", "no such file, expected a weights file", tokenizer=tmp_path / "nothing")
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "file").touch()
        with pytest.raises(ValueError, match="full: exists and is not empty; name a new folder"):
            convert(official, tmp_path / "full")
        assert "out" in refused(capsys, "convert", "--family", NAME)

    def test_a_failure_leaves_nothing(
        self, official: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(kind: Any, config: Any, state: Any, folder: Path) -> None:
            if folder.name == "transformer":
                raise OSError(28, "No space left on device", str(folder))
            save_state(kind, config, state, folder)

        monkeypatch.setattr(maskgen.tasks.published.convert, "save_state", full)
        with pytest.raises(OSError, match="No space left"):
            convert(official, tmp_path / "m")
        assert listing(tmp_path) == []
