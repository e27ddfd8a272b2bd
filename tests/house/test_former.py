"""Import paths of before the rooms still mean the same classes, in saved folders and in written settings."""

import importlib
import json
from pathlib import Path

import pytest
from torch import nn

from maskgen.checkpoint import class_path, current_path, load_module, save_module
from maskgen.models import ModernTransformer
from maskgen.tokenizers.image import ToyTokenizer, ToyTokenizerConfig
from tests.core.toys import transformer

FORMER = [
    *("modern.ModernTransformer", "transformer.BertTransformer", "published.amused.UVit2D"),
    *("published.halton.HaltonTransformer", "published.imagebert.ImageBert", "published.uvitbert.UViTBert"),
    *("published.maskbit.MaskBitTransformer", "published.magvit.MagvitTransformer"),
    *("published.vampnet.VampNetTransformer", "tokenizers.toy.ToyTokenizer", "tokenizers.vqgan.VQGAN"),
    *("tokenizers.toy_video.ToyVideoTokenizer", "tokenizers.vq3d.VQ3D", "tokenizers.vq2d_frames.FrameVQ"),
    *("tokenizers.toy_audio.ToyAudioTokenizer", "tokenizers.audio_codec.AudioCodec"),
    *("tokenizers.magvit2.Magvit2Image", "tokenizers.magvit2.Magvit2Video", "tokenizers.published.taming.TamingVQGAN"),
    *("tokenizers.published.llamagen.LlamaGenVQ", "tokenizers.published.ibq.IBQTokenizer"),
    *("tokenizers.published.amused.AmusedVQ", "tokenizers.published.maskbit.MaskBitTokenizer"),
    *("tokenizers.published.dac.DACTokenizer", "tokenizers.published.lac.LACTokenizer"),
    *("tokenizers.published.encodec.EncodecTokenizer", "tokenizers.published.encodec_package.EncodecPackageTokenizer"),
    "tasks.data.images.digits.Folder",
    *("tasks.datasets.Digits", "tasks.datasets.Folder", "tasks.image_folders.Folder", "tasks.cifar10.Cifar10"),
    *("tasks.hub_images.HubImages", "tasks.image_shards.ShardImages", "tasks.token_shards.TokenShards"),
    *("tasks.audio_data.SoundFolder", "tasks.melodies.Melodies", "tasks.video_data.VideoFolder"),
    *("tasks.moving_digits.MovingDigits", "tasks.classifier.ClassifierFeatures", "tasks.classifier.Classifier"),
    *("tasks.features_inception.InceptionFeatures", "tasks.i3d.I3DFeatures"),
]


@pytest.mark.parametrize("path", FORMER)
def test_a_former_path_is_found(path: str) -> None:
    module, _, name = current_path(f"maskgen.{path}").rpartition(".")
    kind = getattr(importlib.import_module(module), name)
    assert isinstance(kind, type)
    assert kind.__name__ == name


def test_what_did_not_move_stays() -> None:
    for path in ("maskgen.models.bert.BertTransformer", "mine.modern.ModernTransformer", "Name", ""):
        assert current_path(path) == path


def test_folders_saved_before_load_and_new_ones_name_doors(tmp_path: Path) -> None:
    for module, old, door in (
        (transformer("modern"), "maskgen.modern.ModernTransformer", "maskgen.models.ModernTransformer"),
        (
            ToyTokenizer(ToyTokenizerConfig()),
            "maskgen.tokenizers.toy.ToyTokenizer",
            "maskgen.tokenizers.image.ToyTokenizer",
        ),
    ):
        save_module(module, tmp_path)
        config = tmp_path / "config.json"
        content = json.loads(config.read_text(encoding="utf-8"))
        assert content["class_path"] == door == class_path(type(module))
        config.write_text(json.dumps(content | {"class_path": old}), encoding="utf-8")
        assert type(load_module(tmp_path, nn.Module)) is type(module)


def test_a_class_of_the_users_own_keeps_its_module() -> None:
    class Mine(ModernTransformer):
        pass

    assert class_path(Mine).endswith("test_a_class_of_the_users_own_keeps_its_module.<locals>.Mine")
