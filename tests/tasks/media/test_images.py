"""Pictures of every mode and damage come in as RGB or as one clear line, and go out whole."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from maskgen.tasks.media.images import (
    as_list,
    broadcast,
    image_grid,
    load_image,
    load_mask,
    save_gif,
    save_image,
    to_images,
    to_tensor,
)

RED, BLUE = (200, 10, 30), (5, 60, 250)


def noise(height: int = 12, width: int = 9) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def flat(mode: str, colour: object) -> Image.Image:
    return Image.new(mode, (6, 4), colour)  # type: ignore[arg-type]


def transparent_palette() -> Image.Image:
    image = flat("P", 0)
    image.putpalette([*RED, *BLUE])
    image.putpixel((1, 1), 1)
    image.info["transparency"] = 0
    return image


def sixteen_bit(mode: str) -> Image.Image:
    values = np.full((4, 6), 0x8080)
    if mode == "I;16B":
        return Image.frombytes("I;16B", (6, 4), values.astype(">u2").tobytes())
    return Image.fromarray(values.astype(np.uint16 if mode == "I;16" else np.int32))


@pytest.mark.parametrize(
    ("make", "colour"),
    [
        (lambda: flat("RGB", RED), RED),
        (lambda: flat("L", 77), (77, 77, 77)),
        (lambda: flat("1", 1), (255, 255, 255)),
        (lambda: flat("LA", (100, 255)), (100, 100, 100)),
        (lambda: flat("LA", (100, 0)), (255, 255, 255)),
        (lambda: flat("La", (100, 255)), (100, 100, 100)),
        (lambda: flat("RGBA", (*RED, 255)), RED),
        (lambda: flat("RGBA", (*RED, 0)), (255, 255, 255)),
        (lambda: flat("RGBA", (0, 0, 0, 51)), (204, 204, 204)),
        (lambda: flat("RGBa", (*RED, 255)), RED),
        (lambda: flat("RGBX", (*RED, 0)), RED),
        (lambda: flat("CMYK", (0, 255, 0, 0)), (255, 0, 255)),
        (lambda: flat("RGB", RED).convert("P", palette=Image.Palette.ADAPTIVE), RED),
        (transparent_palette, (255, 255, 255)),
        (lambda: sixteen_bit("I;16"), (128, 128, 128)),
        (lambda: sixteen_bit("I;16B"), (128, 128, 128)),
        (lambda: sixteen_bit("I"), (128, 128, 128)),
        (lambda: flat("F", 0.4), (102, 102, 102)),
        (lambda: flat("YCbCr", (120, 128, 128)), (120, 120, 120)),
        (lambda: flat("HSV", (0, 0, 90)), (90, 90, 90)),
    ],
)
def test_every_mode(make: Callable[[], Image.Image], colour: tuple[int, int, int]) -> None:
    loaded = load_image(make())
    assert (loaded.mode, loaded.size) == ("RGB", (6, 4))
    assert loaded.getpixel((0, 0)) == colour


def test_palette_keeps_what_is_opaque() -> None:
    assert load_image(transparent_palette()).getpixel((1, 1)) == BLUE


@pytest.mark.parametrize(("mode", "suffix"), [("L", "png"), ("P", "gif"), ("CMYK", "jpg"), ("1", "png"), ("LA", "png")])
def test_modes_from_files(mode: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    noise().convert(mode).save(path)
    assert load_image(path).mode == "RGB"
    assert np.array_equal(pixels(load_image(path)), pixels(load_image(str(path))))


def test_sixteen_bit_file_is_scaled_not_clipped(tmp_path: Path) -> None:
    ramp = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    assert np.array_equal(pixels(load_image(tmp_path / "ramp.png"))[..., 0].ravel(), np.arange(256))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int, tmp_path: Path) -> None:
    image = Image.new("RGB", (16, 8), RED)
    image.paste(BLUE, (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "turned.png", exif=exif)
    loaded = load_image(tmp_path / "turned.png")
    assert loaded.size == ((8, 16) if orientation > 4 else (16, 8))
    first = {1: BLUE, 2: RED, 3: RED, 4: BLUE, 5: BLUE, 6: BLUE, 7: RED, 8: RED}[orientation]
    assert loaded.getpixel((0, 0)) == first
    assert np.array_equal(pixels(load_image(Image.open(tmp_path / "turned.png"))), pixels(loaded))


def test_arrays() -> None:
    array = np.asarray(noise())
    assert np.array_equal(np.asarray(load_image(array)), array)
    assert np.array_equal(np.asarray(load_image((array / 255).astype(np.float32))), array)
    assert np.array_equal(np.asarray(load_image(array[..., 0]))[..., 2], array[..., 0])


def write(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "bmp", "tif"])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_truncated_files(suffix: str, part: float, tmp_path: Path) -> None:
    path = tmp_path / f"whole.{suffix}"
    noise(64, 64).save(path)
    content = path.read_bytes()
    broken = write(tmp_path, f"broken.{suffix}", content[: int(len(content) * part)])
    with pytest.raises(ValueError, match=r"broken\.\w+: got .*expected") as caught:
        load_image(broken)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_pictures(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png: no such file, expected an image file"):
        load_image(tmp_path / "nowhere.png")
    with pytest.raises(ValueError, match="got a folder, expected an image file"):
        load_image(tmp_path)
    with pytest.raises(ValueError, match=r"empty\.png: got an empty file"):
        load_image(write(tmp_path, "empty.png", b""))
    with pytest.raises(ValueError, match=r"text\.png: got a file that is no image"):
        load_image(write(tmp_path, "text.png", b"no picture at all"))


def test_too_many_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise(30, 30).save(tmp_path / "large.png")
    for limit in (800, 100):  # a warning and an error of Pillow's
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(ValueError, match=rf"large\.png: got more than {limit} pixels"):
            load_image(tmp_path / "large.png")


@pytest.mark.parametrize(
    ("source", "kind", "message"),
    [
        (Image.new("RGB", (1, 1)), ValueError, "image: got 1 x 1 pixels, expected 2 or more on each side"),
        (Image.new("L", (9, 1)), ValueError, "got 9 x 1 pixels"),
        (np.zeros((4, 4, 4), np.uint8), ValueError, r"array of shape \(4, 4, 4\), expected \[H, W, 3\] or \[H, W\]"),
        (np.zeros((0, 4, 3), np.uint8), ValueError, r"array of shape \(0, 4, 3\)"),
        (np.full((4, 4), 2.0), ValueError, "values from 2.0 to 2.0, expected 0 to 1 for float64; divide by 255"),
        (np.full((4, 4), np.nan), ValueError, "values from nan"),
        (np.zeros((4, 4), np.int64), TypeError, "array of int64, expected uint8, or float"),
        (
            Image.fromarray(np.full((4, 4), 70000, np.int32)),
            ValueError,
            "mode I holds 70000 to 70000, expected 16 bits",
        ),
        (7, TypeError, "image: got int, expected a path, a PIL image or a numpy array"),
    ],
)
def test_sources_that_cannot_be_used(source: object, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        load_image(source)  # type: ignore[arg-type]


def test_masks() -> None:
    marked = np.zeros((4, 6), bool)
    marked[1:3, 2:5] = True
    grey = Image.fromarray(np.where(marked, 128, 127).astype(np.uint8))
    strokes = Image.fromarray(np.stack([np.full((4, 6), 255)] * 3 + [marked * 255], axis=-1).astype(np.uint8))
    assert strokes.mode == "RGBA"
    for source in (marked, torch.from_numpy(marked), grey, grey.convert("RGB"), strokes, marked.astype(np.float32)):
        found = load_mask(source, (6, 4))
        assert (found.dtype, found.tolist()) == (torch.bool, marked.tolist())
    assert load_mask(Image.fromarray(marked), (6, 4)).tolist() == marked.tolist()  # mode "1"


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((4, 6), bool), "mask: nothing to repaint: .*boolean"),
        (np.ones((4, 6), np.uint8), "mask: nothing to repaint"),
        (torch.ones(4, 6, dtype=torch.bool), "mask: nothing is kept: .*use generate"),
        (np.ones((6, 4), bool), "mask: got 4 x 6 pixels, expected 6 x 4 as the image"),
        (torch.ones(1, 4, 6, dtype=torch.bool), r"array of shape \(1, 4, 6\)"),
    ],
)
def test_masks_that_cannot_be_used(mask: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_mask(mask, (6, 4))  # type: ignore[arg-type]


def test_tensors_and_back() -> None:
    images = [noise(), noise().transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    tensor = to_tensor(images)
    assert (tensor.shape, tensor.dtype) == ((2, 3, 12, 9), torch.float32)
    assert all(np.array_equal(pixels(a), pixels(b)) for a, b in zip(to_images(tensor), images, strict=True))
    levels = torch.tensor([-1.0, 0.4 / 255, 0.6 / 255, 2.0]).expand(1, 3, 1, 4)
    assert pixels(to_images(levels)[0])[0, :, 0].tolist() == [0, 0, 1, 255]
    with pytest.raises(ValueError, match=r"got sizes .* all of one size"):
        to_tensor([noise(), noise(4, 4)])
    with pytest.raises(ValueError, match="at least one picture"):
        to_tensor([])
    with pytest.raises(ValueError, match=r"got shape \(3, 4, 4\)"):
        to_images(torch.zeros(3, 4, 4))
    with pytest.raises(ValueError, match="not finite"):
        to_images(torch.full((1, 3, 2, 2), torch.nan))


@given(count=st.integers(1, 7), columns=st.integers(1, 5), pad=st.integers(0, 3))
def test_grid(count: int, columns: int, pad: int) -> None:
    images = [Image.new("RGB", (5, 4), (number, 0, 0)) for number in range(count)]
    sheet = image_grid(images, columns, pad=pad)
    used = min(columns, count)
    assert sheet.size == (used * (5 + pad) + pad, -(-count // used) * (4 + pad) + pad)
    for number in range(count):
        row, column = divmod(number, used)
        assert sheet.getpixel((pad + column * (5 + pad), pad + row * (4 + pad))) == (number, 0, 0)


def test_grid_mistakes() -> None:
    with pytest.raises(ValueError, match="got 0 images, columns 2"):
        image_grid([], 2)
    with pytest.raises(ValueError, match="columns 0"):
        image_grid([noise()], 0)


def test_saving(tmp_path: Path) -> None:
    save_image(noise(), tmp_path / "new" / "a.png")
    assert np.array_equal(pixels(load_image(tmp_path / "new" / "a.png")), pixels(noise()))
    save_image(noise(), tmp_path / "a.jpg")
    assert load_image(tmp_path / "a.jpg").size == (9, 12)
    frames = [flat("RGB", RED), flat("RGB", BLUE)]
    save_gif(frames, tmp_path / "a.gif", 0.25)
    with Image.open(tmp_path / "a.gif") as animation:
        assert (animation.n_frames, animation.info["duration"], animation.info["loop"]) == (2, 250, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gif", "a.jpg", "new"]


def test_saving_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for suffix in ("", ".txt"):
        with pytest.raises(ValueError, match="expected a name that ends in a picture format"):
            save_image(noise(), tmp_path / f"a{suffix}")
    write(tmp_path, "file", b"in the way")
    with pytest.raises(OSError, match=r"file/a\.png: cannot be written") as caught:
        save_image(noise(), tmp_path / "file" / "a.png")
    assert "\n" not in str(caught.value)
    for frames, seconds in (([], 1.0), ([noise()], 0.0), ([noise()], float("inf"))):
        with pytest.raises(ValueError, match="save_gif: got"):
            save_gif(frames, tmp_path / "a.gif", seconds)
    with pytest.raises(ValueError, match=r"ends in \.gif"):
        save_gif([noise()], tmp_path / "a.png", 1)
    save_image(noise(), tmp_path / "kept.png")
    before = (tmp_path / "kept.png").read_bytes()

    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(OSError, match=r"kept\.png: cannot be written \(No space left on device\)"):
        save_image(noise(4, 4), tmp_path / "kept.png")
    assert (tmp_path / "kept.png").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "kept.png"]


def test_lists_of_one_length() -> None:
    assert as_list("one") == ["one"]
    assert as_list(("a", "b")) == ["a", "b"]
    assert broadcast(a=[1], b=range(3), c="xyz") == [[1, 1, 1], [0, 1, 2], ["x", "y", "z"]]
    with pytest.raises(ValueError, match="got 2 images, 3 seeds; expected the same number of each, or one"):
        broadcast(images=[1, 2], seeds=[1, 2, 3])
    with pytest.raises(ValueError, match="got 1 images, 0 seeds"):
        broadcast(images=[1], seeds=[])
