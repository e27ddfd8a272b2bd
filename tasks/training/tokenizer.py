"""Stage 1: what ``maskgen train tokenizer`` runs, for images, video, sound and modalities of your own."""

import dataclasses
from pathlib import Path

from maskgen.checkpoint import code_fingerprint, fingerprint
from maskgen.data import Source
from maskgen.tasks.data.base import SignalData
from maskgen.tasks.data.tokens.shards import TokenShards
from maskgen.tasks.training.checks import check_signals, load_tokenizer, token_grid
from maskgen.tasks.training.runs import Say, run_stage
from maskgen.tasks.training.shown import show_reconstructions
from maskgen.tokenizers.base import Tokenizer, check_contract
from maskgen.tokenizers.image.vqgan import VQGAN
from maskgen.tokenizers.magvit2.inflation import inflated_state
from maskgen.tokenizers.magvit2.tokenizer import Magvit2Image, Magvit2Video
from maskgen.tokenizers.training.base import TrainingLoss
from maskgen.tokenizers.video.frames import FrameVQ
from maskgen.tokenizers.video.inflation import inflate_model
from maskgen.tokenizers.video.vq3d import VQ3D
from maskgen.training.objective import Objective
from maskgen.training.settings import TrainSettings


def train_tokenizer(
    *,
    tokenizer: Tokenizer,
    data: SignalData,
    loss: TrainingLoss,
    settings: TrainSettings,
    out: Path,
    inflate: Path | None = None,
    decoder_of: Path | None = None,
    again: bool = False,
    say: Say = print,
) -> Path:
    """Stage 1: train a tokenizer, of images, video, sound or a modality of your own.

    Args:
        tokenizer: the tokenizer to train, such as ``maskgen.tokenizers.image.VQGAN``; its weights start anew from
            ``settings.seed``.
        data: signals to train on.
        loss: terms of the loss, which know their objective; on the command line those of the tokenizer's class (see
            ``maskgen.tokenizers.training.settings``).
        settings: how long and how wide.
        out: folder of the run, which becomes the tokenizer's folder; an interrupted run goes on, a finished one is reused.
        inflate: for video, folder of an image tokenizer with the same levels and blocks; the weights start from its own
            (MAGVIT's central inflation for ``VQ3D``, Open-MAGVIT2's for ``Magvit2Video``).
        decoder_of: folder of a tokenizer whose encoder and codebook are taken and stay as they are; the decoder alone is
            trained, from the old one's weights where it has its sizes, else (``decoder_channels``, ``decoder_res_blocks``)
            anew. Tokens keep their meaning: transformers and kept tokens of the old one go with the new one. For ``VQGAN``.
        again: train anew even if ``out`` holds a run; that one is moved into ``earlier-1`` beside the new one's files.
        say: told what happens.

    Returns:
        ``out``.

    Raises:
        FileNotFoundError: no image tokenizer there.
        TypeError: a tokenizer that lacks a member of the contract, which is named.
        ValueError: ``out`` holds another run; data of another modality, rate or size; settings that do not fit
            the tokenizer; an image tokenizer that does not fit, or one whose decoder cannot be trained alone.
    """
    check_contract(tokenizer)
    if isinstance(data, TokenShards):
        raise ValueError("data: got token shards, expected signals: a first stage makes the tokens")
    check_signals(tokenizer, data)
    token_grid(tokenizer, data)
    images = None if inflate is None else _image_tokenizer(inflate, tokenizer)
    kept = None if decoder_of is None else _with_codes(decoder_of, tokenizer, loss)
    if kept is None and str(getattr(tokenizer.config, "codes_of", "")):
        raise ValueError("tokenizer.codes_of: got one, but it is written by decoder_of alone; leave it out")
    parts = {"tokenizer": tokenizer, "data": data, "loss": loss, "settings": settings}
    if kept is not None:
        parts["decoder_of"] = fingerprint(kept)
    if images is not None:
        parts["inflate"] = fingerprint(images)

    def make() -> tuple[Objective, Source]:
        model = type(tokenizer)(tokenizer.config) if kept is None else _new_decoder(kept, tokenizer)
        if images is not None:
            say(f"tokenizer: inflated from {inflate}; {_inflate(model, images)} weights start anew")
        show = show_reconstructions(data)
        return loss.objective(model, tuple(data.size), held_out=data.test(), show=show), data.train()

    run_stage(out, "tokenizer", parts, make, again=again, say=say)
    return out


def _with_codes(folder: Path, tokenizer: Tokenizer, loss: TrainingLoss) -> VQGAN:
    """The tokenizer whose codes a new decoder is for.

    Raises:
        ValueError: it has no such parts, differs in more than the decoder, or the loss would move its codebook.
    """
    found = load_tokenizer(folder, "decoder_of")
    if type(found) is not VQGAN or type(tokenizer) is not VQGAN:
        raise ValueError(
            f"decoder_of: got a {type(found).__name__} for a {type(tokenizer).__name__}, but only a VQGAN's decoder can "
            "be trained alone"
        )
    own = {"decoder_channels", "decoder_res_blocks", "codes_of"}
    for item in dataclasses.fields(found.config):
        got, expected = getattr(tokenizer.config, item.name), getattr(found.config, item.name)
        if got != expected and item.name not in own:
            raise ValueError(
                f"tokenizer.{item.name}: got {got}, but encoder and codebook are those of {folder} with {expected}; only "
                "decoder_channels and decoder_res_blocks may differ"
            )
    for name in ("entropy_boost", "revive_every"):
        if getattr(loss, name, 0):
            raise ValueError(
                f"loss.{name}: got {getattr(loss, name)}, but with decoder_of the codebook stays; set it to 0"
            )
    return found


def _new_decoder(kept: VQGAN, tokenizer: Tokenizer) -> VQGAN:
    """A tokenizer with the encoder and codebook of another, which no longer learn, and a decoder that does."""
    assert isinstance(tokenizer, VQGAN), "see _with_codes"
    model = VQGAN(dataclasses.replace(tokenizer.config, codes_of=code_fingerprint(kept)))
    model.encoder.load_state_dict(kept.encoder.state_dict())
    model.quantizer.load_state_dict(kept.quantizer.state_dict())
    if model.config.of_decoder.widths == kept.config.of_decoder.widths and (
        model.config.of_decoder.res_blocks == kept.config.of_decoder.res_blocks
    ):
        model.decoder.load_state_dict(kept.decoder.state_dict())
    model.encoder.requires_grad_(False)
    model.quantizer.requires_grad_(False)
    return model


def _image_tokenizer(folder: Path, video: Tokenizer) -> Tokenizer:
    """What a video tokenizer can start from."""
    fitting = {VQ3D: (VQGAN, FrameVQ), Magvit2Video: (Magvit2Image,)}
    kinds = next((kinds for kind, kinds in fitting.items() if isinstance(video, kind)), ())
    if not kinds:
        raise ValueError(
            f"inflate: a {type(video).__name__} cannot start from an image tokenizer; only VQ3D and Magvit2Video can"
        )
    found = load_tokenizer(folder, "inflate")
    if not isinstance(found, kinds):
        expected = " or ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"inflate: got a {type(found).__name__}, expected an image tokenizer: {expected}")
    return found


def _inflate(model: Tokenizer, images: Tokenizer) -> int:
    """Give a video tokenizer the weights of one of images; how many of its weights these do not say."""
    if isinstance(model, Magvit2Video):
        model.load_state_dict(inflated_state(images.state_dict(), model.config))
        return 0
    assert isinstance(model, VQ3D), "see _image_tokenizer"
    assert isinstance(images, VQGAN | FrameVQ), "see _image_tokenizer"
    return len(inflate_model(model, images))
