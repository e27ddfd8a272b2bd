"""The catalog: complete entries, names that can be imported, sizes that are the published ones, and its table."""

import json
import re
from pathlib import Path

import pytest
import torch

from maskgen.sampling.selectors.named import get_selector
from maskgen.tasks.published.catalog import CATALOG, find, table
from maskgen.tasks.published.entries.base import Published
from maskgen.tasks.published.entries.families import FAMILIES, Family, load_name, looks_like
from tests.parity.support import LAYOUTS, ROOT, files, load
from tests.tasks.commandline import refused, run

IMAGES = [entry for entry in CATALOG.values() if entry.modality == "image"]
SEED_VOKEN = {"open-magvit2-image", "open-magvit2-video", "ibq"}  # families that test_open_magvit2_catalog.py looks at
SOUND = {"lac", "dac", "encodec", "vampnet"}  # families that test_audio_catalog.py looks at
TEXT = {"meissonic-transformer", "openmuse-transformer"}  # families of text to image that tests/parity/muse looks at
each_image = pytest.mark.parametrize("entry", IMAGES, ids=lambda entry: entry.name)
each_entry = pytest.mark.parametrize("entry", CATALOG.values(), ids=lambda entry: entry.name)

# What the recordings of each kind are weights of.
RECORDED = {
    "taming_vqgan": "taming",
    "maskgit_vqgan_torch": "maskgit-torch",
    "imagebert": "imagebert",
    "uvitbert": "uvitbert",
    "llamagen_vq": "llamagen",
    "halton_transformer": "halton",
    "maskbit_lfq": "maskbit-tokenizer",
    "maskbit_vq": "maskbit-tokenizer",
    "maskbit_bert": "maskbit-transformer",
    "maskbit_lfqbert": "maskbit-transformer",
    "diffusers_vqmodel": "amused-tokenizer",
    "uvit2d": "amused-transformer",
}
PEERS = {
    r"taming_.*": "taming",
    r"halton_.*": "halton",
    r"llamagen_.*": "llamagen",
    r"maskgit_vqgan_.*": "maskgit-torch",
    r"(generator_titok_[lb]|imagebert_).*": "imagebert",
    r"generator_titok_s.*": "uvitbert",
    r"amused_vqvae": "amused-tokenizer",
    r"amused_\d+_transformer": "amused-transformer",
}


def recorded() -> dict[str, list[str]]:
    """Names of the weights of each recorded model, whose file may be cut in parts."""
    found: dict[str, list[str]] = {}
    for path in files("families", "*.weights*.safetensors"):
        found.setdefault(path.name.partition(".weights")[0], []).extend(load(path))
    return found


@pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
def test_every_import_path_resolves(family: Family) -> None:
    names = [] if family.reader else [f"{family.module}:{name}" for name in ("config_from", "convert", "PUBLISHED")]
    for path in (family.build, *([family.reader] if family.reader else names)):
        assert load_name(path) is not None


def test_every_family_of_the_issue_is_there() -> None:
    used = {weights.family for entry in CATALOG.values() for weights in entry.parts.values()}
    assert used | {"openmuse-transformer"} == set(FAMILIES)  # nobody says where its weights are
    assert {"maskgit-imagenet256", "maskgit-imagenet512", "maskgit-vqgan-imagenet-f16-256"} <= set(CATALOG)


@each_entry
def test_entries_are_complete(entry: Published) -> None:
    assert CATALOG[entry.name] is entry
    assert entry.parts
    assert entry.licence
    assert entry.signal
    assert entry.modality == "audio" or len(entry.signal_size) == {"image": 2, "video": 3}[entry.modality]
    assert entry.fid is None or entry.fid_note
    for part, weights in entry.parts.items():
        assert weights.kind.part == {"fine": "transformer"}.get(part, part)
        assert bool(weights.url) != bool(weights.repository and weights.file)
        assert re.fullmatch(r"https://[\w.-]+/\S+", weights.source)
        assert f"--{part} FILE" in entry.convert_command
    if entry.tokenizer and entry.modality == "image":
        assert entry.pixel_range in ((0, 1), (-1, 1))
    if entry.transformer:
        assert entry.mask_id
        assert entry.class_rule
        get_selector(entry.sampling.select)


@each_image
def test_sizes_are_published_ones(entry: Published) -> None:
    for weights in entry.parts.values():
        config = weights.kind.published(weights.sizes)
        with torch.device("meta"):
            module = weights.kind.model()(config)
        if weights.parameters is not None:
            assert sum(parameter.numel() for parameter in module.parameters()) <= weights.parameters
            assert sum(tensor.numel() for tensor in module.state_dict().values()) <= weights.parameters
    if len(entry.parts) == 2:
        assert entry.tokenizer is not None
        assert entry.transformer is not None
        tokenizer, transformer = (w.kind.published(w.sizes) for w in (entry.tokenizer, entry.transformer))
        model = entry.transformer.kind.empty(transformer)
        with torch.device("meta"):
            module = entry.tokenizer.kind.model()(tokenizer)
        assert module.axes((1, 3, *entry.signal_size)) == tuple(transformer.axes)
        assert module.vocab_size == model.vocab_size
        assert bool(entry.text) == (model.takes_text and not model.num_classes)


def test_official_presets() -> None:
    """Issue 3, item 5: 8 steps at 256, 12 at 512, choice temperature 4.5, cosine, no guidance."""
    for size, steps in ((256, 8), (512, 12)):
        sampling = CATALOG[f"maskgit-imagenet{size}"].sampling
        assert (sampling.steps, sampling.schedule, sampling.choice_temperature) == (steps, "cosine", 4.5)
        assert (sampling.temperature, sampling.guidance.scale, sampling.select) == (1.0, 0.0, "confidence")
    assert {entry.transformer.parameters for entry in CATALOG.values() if entry.transformer} >= {
        172_457_193,
        173_047_017,
    }


def test_what_recordings_look_like() -> None:
    seen = set()
    for name, names in recorded().items():
        kind = max((kind for kind in RECORDED if name.startswith(kind)), key=len)
        assert looks_like(names) == RECORDED[kind], name
        seen.add(RECORDED[kind])
    assert seen | {"maskgit-tokenizer", "maskgit-transformer"} | SOUND | SEED_VOKEN | TEXT == set(FAMILIES)
    for path in files("maskgit", "*_params*.safetensors"):
        family = "maskgit-transformer" if path.name.startswith("transformer") else "maskgit-tokenizer"
        assert looks_like(load(path)) == family
        assert looks_like(name.removeprefix("params/") for name in load(path)) == family
    assert looks_like(["layer.weight", "classifier.bias"]) is None
    assert looks_like([]) is None


def test_what_published_layouts_look_like() -> None:
    known = 0
    for name, entry in json.loads(LAYOUTS.read_text(encoding="utf-8")).items():
        if not isinstance(entry, dict) or "keys" not in entry:
            continue
        family = next((family for pattern, family in PEERS.items() if re.fullmatch(pattern, name)), None)
        assert looks_like(key.replace("{i}", "0") for key in entry["keys"]) == family, name
        known += family is not None
    assert known >= 14


def test_one_missing_name_does_not_hide_a_family() -> None:
    for names in recorded().values():
        assert {looks_like(names[:i] + names[i + 1 :]) for i in range(len(names))} == {looks_like(names)}


def test_find() -> None:
    assert find("maskgit-imagenet256").name == "maskgit-imagenet256"
    with pytest.raises(ValueError, match="got 'maskgit-imagenet', expected a published name such as maskgit-imagenet"):
        find("maskgit-imagenet")
    with pytest.raises(ValueError, match="`maskgen models` lists all"):
        find("zzz")


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    run("models")
    printed = capsys.readouterr().out
    assert printed == table() + "\n"
    lines = printed.splitlines()
    assert len(lines) == len(CATALOG) + 1
    for line, entry in zip(lines[1:], CATALOG.values(), strict=True):
        assert line.startswith(entry.name + " ")
        assert line.endswith(entry.licence)
    assert re.search(
        r"^maskgit-imagenet256 +tokenizer \+ transformer +256 x 256 +227.0 M +6.06 +8 +Apache-2.0$", lines[1]
    )
    assert "unrecognized" in refused(capsys, "models", "--all")


def test_importing_the_catalog_imports_no_family(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys, maskgen.tasks.published.catalog; "
        "print([name for name in sys.modules if '.published.' in name and not name.startswith('maskgen.tasks.')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_settings_of_the_groups() -> None:
    """Each generator is sampled by the loop, and with the numbers, of its group."""
    loops = {entry.name: entry.sampling.sampler for entry in IMAGES if entry.transformer}
    for name, loop in loops.items():
        own = {
            "halton": "halton",
            "imagebert": "onedtok",
            "uvitbert": "onedtok",
            "maskbit": "maskbit",
            "amused": "amused",
            "meissonic": "amused",
        }
        assert loop == own.get(name.split("-")[0], "maskgit")
    assert all(CATALOG[name].sampling.annealed == (loop == "onedtok") for name, loop in loops.items())
    chosen = CATALOG["maskbit-18bit"].sampling
    guidance = (chosen.guidance.scale, chosen.guidance.power)
    assert (chosen.steps, *guidance, chosen.choice_temperature) == (64, 5.7, 2.5, 8.5)
