"""VampNet's interface (Garcia et al. 2023, arXiv 2307.04686; hugofloresgarcia/vampnet): sound to variation of the sound.

The way its application works, number for number where the same draws are fed: chunks of fixed length without overlap, whose
first and last frames are given if any of the chunk is; fine codebooks from the coarse ones, padded with token 0 to whole
chunks; masked tokens decoded as token 0 through the codec's latents. For editing sounds see
``maskgen.tasks.audio.infilling``, which has overlapping windows and keeps what is kept.

Other than official, unless recorded draws are fed: every item and every chunk has its own noise (there a seed repeats the
same noise in all chunks), and an item plans its steps alone (``VampNetChoices.batch_counts`` brings back that it does not).

Shapes: B batch, C channels, S samples, T frames, k coarse and K all codebooks, V codes (V itself is the id of a masked
token).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count as numbers

import torch
from einops import repeat
from torch import Tensor
from torch.nn import functional as F

from maskgen.conditioning import Cond
from maskgen.data import item_seed
from maskgen.models.base import MaskedTransformer
from maskgen.noise import Noise, check_seeds
from maskgen.published.vampnet.prompt import PromptNoise, VampPrompt
from maskgen.published.vampnet.sampler import VampNetSampling, sample_vampnet
from maskgen.sampling.filters import filtered_logits
from maskgen.sampling.guidance import model_logits
from maskgen.sampling.prompts import beat_mask, stretch_mask
from maskgen.sampling.settings import Sampling
from maskgen.tasks.media.audio.files import check_waveform, resample, to_channels
from maskgen.tokenizers.audio.base import AudioTokenizer
from maskgen.tokenizers.published.audio.descript_blocks import DescriptTokenizer

NoiseOf = Callable[[int], Noise]
"""The noise of one run of a model, by its number: chunks of the coarse model first, then those of the fine one."""

COARSE = Sampling(sampler="vampnet", steps=36, choice_temperature=10.5)
"""Settings of the official application; the function it calls has 12 steps as its default."""

FINE = Sampling(sampler="vampnet", steps=2, choice_temperature=10.5)
"""Settings of the coarse-to-fine model."""


class VampNet:
    """A codec, a coarse model and a coarse-to-fine model.

    Args:
        codec: mono.
        coarse: predicts the first k codebooks.
        fine: predicts the others of its K codebooks from the first k (``conditioning_codebooks``); None leaves them out.
        coarse_seconds: length of a chunk of the coarse model.
        fine_seconds: length of a chunk of the fine model.

    Raises:
        ValueError: parts that do not fit each other, or chunks without a frame.
    """

    def __init__(
        self,
        codec: AudioTokenizer,
        coarse: MaskedTransformer,
        fine: MaskedTransformer | None = None,
        *,
        coarse_seconds: float = 10.0,
        fine_seconds: float = 3.0,
    ) -> None:
        books = [codec.num_codebooks, coarse.num_codebooks] + ([] if fine is None else [fine.num_codebooks])
        if codec.channels != 1 or max(books) > codec.num_codebooks or (fine is not None and not books[1] < books[2]):
            raise ValueError(
                f"VampNet: got {codec.channels} channel(s) and codebooks {books} of codec, coarse and fine model; expected "
                "mono, and coarse < fine <= codec"
            )
        given = getattr(fine, "conditioning_codebooks", books[1])
        if given != books[1]:
            raise ValueError(f"VampNet: got a fine model that reads {given} codebooks, expected the coarse {books[1]}")
        if not (coarse_seconds > 0 and fine_seconds > 0):
            raise ValueError(f"chunks: got {coarse_seconds} s and {fine_seconds} s, expected more than 0")
        self.codec, self.coarse, self.fine = codec.eval(), coarse.eval(), None if fine is None else fine.eval()
        self.coarse_chunk, self.fine_chunk = codec.frames(coarse_seconds), codec.frames(fine_seconds)

    def frames(self, seconds: float) -> int:
        """Frames that cover a time (official ``s2t``)."""
        return self.codec.frames(seconds)

    def seconds(self, frames: int) -> float:
        """Length of some frames (official ``t2s``)."""
        return frames * self.codec.stride[0] / self.codec.sample_rate

    def preprocess(self, waveform: Tensor, sample_rate: int) -> Tensor:
        """Sound as the models know it: the codec's rate, mono, -24 LUFS, no peak beyond 1, whole frames.

        Args:
            waveform: float ``[C, S]``.
            sample_rate: samples a second.

        Returns:
            float32 ``[1, 1, T x hop]``.

        Raises:
            TypeError, ValueError: see ``maskgen.tasks.media.audio.files.check_waveform``.
        """
        from maskgen.tasks.media.audio.features import normalize_loudness

        check_waveform(waveform, sample_rate)
        mono = to_channels(resample(waveform.float(), sample_rate, self.codec.sample_rate), 1)
        level = normalize_loudness(mono, self.codec.sample_rate)
        return F.pad(level, (0, -level.shape[1] % self.codec.stride[0]))[None]

    @torch.no_grad()
    def encode(self, waveform: Tensor, sample_rate: int) -> Tensor:
        """Tokens ``[1, T, K]`` of a sound ``[C, S]``; see ``preprocess``."""
        return self.codec.encode(self.preprocess(waveform, sample_rate).to(self._device))

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """Sound ``[B, 1, T x hop]`` of tokens ``[B, T, K]``; masked ones (V) sound like token 0, as officially."""
        ids = tokens.to(self._device).masked_fill(tokens.to(self._device) == self.codec.vocab_size, 0)
        if isinstance(self.codec, DescriptTokenizer):  # the official way round, which looks the codes up by direction
            return self.codec.synthesise(self.codec.from_latents(self.codec.latents(ids))[0])
        return self.codec.decode(ids, (ids.shape[1],))

    def build_mask(
        self,
        tokens: Tensor,
        prompt: VampPrompt,
        *,
        seeds: Sequence[int] | None = None,
        draws: PromptNoise | None = None,
        onsets: Sequence[int] = (),
    ) -> Tensor:
        """The prompt of tokens (official ``build_mask``).

        Args:
            tokens: long ``[B, T, K]``, of which the shape counts.
            prompt: in frames, see ``frames``.
            seeds: one integer an item; 0, 1, .. if left out.
            draws: what chance decides, instead of ``seeds``.
            onsets: frames in which a sound begins.

        Returns:
            bool ``[B, T, K]``, True = to be decided.
        """
        listed = range(len(tokens)) if seeds is None else seeds
        return prompt.mask(draws or prompt.noise(tuple(tokens.shape), listed), onsets)

    def beat_mask(
        self,
        duration: float,
        beats: Sequence[int],
        *,
        before: float = 0.0,
        after: float = 0.02,
        dropout: float = 0.0,
        uniforms: Tensor | None = None,
        invert: bool = True,
    ) -> Tensor:
        """Keep what lies around beats (official ``make_beat_mask``, with the beats found elsewhere).

        Args:
            duration: of the sound, in seconds.
            beats: frames, see ``beat_frames``.
            before: seconds before each beat.
            after: seconds after.
            dropout: share of these frames that is masked all the same.
            uniforms: ``[1, T]`` in [0, 1) for ``dropout``.
            invert: keep the beats; False masks them and keeps the rest.

        Returns:
            bool ``[1, T, K]``, True = to be decided.
        """
        shape = (1, self.frames(duration), self.codec.num_codebooks)
        around = {"before": self.frames(before), "after": self.frames(after)}
        mask = beat_mask(shape, beats, **around, thin=dropout, uniforms=uniforms)
        return mask if invert else ~mask

    def coarse_vamp(
        self,
        tokens: Tensor,
        mask: Tensor,
        *,
        sampling: Sampling = COARSE,
        seeds: Sequence[int] | None = None,
        noise: NoiseOf | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Decide the coarse codebooks, chunk by chunk, each for itself.

        Args:
            tokens: long ``[B, T, K']``, K' at least k.
            mask: bool of that shape. In a chunk with any token given, all of its first and last frame are given as well.
            sampling: settings that lie over the usual ones.
            seeds: one integer an item; 0, 1, .. if left out.
            noise: the source of randomness itself, instead of ``seeds``.

        Returns:
            The tokens ``[B, T, K']``, finer codebooks as they were; and what the model was given, ``[B, T, k]`` with V where
            masked.

        Raises:
            ValueError: shapes that do not fit, settings out of range.
        """
        return self._coarse(tokens, mask, sampling.over(COARSE), _Runs(len(tokens), seeds, noise))

    def coarse_to_fine(
        self,
        tokens: Tensor,
        mask: Tensor | None = None,
        *,
        sampling: Sampling = FINE,
        seeds: Sequence[int] | None = None,
        noise: NoiseOf | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Decide the fine codebooks, chunk by chunk.

        Args:
            tokens: long ``[B, T, K']``, K' from k to K; missing codebooks are masked.
            mask: bool of that shape; None decides all fine codebooks. The coarse codebooks are never decided here.
            sampling: settings that lie over the usual ones.
            seeds: one integer an item; 0, 1, .. if left out.
            noise: the source of randomness itself, instead of ``seeds``.

        Returns:
            The tokens ``[B, T, K]``, and what the model was given, with V where masked.

        Raises:
            ValueError: there is no fine model, shapes that do not fit, settings out of range.
        """
        return self._fine(tokens, mask, sampling.over(FINE), _Runs(len(tokens), seeds, noise))

    def vamp(
        self,
        tokens: Tensor,
        mask: Tensor,
        *,
        time_stretch: int = 1,
        feedback_steps: int = 1,
        sampling: Sampling = COARSE,
        fine_sampling: Sampling = FINE,
        seeds: Sequence[int] | None = None,
        noise: NoiseOf | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Variations: coarse codebooks, then fine ones.

        Args:
            tokens: long ``[B, T, K]``; for several variations of one sound, its tokens as often.
            mask: bool ``[B, T, K]``.
            time_stretch: f, makes the result f times as long: frames are repeated, the new ones masked.
            feedback_steps: how often the coarse model runs, each time on its own result with the same mask.
            sampling: settings of the coarse model, over the usual ones.
            fine_sampling: the same of the fine model.
            seeds: one integer a variation; 0, 1, .. if left out.
            noise: the source of randomness itself, instead of ``seeds``.

        Returns:
            The tokens ``[B, T f, K]`` (without a fine model the first k codebooks), and what the models were given: V where
            masked.

        Raises:
            ValueError: counts below 1, shapes that do not fit, settings out of range.
        """
        if min(time_stretch, feedback_steps) < 1:
            raise ValueError(f"got time_stretch {time_stretch}, feedback_steps {feedback_steps}; expected 1 or more")
        _check_shapes(tokens, mask, self.coarse.num_codebooks)
        runs = _Runs(len(tokens), seeds, noise)
        tokens, mask = repeat(tokens, "B T K -> B (T f) K", f=time_stretch), stretch_mask(mask, time_stretch)
        shown = tokens
        for _ in range(feedback_steps):
            tokens, shown = self._coarse(tokens, mask, sampling.over(COARSE), runs)
        if self.fine is None:
            return tokens[..., : self.coarse.num_codebooks], shown
        tokens, finer = self._fine(tokens, mask, fine_sampling.over(FINE), runs)
        return tokens, torch.cat((shown, finer[..., shown.shape[2] :]), dim=2)

    @property
    def _device(self) -> torch.device:
        return next(self.coarse.parameters()).device

    def _coarse(self, tokens: Tensor, mask: Tensor, sampling: Sampling, runs: _Runs) -> tuple[Tensor, Tensor]:
        count = self.coarse.num_codebooks
        _check_shapes(tokens, mask, count)
        tokens, mask = tokens.to(self._device), mask.to(self._device)
        masked = mask[..., :count].clone()
        for chunk in masked.split(self.coarse_chunk, dim=1):  # views: this changes ``masked``
            partly = ~chunk.flatten(1).all(1)
            chunk[partly, 0] = False
            chunk[partly, -1] = False
        done, shown = self._decide(self.coarse, tokens[..., :count], masked, self.coarse_chunk, sampling, runs)
        return torch.cat((done, tokens[..., count:]), dim=2), shown

    def _fine(self, tokens: Tensor, mask: Tensor | None, sampling: Sampling, runs: _Runs) -> tuple[Tensor, Tensor]:
        if self.fine is None:
            raise ValueError("coarse_to_fine: this VampNet has no fine model; give one when it is made")
        count, books, frames = self.coarse.num_codebooks, self.fine.num_codebooks, tokens.shape[1]
        masked = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
        _check_shapes(tokens, masked, count)
        more = (0, max(books - tokens.shape[2], 0), 0, -frames % self.fine_chunk)
        padded = F.pad(tokens.to(self._device), more)[..., :books]
        masked = F.pad(masked.to(self._device), more, value=True)[..., :books].clone()
        masked[..., :count] = False
        done, shown = self._decide(self.fine, padded, masked, self.fine_chunk, sampling, runs)
        return done[:, :frames], shown[:, :frames]

    def _decide(
        self, model: MaskedTransformer, tokens: Tensor, masked: Tensor, chunk: int, sampling: Sampling, runs: _Runs
    ) -> tuple[Tensor, Tensor]:
        """Run a model on each chunk for itself."""
        shown, settings = tokens.masked_fill(masked, model.vocab_size), VampNetSampling.of(sampling)
        done = []
        for part, mask in zip(shown.split(chunk, dim=1), masked.split(chunk, dim=1), strict=True):
            logits_fn = filtered_logits(model_logits(model, Cond(), (part.shape[1],)), sampling.filter)
            seeds, noise = runs.next()
            done.append(sample_vampnet(logits_fn, part, mask, settings, seeds=seeds, noise=noise))
        return torch.cat(done, dim=1), shown


def beat_frames(
    beats: Sequence[int],
    downbeats: Sequence[int],
    *,
    use_beats: bool = True,
    use_downbeats: bool = True,
    every: int = 1,
    every_downbeat: int = 1,
) -> list[int]:
    """Which beats a prompt keeps: beats that are no downbeats, and downbeats, each thinned for itself.

    Args:
        beats: frames of all beats.
        downbeats: frames of the first beats of the bars.
        use_beats: take beats that are no downbeats.
        use_downbeats: take downbeats.
        every: take every so manieth beat.
        every_downbeat: take every so manieth downbeat.

    Returns:
        Frames, ascending.

    Raises:
        ValueError: a factor below 1.
    """
    if min(every, every_downbeat) < 1:
        raise ValueError(f"got every {every}, every_downbeat {every_downbeat}; expected 1 or more")
    others = [beat for beat in beats if beat not in set(downbeats)]
    return sorted((others[::every] if use_beats else []) + (list(downbeats)[::every_downbeat] if use_downbeats else []))


class _Runs:
    """Seeds or noise of one run of a model after the other."""

    def __init__(self, count: int, seeds: Sequence[int] | None, noise: NoiseOf | None) -> None:
        if seeds is not None and noise is not None:
            raise ValueError("got seeds and noise, expected one of the two")
        self._seeds = check_seeds(range(count) if seeds is None else seeds, count)
        self._noise, self._numbers = noise, numbers()

    def next(self) -> tuple[list[int] | None, Noise | None]:
        number = next(self._numbers)
        if self._noise is not None:
            return None, self._noise(number)
        return [item_seed(seed, number) for seed in self._seeds], None


def _check_shapes(tokens: Tensor, mask: Tensor, least: int) -> None:
    if tokens.ndim != 3 or tokens.shape[1] < 1 or tokens.shape[2] < least or mask.shape != tokens.shape:
        raise ValueError(
            f"got tokens {tuple(tokens.shape)} and mask {tuple(mask.shape)}, expected both [B, T, K] with at least "
            f"one frame and {least} codebooks"
        )
