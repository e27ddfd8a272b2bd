"""Where classes that folders and settings name by import path stood before they moved.

Saved models name the door of a room (``maskgen.models.BertTransformer``); those of before named a file.
"""

_MOVED = {
    "modern": "models.modern",
    "transformer": "models.bert",
    "published.amused": "published.amused.transformer",
    "published.halton": "published.halton.transformer",
    "published.imagebert": "published.onedtok.imagebert",
    "published.maskbit": "published.maskbit.transformer",
    "published.uvitbert": "published.onedtok.uvitbert",
    "published.vampnet": "published.vampnet.transformer",
    "tokenizers.audio_codec": "tokenizers.audio.codec",
    "tokenizers.magvit2": "tokenizers.magvit2.tokenizer",
    "tokenizers.published.amused": "tokenizers.published.image.amused",
    "tokenizers.published.dac": "tokenizers.published.audio.dac",
    "tokenizers.published.encodec": "tokenizers.published.audio.encodec",
    "tokenizers.published.encodec_package": "tokenizers.published.audio.encodec_package",
    "tokenizers.published.ibq": "tokenizers.published.image.ibq",
    "tokenizers.published.lac": "tokenizers.published.audio.lac",
    "tokenizers.published.llamagen": "tokenizers.published.image.llamagen",
    "tokenizers.published.maskbit": "tokenizers.published.image.maskbit",
    "tokenizers.published.taming": "tokenizers.published.image.taming",
    "tokenizers.toy": "tokenizers.image.toy",
    "tokenizers.toy_audio": "tokenizers.audio.toy",
    "tokenizers.toy_video": "tokenizers.video.toy",
    "tokenizers.vq2d_frames": "tokenizers.video.frames",
    "tokenizers.vq3d": "tokenizers.video.vq3d",
    "tokenizers.vqgan": "tokenizers.image.vqgan",
    "tasks.audio_data": "tasks.data",
    "tasks.cifar10": "tasks.data",
    "tasks.classifier": "tasks.evaluation.features.classifier",
    "tasks.datasets": "tasks.data",
    "tasks.features_inception": "tasks.evaluation.features",
    "tasks.hub_images": "tasks.data",
    "tasks.i3d": "tasks.evaluation.features",
    "tasks.image_folders": "tasks.data",
    "tasks.image_shards": "tasks.data",
    "tasks.melodies": "tasks.data",
    "tasks.moving_digits": "tasks.data",
    "tasks.token_shards": "tasks.data",
    "tasks.video_data": "tasks.data",
}

# Single classes that left a module which stays.
_CLASSES = {"maskgen.tasks.data.images.digits.Folder": "maskgen.tasks.data.Folder"}


def current_path(path: str) -> str:
    """Today's import path of a class of ours; the same path where nothing moved."""
    if path in _CLASSES:
        return _CLASSES[path]
    module, _, name = path.rpartition(".")
    moved = _MOVED.get(module.removeprefix("maskgen.")) if module.startswith("maskgen.") else None
    return path if moved is None else f"maskgen.{moved}.{name}"
