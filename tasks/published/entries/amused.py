"""aMUSEd (Patil et al. 2024, arXiv 2401.01808) and the transformers it was made of, open-muse's.

Nothing heavy is imported here.
"""

from maskgen.sampling.guidance import Guidance
from maskgen.sampling.settings import Sampling
from maskgen.tasks.published.entries.base import Published, TextFiles, Weights, image_tokenizer

_LICENCE = "Apache-2.0 code; weights OpenRAIL++ (not checked)"

_FILE = "diffusion_pytorch_model.safetensors"


def _vq(repository: str) -> Weights:
    return Weights(
        family="amused-tokenizer",
        sizes="amused-vqvae",
        repository=repository,
        file=f"vqvae/{_FILE}",
        parameters=146_244_675,
    )


def _amused(size: int, parameters: int) -> Published:
    name = f"amused-{size}"
    repository = f"amused/{name}"
    return Published(
        name=name,
        tokenizer=_vq(repository),
        transformer=Weights(
            family="amused-transformer",
            sizes=name,
            repository=repository,
            file=f"transformer/{_FILE}",
            parameters=parameters,
        ),
        text=TextFiles(repository=repository, parameters=123_650_304),
        licence=_LICENCE,
        signal_size=(size, size),
        pixel_range=(0, 1),
        mask_id=8255,
        class_rule="no classes; the empty prompt is no text",
        # Their s is a weight of s - 1.
        sampling=Sampling(sampler="amused", steps=12, choice_temperature=2.0, guidance=Guidance(scale=9.0)),
    )


def _openmuse(size: int, parameters: int) -> Published:
    name = f"openmuse-{size}"
    return Published(
        name=name,
        transformer=Weights(family="openmuse-transformer", sizes=name, parameters=parameters),
        licence="Apache-2.0 code; weights not read",
        signal_size=(size, size),
        mask_id=8255,
        class_rule="no classes; the empty prompt is no text",
        sampling=Sampling(sampler="openmuse", steps=16, choice_temperature=2.0, guidance=Guidance(scale=9.0)),
    )


AMUSED: tuple[Published, ...] = (
    image_tokenizer("amused-vq", _vq("amused/amused-256"), "OpenRAIL++ (not checked)", low=0),
    _amused(256, 603_537_664),
    _amused(512, 608_257_792),
    _openmuse(256, 603_537_664),
    _openmuse(512, 608_257_792),
)
