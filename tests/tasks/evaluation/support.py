"""What the tests of ``maskgen evaluate`` share: processes as threads, folders of pictures, settings of toy size."""

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from maskgen.tasks.evaluation.features.base import FeatureExtractor
from maskgen.tasks.evaluation.features.classifier import ClassifierConfig
from maskgen.tasks.evaluation.features.protocols import PROTOCOLS
from maskgen.tasks.evaluation.sets.processes import Processes
from maskgen.tasks.evaluation.settings import CasSettings, EvaluationRun, EvaluationSettings
from maskgen.training.optim.optimizers import OptimizerSettings
from maskgen.training.settings import TrainSettings

ONE_AT_A_TIME = threading.Lock()  # processes do not share random state and precision settings, threads do
TINY = ClassifierConfig(patch=1, width=8, multipliers=(1, 2), blocks=1, groups=4)
SHORT = TrainSettings(
    steps=30,
    batch_size=16,
    optimizer=OptimizerSettings(lr=1e-2, warmup_steps=3),
    ema_decay=0.8,
    log_every=10,
    validate_every=0,
    show_every=0,
    checkpoint_every=0,
    tracker=None,
)
CAS = CasSettings(classifier=TINY, settings=SHORT)
SETTINGS = EvaluationSettings(count=24, batch_size=4, draws=20, points=3, shown=6, cas=CAS)


def single() -> Any:
    """The only process."""
    return SimpleNamespace(
        process_index=0,
        num_processes=1,
        is_main_process=True,
        is_local_main_process=False,
        wait_for_everyone=lambda: None,
    )


def evaluation_run(out: Path, extractor: FeatureExtractor | None = None, **changes: Any) -> EvaluationRun:
    """A run that says nothing; its parts, of which it may be one of several processes, go into ``.parts``."""
    usual = {
        "settings": SETTINGS,
        "protocol": PROTOCOLS["torch-fidelity"],
        "team": Processes(changes.pop("state", None) or single(), out / ".parts"),
        "out": out,
        "cache": out / "cache",
        "say": lambda text: None,
    }
    return EvaluationRun(extractor=extractor, **usual | changes)


def together(count: int, work: Callable[[Any], Any]) -> list[Any]:
    """Run ``work`` as so many processes would, in threads, with a real barrier between them; what each gave back."""
    barrier, failures = threading.Barrier(count, timeout=60), []
    found: list[Any] = [None] * count

    def one(index: int) -> None:
        state = SimpleNamespace(
            process_index=index,
            num_processes=count,
            is_main_process=index == 0,
            is_local_main_process=False,
            wait_for_everyone=barrier.wait,
        )
        try:
            found[index] = work(state)
        except BaseException as error:
            failures.append(error)
            barrier.abort()

    threads = [threading.Thread(target=one, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise next((error for error in failures if not isinstance(error, threading.BrokenBarrierError)), failures[0])
    return found


def arrays(count: int, seed: int, side: int = 8) -> np.ndarray:
    """uint8 ``[count, side, side, 3]``: even numbers are dark on the left, odd ones on the right."""
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 120, (count, side, side, 3), dtype=np.uint8)
    images[0::2, :, side // 2 :] += 130
    images[1::2, :, : side // 2] += 130
    return images


def pictures(folder: Path, count: int, seed: int, side: int = 8) -> Path:
    """``arrays`` as PNG files of two classes, ``left`` and ``right``."""
    for number, image in enumerate(arrays(count, seed, side)):
        path = folder / ("right" if number % 2 else "left") / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return folder


def tensors(count: int, seed: int, side: int = 8) -> torch.Tensor:
    """``arrays`` as float ``[count, 3, side, side]``."""
    return torch.from_numpy(arrays(count, seed, side)).permute(0, 3, 1, 2).float() / 255


def clip_folder(folder: Path, seed: int = 0) -> Path:
    """A random CLIP of 12 features with its processor (pictures of 8 x 8) and tokenizer, as ``transformers`` saves them."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
    ends = {"bos_token_id": 552, "eos_token_id": 553, "pad_token_id": 553}
    config = CLIPConfig(
        text_config={**sizes, **ends, "max_position_embeddings": 20, "vocab_size": 554},
        vision_config={**sizes, "image_size": 8, "patch_size": 4},
        projection_dim=12,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CLIPModel(config)
        for weight in model.parameters():
            nn.init.normal_(weight, std=0.3)
    model.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}).save_pretrained(folder)
    tokenizer = Path(__file__).parents[2] / "fixtures" / "muse" / "amused_tokenizer"
    return Path(shutil.copytree(tokenizer, folder, dirs_exist_ok=True))
