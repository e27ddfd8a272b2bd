"""``maskgen train dual-encoder``: which caption belongs to which picture, learned from real pairs by the house's one loop.

Shapes: B batch, P width of the text encoder's pooled vector, H W pixels.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from maskgen.data import Batch, Source, draw_numbers
from maskgen.tasks.conditions.text.pretrained import PretrainedText, PretrainedTextConfig
from maskgen.tasks.data.base import ImageData
from maskgen.tasks.data.captions import Captioned, is_captioned
from maskgen.tasks.evaluation.features.dual_encoder import DualEncoder, DualEncoderConfig, pooled_texts
from maskgen.tasks.evaluation.features.train_classifier import CLASSIFIER_SETTINGS
from maskgen.tasks.evaluation.metrics.retrieval import nearest_captions
from maskgen.tasks.training.runs import Say, run_stage
from maskgen.training.objective import Objective
from maskgen.training.settings import TrainSettings

_SIZES = DualEncoderConfig()

_HELD_OUT = 2000  # pairs that validation looks at, at most


class PairSource:
    """Pictures with the pooled vectors of their captions; each different caption is encoded once.

    Batches hold ``images`` float ``[B, 3, H, W]``, ``pooled`` float ``[B, P]`` and ``caption`` long ``[B]``, a number of the
    caption that is the same for the same wording.

    Args:
        source: pictures with captions.
        encoder: frozen, with a pooled vector.
    """

    def __init__(self, source: Captioned, encoder: PretrainedText) -> None:
        self.source, self.encoder = source, encoder
        self._known: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self.source)

    def batch(self, indices: Sequence[int], seeds: Sequence[int]) -> Batch:
        """See ``maskgen.data.Source``."""
        images, captions = self.source.batch(indices, seeds)["images"], self.source.captions(indices, seeds)
        place = {caption: number for number, caption in enumerate(dict.fromkeys(captions))}
        fresh = [caption for caption in place if caption not in self._known]
        if fresh:
            with torch.no_grad():
                self._known |= dict(zip(fresh, pooled_texts(self.encoder, fresh).cpu(), strict=True))
        pooled = torch.stack([self._known[caption] for caption in captions])
        return {"images": images, "pooled": pooled, "caption": torch.tensor([place[one] for one in captions])}


class DualEncoderTraining(Objective):
    """Cross-entropy of the right caption among those of the batch, and of the right picture (CLIP, arXiv 2103.00020).

    Of equal captions in a batch, each is as right as the other. Batches are those of ``PairSource``; with several processes
    or accumulation, pairs are told apart within their own part of a batch.
    """

    def loss(
        self, network: str, modules: Mapping[str, nn.Module], batch: Batch, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``maskgen.training.objective.Objective``; terms: ``accuracy``, of the nearest caption in the batch."""
        pictures, texts, scale = modules["model"](batch["images"], batch["pooled"])
        logits, caption = scale * pictures @ texts.T, batch["caption"]
        same = (caption[:, None] == caption[None]).float()
        target = same / same.sum(1, keepdim=True)
        loss = -sum((target * side.log_softmax(1)).sum(1).mean() for side in (logits, logits.T)) / 2
        right = same.gather(1, logits.detach().argmax(1, keepdim=True))
        return loss, {"accuracy": right.mean()}

    def units(self, batch: Batch) -> int:
        """Pairs in the batch."""
        return len(batch["images"])

    @torch.no_grad()
    def validate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """R-precision of held-out pairs, and its distance from 1 (``score``)."""
        source = self.held_out
        if source is None:
            return {}
        assert isinstance(source, PairSource), "see train_dual_encoder"
        numbers, parts = draw_numbers(len(source), _HELD_OUT), []
        for first in range(0, len(numbers), 256):
            indices = numbers[first : first + 256]
            batch = source.batch(indices, indices)
            parts.append(
                [one.float().cpu() for one in model(batch["images"].to(device), batch["pooled"].to(device))[:2]]
            )
        pictures, texts = (torch.cat([part[side] for part in parts]) for side in (0, 1))
        right, _ = nearest_captions(pictures, texts, source.source.captions(numbers, numbers))
        return {"score": 1 - float(right.mean()), "r_precision": float(right.mean())}


def train_dual_encoder(
    *,
    data: ImageData,
    text: str | PretrainedTextConfig,
    out: Path,
    dual_encoder: DualEncoderConfig = _SIZES,
    settings: TrainSettings = CLASSIFIER_SETTINGS,
    again: bool = False,
    say: Say = print,
) -> Path:
    """Train a dual encoder of pictures and captions, for R-precision (``maskgen evaluate``) where no CLIP can be had.

    Args:
        data: images with captions; a test half that is held out shows how far the dual encoder can be trusted.
        text: text encoder, frozen: a folder or name on the Hub, of which the mean of the tokens is taken, or its settings.
        out: folder of the run, which becomes the dual encoder's; an interrupted run goes on, a finished one is reused.
        dual_encoder: its sizes; image size and text encoder are those given here.
        settings: how long and how wide; a batch's captions are what each picture is told apart from.
        again: train anew even if ``out`` holds a run; that one is moved into ``earlier-1`` beside the new one's files.
        say: told what happens.

    Returns:
        ``out``.

    Raises:
        FileNotFoundError: no such text encoder.
        ValueError: data without captions, an encoder without pooled vector, or ``out`` holds another run.
    """
    train, test = data.train(), data.test()
    if not is_captioned(train):
        raise ValueError(f"data: got {type(data).__name__} without captions; say where they are (--data.captions txt)")
    chosen = PretrainedTextConfig(source=text, pooled="mean") if isinstance(text, str) else text
    encoder = PretrainedText(chosen)
    if not encoder.pooled_width:
        raise ValueError(
            "text.pooled: got none, but a dual encoder reads the pooled vector; name mean, first or projection"
        )
    if test is None or not is_captioned(test):
        say("dual_encoder: no held-out captions, so nothing says how far it can be trusted")
    config = dataclasses.replace(
        dual_encoder,
        pictures=dataclasses.replace(dual_encoder.pictures, size=(data.size[0], data.size[1])),
        text=chosen,
        text_identity=encoder.identity(),
        text_width=encoder.pooled_width,
    )

    def make() -> tuple[Objective, Source]:
        encoder.to("cuda" if torch.cuda.is_available() else "cpu")
        held_out = PairSource(test, encoder) if test is not None and is_captioned(test) else None
        return DualEncoderTraining(DualEncoder(config), held_out=held_out), PairSource(train, encoder)

    run_stage(
        out, "dual_encoder", {"dual_encoder": config, "data": data, "settings": settings}, make, again=again, say=say
    )
    return out
