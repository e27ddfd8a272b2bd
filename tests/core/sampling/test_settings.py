"""Settings of a sample: groups, those saved before there were groups, those that lie over others, what a sampler loads."""

import copy
import dataclasses
import json
import pickle
import subprocess
import sys
from typing import Any

import pytest

from maskgen.checkpoint import build_config
from maskgen.sampling.filters import TokenFilter
from maskgen.sampling.guidance import Guidance
from maskgen.sampling.settings import Sampling, Speed, VampNetChoices, current_sampling, with_current_sampling

# All fields as they were saved before they had groups, with other values than the defaults.
FORMER: dict[str, Any] = {
    **{"sampler": "maskgit", "steps": 5, "schedule": "arccos", "select": "halton", "temperature": "linear:1,0.5"},
    **{"choice_temperature": 3.0, "guidance": 1.5, "guidance_ramp": "power-cosine", "guidance_power": 2.0},
    **{"guidance_interval": [0.25, 1.0], "guidance_from": "label", "negative_label": 4, "guidance_drop": 0.5},
    **{"annealed": True, "top_k": 7, "top_p": 0.9, "typical_mass": 0.8, "typical_min_tokens": 3},
    **{"sample_cutoff": 0.5, "batch_counts": True, "compile": True, "bfloat16": True, "reuse": 2},
    "codebook_steps": [4, 2],
}
CURRENT = Sampling(
    steps=5,
    schedule="arccos",
    select="halton",
    temperature="linear:1,0.5",
    choice_temperature=3.0,
    guidance=Guidance(
        scale=1.5, ramp="power-cosine", power=2.0, interval=(0.25, 1.0), against="label", negative_label=4, drop=0.5
    ),
    filter=TokenFilter(top_k=7, top_p=0.9, typical_mass=0.8, typical_min_tokens=3),
    speed=Speed(reuse=2, compile=True, bfloat16=True),
    annealed=True,
    codebook_steps=(4, 2),
    vampnet=VampNetChoices(sample_cutoff=0.5, batch_counts=True),
)


def test_former_keys_become_those_of_today() -> None:
    before = dict(FORMER)
    assert build_config(Sampling, current_sampling(FORMER), "here") == CURRENT
    assert before == FORMER
    current = json.loads(json.dumps(dataclasses.asdict(CURRENT)))
    del current["amused"]  # a group that no field was in before there were groups
    assert current_sampling(FORMER) == current


def test_keys_of_today_stay() -> None:
    saved = json.loads(json.dumps(dataclasses.asdict(CURRENT)))
    assert current_sampling(saved) == saved
    assert build_config(Sampling, saved, "here") == CURRENT
    assert current_sampling({"steps": 3}) == {"steps": 3}
    assert [current_sampling(value) for value in (None, 3, "x")] == [None, 3, "x"]
    mixed = {"guidance": {"ramp": "linear"}, "guidance_power": 2.0, "top_k": 3, "filter": {"top_p": 0.5}}
    expected = {"guidance": {"ramp": "linear", "power": 2.0}, "filter": {"top_k": 3, "top_p": 0.5}}
    assert current_sampling(mixed) == expected


def test_a_file_with_two_samplings() -> None:
    saved = {"steps": 3, "sampling": {"guidance": 2.0}, "fine_sampling": None}
    assert with_current_sampling(saved) == {"steps": 3, "sampling": {"guidance": {"scale": 2.0}}, "fine_sampling": None}


def test_every_former_name_has_a_place() -> None:
    assert set(FORMER) - set(Sampling.former_names) <= {field.name for field in dataclasses.fields(Sampling)}
    assert set(Sampling.former_names) <= set(FORMER)
    for name in Sampling.former_names.values():
        group, _, own = name.partition(".")
        assert hasattr(getattr(Sampling(), group), own)


def test_overriding_means_the_scale() -> None:
    changed = CURRENT.override(steps=None, guidance=3.0)
    assert changed == dataclasses.replace(CURRENT, guidance=dataclasses.replace(CURRENT.guidance, scale=3.0))
    assert CURRENT.override(guidance=None, steps=2) == dataclasses.replace(CURRENT, steps=2)


@pytest.mark.parametrize("reuse", [0, -1])
def test_speed_is_checked(reuse: int) -> None:
    with pytest.raises(ValueError, match=f"speed.reuse: got {reuse}, expected at least 1"):
        Speed(reuse=reuse)


def test_a_sampler_loads_neither_accelerate_nor_pillow() -> None:
    code = "import sys, maskgen.sampling; sys.exit(' '.join({'accelerate', 'PIL'} & set(sys.modules)) or 0)"
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True).stderr == ""


MODEL = Sampling(
    sampler="vampnet",
    steps=36,
    temperature=0.7,
    choice_temperature=10.5,
    guidance=Guidance(scale=3.0, ramp="linear"),
    filter=TokenFilter(top_k=50, typical_mass=0.2),
    speed=Speed(bfloat16=True),
    vampnet=VampNetChoices(sample_cutoff=0.5),
)


@pytest.mark.parametrize(
    ("given", "changes"),
    [
        (Sampling(), {}),
        (Sampling(steps=4), {"steps": 4}),
        (Sampling(steps=8), {"steps": 8}),  # which is the default, too
        (Sampling(temperature=1.0), {"temperature": 1.0}),
        (Sampling(filter=TokenFilter(top_p=0.9)), {"filter": TokenFilter(top_k=50, top_p=0.9, typical_mass=0.2)}),
        (Sampling(filter=TokenFilter(top_k=None)), {"filter": TokenFilter(typical_mass=0.2)}),
        (Sampling(guidance=Guidance(scale=1.0)), {"guidance": Guidance(scale=1.0, ramp="linear")}),
        (Sampling(speed=Speed(compile=True)), {"speed": Speed(bfloat16=True, compile=True)}),
        (
            Sampling(vampnet=VampNetChoices(batch_counts=True)),
            {"vampnet": VampNetChoices(sample_cutoff=0.5, batch_counts=True)},
        ),
    ],
)
def test_what_is_not_named_stays(given: Sampling, changes: dict[str, object]) -> None:
    expected = dataclasses.replace(MODEL, **changes)  # type: ignore[arg-type]
    assert given.over(MODEL) == expected
    assert given.over(MODEL).over(MODEL) == expected
    for copied in (copy.copy(given), copy.deepcopy(given), pickle.loads(pickle.dumps(given))):
        assert copied == given
        assert copied.over(MODEL) == expected


def test_overrides_lie_over_the_settings_they_are_for() -> None:
    found = Sampling(temperature=0.5).override(steps=3, guidance=2.0)
    assert found == Sampling(temperature=0.5, steps=3, guidance=Guidance(scale=2.0))
    assert found.over(MODEL) == dataclasses.replace(
        MODEL, temperature=0.5, steps=3, guidance=Guidance(scale=2.0, ramp="linear")
    )
    assert dataclasses.replace(Sampling()).over(MODEL).sampler == "maskgit"  # a whole copy names all


def test_what_does_not_go_with_the_rest_is_refused() -> None:
    with pytest.raises(
        ValueError, match="temperature: got 'linear:1,0.5', which works with the sampler 'maskgit' only"
    ):
        Sampling(temperature="linear:1,0.5").over(MODEL)


def test_steps_that_are_named_count_for_every_codebook() -> None:
    model = Sampling(sampler="codebook", steps=36, codebook_steps=(20, 10))
    assert Sampling(temperature=0.5).over(model).codebook_steps == (20, 10)
    assert Sampling(steps=4).over(model) == model.override(steps=4) == Sampling(sampler="codebook", steps=4)
    assert Sampling(steps=4, codebook_steps=(3, 2)).over(model).codebook_steps == (3, 2)
