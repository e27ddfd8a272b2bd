"""The commands that train, by name; importing them makes every data set known by its class."""

import maskgen.models.modern
import maskgen.published.vampnet.transformer
import maskgen.tasks.conditions.text
import maskgen.tasks.data.audio.folders
import maskgen.tasks.data.audio.melodies
import maskgen.tasks.data.images.cifar10
import maskgen.tasks.data.images.digits
import maskgen.tasks.data.images.hub
import maskgen.tasks.data.images.shards
import maskgen.tasks.data.tokens.shards
import maskgen.tasks.data.video.folders
import maskgen.tasks.data.video.moving_digits
import maskgen.tokenizers.audio
import maskgen.tokenizers.image
import maskgen.tokenizers.magvit2
import maskgen.tokenizers.video  # noqa: F401
from maskgen.tasks.commands.parser import ByClass, Command
from maskgen.tasks.commands.tokenize import tokenize_data
from maskgen.tasks.evaluation.features.train_classifier import train_classifier
from maskgen.tasks.evaluation.features.train_dual_encoder import train_dual_encoder
from maskgen.tasks.training.critic import train_critic
from maskgen.tasks.training.tokenizer import train_tokenizer
from maskgen.tasks.training.transformer import train_transformer
from maskgen.tasks.training.video import train_video_transformer
from maskgen.tokenizers.base import Tokenizer, check_contract
from maskgen.tokenizers.training.reconstruction import ReconstructionSettings
from maskgen.tokenizers.training.settings import loss_settings

TRAINING: dict[str, Command] = {
    "train tokenizer": ByClass(
        train_tokenizer,
        option="tokenizer",
        base=Tokenizer,
        setting="loss",
        kind=lambda kind: ReconstructionSettings if kind is None else loss_settings(kind),
        check=check_contract,
        example="maskgen.tokenizers.image.VQGAN",
    ),
    "train classifier": train_classifier,
    "train dual-encoder": train_dual_encoder,
    "train transformer": train_transformer,
    "train critic": train_critic,
    "train video-transformer": train_video_transformer,
    "tokenize": tokenize_data,
}
