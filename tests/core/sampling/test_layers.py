"""Settings over others: what is named counts, what is not stays, group by group."""

import copy
import dataclasses
import pickle

import pytest

from maskgen.sampling.filters import TokenFilter
from maskgen.sampling.guidance import Guidance
from maskgen.sampling.settings import Sampling, Speed, VampNetChoices

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
