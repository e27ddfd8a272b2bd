"""Tiny image pipelines for tests: seeded random weights, or a lossless tokenizer with a model that knows the answer."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from maskgen.conditioning import Cond
from maskgen.models.base import MaskedTransformer
from maskgen.models.context import ContextConfig
from maskgen.models.modern import ModernConfig, ModernTransformer
from maskgen.sampling.settings import Sampling
from maskgen.tasks.conditions.text.pretrained import Pooled, PretrainedText, PretrainedTextConfig
from maskgen.tasks.model_folder import PipelineConfig
from maskgen.tasks.pipeline import Pipeline
from maskgen.testing import OracleModel
from maskgen.tokenizers.audio.toy import ToyAudioTokenizer, ToyAudioTokenizerConfig
from maskgen.tokenizers.base import Tokenizer
from maskgen.tokenizers.image.toy import ToyTokenizer, ToyTokenizerConfig
from maskgen.tokenizers.image.vqgan import VQGAN, VQGANConfig
from maskgen.tokenizers.quantizers.vector import QuantizerConfig

CLASS_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SAMPLING = Sampling(steps=3)


def tiny_pipeline(size: tuple[int, int] = (32, 32), seed: int = 0) -> Pipeline:
    """A class-conditional VQGAN pipeline: stride 4, 32 codes, width 32, 2 layers, 10 named classes."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        quantizer = QuantizerConfig(codebook_size=32, dim=8)
        config = VQGANConfig(
            channels=8, multipliers=(1, 1, 2), res_blocks=1, quantizer=quantizer, shortcut="input", groups=4
        )
        return _pipeline(VQGAN(config), size)


def make_tiny_pipeline(folder: Path) -> None:
    """Save ``tiny_pipeline()``."""
    tiny_pipeline().save_pretrained(folder)


def tiny_audio_pipeline(seed: int = 0) -> Pipeline:
    """A lossless codec (800 Hz, hop 8, 3 codebooks of 8) under a coarse transformer for one codebook and a fine one."""
    codec = ToyAudioTokenizer(ToyAudioTokenizerConfig(sample_rate=800, hop=8, levels=8, codebooks=3))
    config = PipelineConfig(signal_size=(160,), sampling=Sampling(steps=2), fine_sampling=Sampling(steps=1))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        coarse, fine = (
            ModernTransformer(
                ModernConfig(vocab_size=8, num_codebooks=k, num_classes=0, axes=(20,), width=16, layers=1, heads=2)
            )
            for k in (1, 3)
        )
    return Pipeline(codec, coarse, config, "cpu", fine=fine)


def toy_pipeline(size: tuple[int, int] = (16, 16), levels: int = 8, patch: int = 2, seed: int = 0) -> Pipeline:
    """A lossless grey tokenizer (one token a patch) under a random transformer."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return _pipeline(ToyTokenizer(ToyTokenizerConfig(levels=levels, patch=patch)), size)


def text_encoder_folder(folder: Path, seed: int = 0) -> Path:
    """A random CLIP text tower of width 16 and 20 positions, and its tokenizer, as ``transformers`` saves them."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    sizes = {"hidden_size": 16, "intermediate_size": 32, "projection_dim": 12, "num_attention_heads": 2}
    ends = {"bos_token_id": 552, "eos_token_id": 553, "pad_token_id": 553}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CLIPTextModelWithProjection(
            CLIPTextConfig(**sizes, **ends, num_hidden_layers=2, max_position_embeddings=20, vocab_size=554)
        )
        for weight in model.parameters():
            nn.init.normal_(weight, std=0.3)
    model.save_pretrained(folder)
    tokenizer = Path(__file__).parent / "fixtures" / "muse" / "amused_tokenizer"
    return Path(shutil.copytree(tokenizer, folder, dirs_exist_ok=True))


def text_pipeline(encoder: Path, *, classes: int = 0, pooled: Pooled = "projection") -> Pipeline:
    """``toy_pipeline`` under a random transformer that is told texts, and classes if there are any."""
    text = PretrainedText(PretrainedTextConfig(source=str(encoder), length=20, pooled=pooled))
    context = ContextConfig(width=16, pooled=text.pooled_width, every=1)
    sizes = {"vocab_size": 8, "num_classes": classes, "axes": (8, 8), "width": 16, "layers": 2, "heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer = ModernTransformer(ModernConfig(**sizes, context=context))
        for weight in transformer.parameters():
            nn.init.normal_(weight, std=0.3)
    config = PipelineConfig(signal_size=(16, 16), class_names=CLASS_NAMES[:classes], sampling=SAMPLING)
    return Pipeline(ToyTokenizer(ToyTokenizerConfig(levels=8, patch=2)), transformer, config, "cpu", text=text)


def oracle_pipeline(
    answer: Tensor, size: tuple[int, int] = (16, 16), levels: int = 8, patch: int = 2, null_class: bool = True
) -> Pipeline:
    """``toy_pipeline`` with a model that answers ``answer`` ``[N, 1]`` whatever it sees."""
    tokenizer = ToyTokenizer(ToyTokenizerConfig(levels=levels, patch=patch))
    config = PipelineConfig(signal_size=size, class_names=CLASS_NAMES, sampling=SAMPLING)
    return Pipeline(tokenizer, OracleTransformer(answer, levels, null_class), config, device="cpu")


class OracleTransformer(MaskedTransformer):
    """``OracleModel`` as a module; keeps the tokens of every call in ``seen``."""

    def __init__(self, answer: Tensor, vocab_size: int, null_class: bool) -> None:
        super().__init__()
        self.oracle = OracleModel(answer, vocab_size)
        self.vocab_size, self.num_codebooks = vocab_size, 1
        self.num_classes, self.null_class = len(CLASS_NAMES), null_class
        self.seen: list[Tensor] = []

    def forward(self, tokens: Tensor, cond: Cond, axes: Sequence[int] | None = None) -> Tensor:
        self.seen.append(tokens)
        return self.oracle(tokens)


def _pipeline(tokenizer: Tokenizer, size: tuple[int, int]) -> Pipeline:
    model = ModernTransformer(
        ModernConfig(
            vocab_size=tokenizer.vocab_size,
            num_classes=len(CLASS_NAMES),
            axes=tokenizer.axes((1, 3, *size)),
            width=32,
            layers=2,
            heads=2,
        )
    )
    for module in model.modules():
        # Our start is the uniform model; here label, place and neighbours must all matter.
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.3)
    config = PipelineConfig(signal_size=size, class_names=CLASS_NAMES, sampling=SAMPLING)
    return Pipeline(tokenizer, model, config, device="cpu")
