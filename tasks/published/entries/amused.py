"""aMUSEd (Patil et al. 2024, arXiv 2401.01808) and Meissonic (Bai et al. 2024, arXiv 2410.08261), which has its tokenizer.

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


def _meissonic(name: str, repository: str) -> Published:
    return Published(
        name=name,
        tokenizer=_vq(repository),
        transformer=Weights(
            family="meissonic-transformer",
            sizes=name,
            repository=repository,
            file=f"transformer/{_FILE}",
            parameters=1_006_946_304,
        ),
        # Tuned with the model; the published scripts take laion/CLIP-ViT-H-14-laion2B-s32B-b79K, of the same sizes.
        text=TextFiles(repository=repository, parameters=354_032_640, length=77),
        licence="Apache-2.0 code; weights not checked",
        signal_size=(1024, 1024),
        pixel_range=(0, 1),
        mask_id=8255,
        class_rule="no classes; the empty prompt is no text",
        sampling=Sampling(sampler="amused", steps=48, choice_temperature=2.0, guidance=Guidance(scale=8.0)),
    )


AMUSED: tuple[Published, ...] = (
    image_tokenizer("amused-vq", _vq("amused/amused-256"), "OpenRAIL++ (not checked)", low=0),
    _amused(256, 603_537_664),
    _amused(512, 608_257_792),
    _meissonic("meissonic-1024", "MeissonFlow/Meissonic"),
)
