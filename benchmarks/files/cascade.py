"""What a cascade adds to its small pictures: a second stage against enlarging, on scenes of handwritten digits.

Scenes of 32 x 32 hold four digits of scikit-learn, those of training and of the test drawn from disjoint digits. The first
stage makes scenes of 16 x 16 (8 x 8 tokens), the second those of 32 x 32 (16 x 16 tokens) from its tokens; tokens are grey
levels of 2 x 2 pixels, so that no tokenizer has to be trained. Measured on held-out scenes:

- PSNR of the second stage, told the tokens of the true scene made smaller, against enlarging what these tokens decode to;
- Frechet distance to held-out scenes, of 64 features of patches of 8 x 8 pixels: of the whole cascade from nothing, of its
  small pictures enlarged, and of other real scenes.

``python benchmarks/files/cascade.py --out runs/cascade --report benchmarks/reports/DATE-cascade.md``
"""

import argparse
import dataclasses
import sys
import time
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from maskgen.checkpoint import save_module
from maskgen.data import TensorSource
from maskgen.models.context import CoarseConfig, ContextConfig
from maskgen.models.modern import ModernConfig, ModernTransformer
from maskgen.objectives.masked import MaskingSettings
from maskgen.sampling.settings import Sampling
from maskgen.tasks.data.base import ImageData
from maskgen.tasks.data.images.digits import Digits
from maskgen.tasks.data.tokens.coarse import smaller
from maskgen.tasks.evaluation.metrics.frechet import Gaussian, Moments, frechet_distance
from maskgen.tasks.pipeline import Pipeline
from maskgen.tasks.training.transformer import train_transformer
from maskgen.tokenizers.image.toy import ToyTokenizer, ToyTokenizerConfig
from maskgen.training.optim.optimizers import OptimizerSettings
from maskgen.training.settings import TrainSettings

sys.path.append(str(Path(__file__).resolve().parents[1]))
from parts.measuring import machine

SMALL, LARGE = 16, 32
LEVELS = 9


class Scenes(ImageData):
    """Four digits in a square.

    Args:
        side: of a scene in pixels; scenes of two sides are the same ones.
        count: scenes of training; an eighth as many are held out.
    """

    def __init__(self, side: int = LARGE, count: int = 2048) -> None:
        self.size, self.count = (side, side), count
        digits = Digits(size=LARGE // 2)
        self._train = self._compose(digits.train().batch(range(1437), range(1437))["images"], count, 0)
        self._test = self._compose(digits.test().batch(range(360), range(360))["images"], count // 8, 1)

    @property
    def class_names(self) -> tuple[str, ...]:
        """None: scenes have no classes."""
        return ()

    def train(self) -> TensorSource:
        """``count`` scenes."""
        return self._train

    def test(self) -> TensorSource:
        """An eighth as many."""
        return self._test

    def _compose(self, digits: Tensor, count: int, seed: int) -> TensorSource:
        drawn = torch.randint(len(digits), (count, 4), generator=torch.Generator().manual_seed(seed))
        scenes = rearrange(digits[drawn], "B (y x) C h w -> B C (y h) (x w)", y=2)
        return TensorSource(images=smaller(scenes, self.size))


def transformer(side: int, coarse: CoarseConfig | None = None) -> ModernTransformer:
    """The second stage is shown the small tokens in every block."""
    context = ContextConfig() if coarse is None else ContextConfig(every=1, coarse=coarse)
    sizes = {"width": 96, "layers": 4, "heads": 4, "axes": (side // 2,) * 2}
    return ModernTransformer(ModernConfig(vocab_size=LEVELS, num_classes=0, context=context, **sizes))  # type: ignore[arg-type]


def train(arguments: argparse.Namespace, side: int, first: Path | None) -> Path:
    """One stage; its folder."""
    save_module(ToyTokenizer(ToyTokenizerConfig(levels=LEVELS, patch=2)), arguments.out / "tokenizer")
    coarse = CoarseConfig(vocab_size=LEVELS, axes=(SMALL // 2,) * 2, layers=2) if first else None
    never = {"validate_every": 0, "show_every": 0, "checkpoint_every": 0, "tracker": None}
    optimizer = OptimizerSettings(lr=2e-3, warmup_steps=50)
    return train_transformer(
        tokenizer=arguments.out / "tokenizer",
        transformer=transformer(side, coarse),
        data=Scenes(side),
        masking=MaskingSettings(),
        settings=TrainSettings(optimizer=optimizer, steps=arguments.steps, batch_size=16, **never),  # type: ignore[arg-type]
        out=arguments.out / ("second" if first else "first"),
        sampling=Sampling(steps=8 if first else 16),
        coarse=first,
    )


def enlarged(pictures: Tensor) -> Tensor:
    """The better of two usual ways, bicubic, cut to [0, 1]."""
    return F.interpolate(pictures, (LARGE, LARGE), mode="bicubic", antialias=True).clamp(0, 1)


def psnr(made: Tensor, truth: Tensor) -> float:
    """Mean over pictures, in dB."""
    return float((-10 * (made - truth).square().mean((1, 2, 3)).clamp(min=1e-10).log10()).mean())


def patches(pictures: Tensor) -> Gaussian:
    """Of the grey patches of 8 x 8 pixels."""
    moments = Moments(64)
    moments.update(rearrange(pictures.mean(1), "B (y h) (x w) -> (B y x) (h w)", h=8, w=8))
    return moments.gaussian()


def measure(folder: Path) -> dict[str, float]:
    """All figures, of held-out scenes."""
    pipe = Pipeline.from_pretrained(folder, device="cpu")
    assert pipe.coarse is not None
    truth, fresh = Scenes().test().tensors["images"], Scenes(count=4096).test().tensors["images"][256:]
    tokens = pipe.coarse.encode(smaller(truth, (SMALL, SMALL)))
    small = pipe.coarse.decode(tokens)
    request = pipe.generation(None, {"seeds": range(len(truth))})
    likeliest = dataclasses.replace(request, sampling=Sampling(temperature=0.0).over(request.sampling))
    begun = time.process_time()
    made = pipe.generate(request)
    seconds = (time.process_time() - begun) / len(truth)
    assert request.coarse is not None
    real = patches(truth)
    return {
        "PSNR, second stage, its likeliest tokens": psnr(pipe.decode(pipe.enlarge(tokens, likeliest)), truth),
        "PSNR, second stage, drawn tokens": psnr(pipe.decode(pipe.enlarge(tokens, request)), truth),
        "PSNR, small picture enlarged": psnr(enlarged(small), truth),
        "PSNR, the tokenizer of the second stage alone": psnr(pipe.decode(pipe.encode(truth)), truth),
        "Frechet, second stage of true small tokens": frechet_distance(
            patches(pipe.decode(pipe.enlarge(tokens, request))), real
        ),
        "Frechet, true small picture enlarged": frechet_distance(patches(enlarged(small)), real),
        "Frechet, whole cascade from nothing": frechet_distance(patches(made), real),
        "Frechet, its first stage enlarged": frechet_distance(
            patches(enlarged(pipe.coarse.generate(request.coarse))), real
        ),
        "Frechet, other real scenes": frechet_distance(patches(fresh), real),
        "processor seconds a picture, 16 + 8 steps": seconds,
    }


def main() -> None:
    """Train both stages, measure, print, and write a report if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/cascade"))
    parser.add_argument("--steps", type=int, default=600, help="of each stage's training")
    parser.add_argument("--report", type=Path, help="write the table here")
    arguments = parser.parse_args()
    begun = time.process_time()
    second = train(arguments, LARGE, train(arguments, SMALL, None))
    trained = time.process_time() - begun
    figures = measure(second) | {"processor seconds of training, both stages": trained}
    lines = [f"| {name} | {value:.3f} |" for name, value in figures.items()]
    table = "\n".join(("| measure | value |", "|---|---|", *lines))
    print(table)
    if arguments.report is not None:
        told = f"`python benchmarks/files/cascade.py --steps {arguments.steps}`, {machine()}"
        arguments.report.write_text(
            f"# A cascade against enlarging\n\n{__doc__}\n{told}\n\n{table}\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
