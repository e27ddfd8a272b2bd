"""Files in the official format: read without flax, converted, and as good as the weights they were written from.

Shapes: B batch, N tokens, h w token grid.
"""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from maskgen.checkpoint import load_module
from maskgen.conditioning import Cond
from maskgen.models.base import MaskedTransformer
from maskgen.models.bert import BertTransformer
from maskgen.published.maskgit import config_from, convert
from maskgen.tasks.pipeline import Pipeline
from maskgen.tasks.published.convert import convert_files
from maskgen.tasks.published.entries.families import looks_like
from maskgen.tokenizers.base import Tokenizer
from maskgen.tokenizers.image.vqgan import VQGAN
from maskgen.tokenizers.published.image import maskgit as tokenizers
from maskgen.weights.files import read_weights
from tests.flax_files import nested, write_flax
from tests.parity.maskgit import test_decode as decoding
from tests.parity.maskgit import test_tokenizer as vqgan
from tests.parity.maskgit import test_transformer as bert
from tests.parity.support import check_count, facts, files, load, metadata, recordings

full_precision = decoding.full_precision  # a fixture: float32 products, not faster ones

FILES = recordings("maskgit", "*.msgpack")
KINDS = {path: looks_like(read_weights(path)) for path in FILES}
TRANSFORMERS = [path for path, kind in KINDS.items() if kind == "maskgit-transformer"]
TOKENIZERS = [path for path, kind in KINDS.items() if kind == "maskgit-tokenizer"]
TREES = [
    (path, name)
    for path in facts("maskgit", "full_shapes_*.json")
    for name in json.loads(path.read_text(encoding="utf-8"))
]


def stored(kind: str) -> dict[str, dict[str, Tensor]]:
    """All sets of weights of one kind that the recordings hold as safetensors, by the start of their files' names."""
    names = {path.name.partition("_params")[0] for path in files("maskgit", f"{kind}*_params*.safetensors")}
    return {name: vqgan.params_of(name) for name in names}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def set_of(path: Path, kind: str) -> str:
    """The set of recordings that a msgpack file belongs to, found by its numbers."""
    state = read_weights(path)
    (name,) = [name for name, params in stored(kind).items() if equal(state, params)]
    return name


def load_transformer(path: Path, codes: int) -> BertTransformer:
    state = read_weights(path)
    model = BertTransformer(config_from(state, vocab_size=codes))
    model.load_state_dict(convert(state, model.config))
    return model.eval()


def load_tokenizer(path: Path, activation: Any) -> VQGAN:
    state = read_weights(path)
    model = VQGAN(tokenizers.config_from(state, activation=activation))
    model.load_state_dict(tokenizers.convert(state, model.config))
    return model.eval()


def test_files_of_both_kinds_are_found() -> None:
    assert TRANSFORMERS
    check_count("maskgit", TOKENIZERS, 2)
    assert set(TRANSFORMERS + TOKENIZERS) == set(FILES)
    assert TREES


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_reader_gives_the_stored_weights(path: Path) -> None:
    """Bit for bit, with the names of the file."""
    kind = "transformer" if path in TRANSFORMERS else "vqgan"
    name = set_of(path, kind)
    assert all(key.startswith("params/") for key in stored(kind)[name])


@pytest.mark.parametrize("path", TRANSFORMERS, ids=lambda path: path.stem)
def test_transformer_logits(path: Path) -> None:
    name = set_of(path, "transformer")
    io, settings = bert.read(name, "io")
    model = load_transformer(path, settings["codebook_size"])
    keys = [key for key in io if key.startswith("input_ids_")]
    assert keys
    for key in keys:
        with torch.no_grad():
            logits = model.table_logits(bert.rows(model, io[key], settings["mask_token_id"]))
        torch.testing.assert_close(logits, io[key.replace("input_ids_", "logits_")], **bert.LOGITS)


@pytest.mark.parametrize("path", TOKENIZERS, ids=lambda path: path.stem)
def test_tokenizer_ids_and_images(path: Path) -> None:
    name = set_of(path, "vqgan")
    io, settings = vqgan.read(name, "io")
    model = load_tokenizer(path, settings["activation_fn"])
    with torch.no_grad():
        assert torch.equal(model.encode(vqgan.first(io["image"])).flatten(), io["ids"].long().flatten())
        for ids_key, image_key in (("ids", "reconstruction"), ("random_ids", "decoded_random_ids")):
            ids = io[ids_key].long()
            image = model.decode(ids.flatten(1)[..., None], tuple(ids.shape[1:]))
            torch.testing.assert_close(vqgan.last(image), io[image_key], **vqgan.CLOSE)


@pytest.mark.parametrize("path", decoding.END_TO_END, ids=lambda path: path.stem)
def test_a_converted_folder_decodes_like_the_original(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the two files, through the folder that ``maskgen convert`` makes, to the picture of the official generator."""
    trace = decoding.Trace(path)
    names = decoding.models_of(path)
    (transformer,) = [file for file in TRANSFORMERS if set_of(file, "transformer") == names[0]]
    (tokenizer,) = [file for file in TOKENIZERS if set_of(file, "vqgan") == names[1]]
    convert_files("maskgit-imagenet256", tmp_path / "m", tokenizer=tokenizer, transformer=transformer, any_size=True)
    pipe = Pipeline.from_pretrained(tmp_path / "m", device="cpu")
    assert pipe.config.sampling.choice_temperature == 4.5  # of the official generator, whatever a trace was made with
    cond = Cond(labels=trace.classes[:, 0] - trace.codes)
    final, seen = decoding.decode(trace, lambda tokens, step: pipe.transformer(tokens, cond), monkeypatch)
    for step, logits in zip(seen.steps, seen.logits, strict=True):
        torch.testing.assert_close(logits, trace.visual(step.step, "logits"), atol=1e-4, rtol=1e-5)
    decoding.check(trace, final, seen)
    with torch.no_grad():
        image = pipe.tokenizer.decode(final, pipe.axes)
    torch.testing.assert_close(image.permute(0, 2, 3, 1), trace.stored["image"], atol=5e-5, rtol=1e-5)


@pytest.mark.parametrize(("path", "name"), TREES, ids=lambda value: getattr(value, "stem", value))
def test_full_size_shapes(path: Path, name: str, tmp_path: Path) -> None:
    """A file of exactly these names and shapes becomes a folder with exactly that many weights.

    The transformers' files of 690 MB are written and converted by ``benchmarks/files/convert_memory.py``; here their arrays
    show one number without taking memory, and nothing is written.
    """
    tree = json.loads(path.read_text(encoding="utf-8"))[name]
    part, family = name.split("_")[0], f"maskgit-{name.split('_')[1]}"
    arrays = {key: torch.zeros(()).expand(entry["shape"]) for key, entry in tree["params"].items()}
    if part == "tokenizer":
        write_flax(tmp_path / "file", nested(arrays))
        start = time.perf_counter()
        convert_files(family, tmp_path / "out", tokenizer=tmp_path / "file")
        assert time.perf_counter() - start < 20
        module: torch.nn.Module = load_module(tmp_path / "out", Tokenizer)  # type: ignore[type-abstract]
    else:
        config = config_from(arrays)
        with torch.device("meta"):
            module = BertTransformer(config)
        converted = convert(arrays, config)
        assert {key: tensor.shape for key, tensor in converted.items()} == {
            key: tensor.shape for key, tensor in module.state_dict().items()
        }
        assert isinstance(module, MaskedTransformer)
    assert sum(weight.numel() for weight in module.parameters()) == tree["param_count"]
    assert tree["param_count"] in (172_457_193, 173_047_017, 54_515_587)


def test_stored_trees_are_the_published_ones() -> None:
    """The three numbers above are all there."""
    counts = {json.loads(path.read_text(encoding="utf-8"))[name]["param_count"] for path, name in TREES}
    assert counts == {172_457_193, 173_047_017, 54_515_587}


@pytest.mark.parametrize("path", files("maskgit", "transformer*_params.safetensors"), ids=lambda path: path.stem)
def test_safetensors_of_the_same_weights_convert_alike(path: Path) -> None:
    codes = metadata(path)["codebook_size"]
    read, direct = read_weights(path), load(path)
    assert equal(read, direct)
    assert equal(
        convert(read, config_from(read, vocab_size=codes)), convert(direct, config_from(direct, vocab_size=codes))
    )
