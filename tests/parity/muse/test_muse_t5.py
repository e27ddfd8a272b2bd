"""T5's encoder as ``transformers`` has it, through our text encoder, against recorded outputs; and what Muse makes of it.

Shapes: B texts, L tokens.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel
from transformers.models.t5.modeling_t5 import T5Attention

from maskgen.tasks.conditions.text.pretrained import PretrainedText, PretrainedTextConfig
from tests.parity.muse.lucidrains import recorded, weights
from tests.parity.support import facts, load, recordings
from tokenizers import Tokenizer

CLOSE = {"atol": 5e-5, "rtol": 0.0}  # README
ENCODERS = [path.name.removesuffix(".io.safetensors") for path in recordings("muse", "t5_*.io.safetensors")]
TREES = facts("muse", "full_shapes_t5*.json")
assert TREES


def encoder(kind: str) -> T5EncoderModel:
    state, settings = weights(kind)
    model = T5EncoderModel(T5Config(**settings["config"]))
    model.load_state_dict(state)
    return model.eval()


def text_encoder(kind: str, folder: Path, length: int) -> PretrainedText:
    """Our text encoder of a folder whose words are the ids themselves, so that any ids can be said."""
    model = encoder(kind)
    model.save_pretrained(folder)
    words = Tokenizer(WordLevel({said([number]): number for number in range(model.config.vocab_size)}, unk_token="<2>"))
    words.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<0>", unk_token="<2>").save_pretrained(folder)
    return PretrainedText(PretrainedTextConfig(source=str(folder), length=length))


def said(ids: Sequence[int]) -> str:
    return " ".join(f"<{number}>" for number in ids)  # none is a part of another


@pytest.mark.parametrize("kind", ENCODERS)
@torch.no_grad()
def test_hidden_states_and_buckets(kind: str) -> None:
    io, model = load(recordings("muse", f"{kind}.io.safetensors")[0]), encoder(kind)
    out = model(input_ids=io["ids"], attention_mask=io["mask"].long(), output_hidden_states=True)
    states = {int(key.rpartition(".")[2]): tensor for key, tensor in io.items() if key.startswith("hidden_states.")}
    assert states
    for layer, reference in states.items():
        torch.testing.assert_close(out.hidden_states[layer][:, : reference.shape[1]], reference, **CLOSE)
    if "last_hidden_state" in io:
        torch.testing.assert_close(out.last_hidden_state, io["last_hidden_state"], **CLOSE)
    places, config = torch.arange(io["ids"].shape[1]), model.config
    buckets = T5Attention._relative_position_bucket(
        places[None, :] - places[:, None],
        bidirectional=True,
        num_buckets=config.relative_attention_num_buckets,
        max_distance=config.relative_attention_max_distance,
    )
    assert torch.equal(buckets, io["buckets"].long())


@pytest.mark.parametrize("kind", ENCODERS)
def test_our_text_encoder_zeroes_the_padding(kind: str, tmp_path: Path) -> None:
    io = load(recordings("muse", f"{kind}.io.safetensors")[0])
    texts = [said(row[real].tolist()) for row, real in zip(io["ids"], io["mask"], strict=True)]
    ours = text_encoder(kind, tmp_path, io["ids"].shape[1])
    with torch.no_grad():
        cond = ours.encode(texts)
    assert cond.context is not None
    assert cond.context_mask is not None
    assert torch.equal(cond.context_mask, io["mask"])
    torch.testing.assert_close(cond.context, io["zeroed"], **CLOSE)
    assert (cond.context[~io["mask"]] == 0).all()
    assert ours.context_width == io["zeroed"].shape[2]


def check_features(ours: PretrainedText, texts: Mapping[str, Sequence[int]], reference: Tensor) -> None:
    with torch.no_grad():
        cond = ours.encode([said(ids) for ids in texts.values()])
    assert cond.context is not None
    assert cond.context_mask is not None
    longest = reference.shape[1]  # they pad to the longest text of a batch, we to the window
    torch.testing.assert_close(cond.context[:, :longest], reference, **CLOSE)
    assert not cond.context[:, longest:].any()
    assert torch.equal(cond.context_mask[:, :longest], reference.ne(0).any(-1))


def test_text_as_muse_gets_it(tmp_path: Path) -> None:
    io, settings = recorded("muse_base")
    longest = max(map(len, settings["texts"].values()))
    ours = text_encoder("muse_t5", tmp_path, length=longest + 3)
    check_features(ours, settings["texts"], io["text_embeds"])
    check_features(ours, settings["negative_texts"], io["negative_text_embeds"])


@pytest.mark.parametrize("path", TREES, ids=lambda path: path.stem)
def test_full_size_encoder(path: Path) -> None:
    told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    with torch.device("meta"):
        model = T5EncoderModel(T5Config(**told["config"]))
    assert {name: list(tensor.shape) for name, tensor in model.state_dict().items()} == told["state_dict"]
    assert sum(parameter.numel() for parameter in model.parameters()) == told["num_params"]
