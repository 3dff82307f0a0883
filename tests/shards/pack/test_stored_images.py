from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shards.images import ENDINGS, FORMATS, decode_jpeg, encode_jpeg, is_picture, load_rgb
from shards_trees import picture

OPTIONS: dict[str, Any] = {"short_side": 0, "upscale": False, "max_pixels": 1_000_000}


def load(path: Path, **changed: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return load_rgb(str(path), **{**OPTIONS, **changed})


def test_grey_and_palette_pictures_become_rgb(tmp_path: Path) -> None:
    image = Image.fromarray(picture(1))
    for mode in ("L", "1"):
        image.convert(mode).save(tmp_path / f"{mode}.png")
        expected = np.asarray(image.convert(mode).convert("RGB"))
        assert np.array_equal(load(tmp_path / f"{mode}.png"), expected)
    palette = image.quantize(16)
    palette.save(tmp_path / "p.png")
    assert np.array_equal(load(tmp_path / "p.png"), np.asarray(palette.convert("RGB")))


def test_cmyk_keeps_its_colours(tmp_path: Path) -> None:
    Image.new("RGB", (20, 20), (200, 30, 60)).convert("CMYK").save(tmp_path / "c.jpg", quality=95)
    assert np.abs(load(tmp_path / "c.jpg").astype(int) - [200, 30, 60]).max() <= 4


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_what_is_transparent_becomes_white(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 10, 20))
    name = "t.tif" if mode == "PA" else "t.png"
    if mode == "PA":
        image.quantize(4).save(tmp_path / "t.png")  # a palette with transparency
        name = "t.png"
    else:
        image.convert(mode).save(tmp_path / name)
    pixels = load(tmp_path / name)
    assert pixels[5, 15].tolist() == [255, 255, 255] and pixels[5, 5].tolist() == [0, 0, 0]


def test_sixteen_bits_are_scaled_to_eight(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 400).reshape(20, 20).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "d.png")
    pixels = load(tmp_path / "d.png")
    assert np.abs(pixels[..., 0] - values / 257).max() <= 1
    assert pixels.max() == 255


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.fromarray(picture(2, (40, 20)))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "e.png", exif=exif)
    assert np.array_equal(load(tmp_path / "e.png"), np.rot90(np.asarray(image), -1))


def test_the_short_side_is_reached_but_never_by_enlarging(tmp_path: Path) -> None:
    Image.fromarray(picture(3, (400, 200))).save(tmp_path / "s.jpg")
    assert load(tmp_path / "s.jpg", short_side=50).shape == (50, 100, 3)
    assert load(tmp_path / "s.jpg", short_side=300).shape == (200, 400, 3)
    assert load(tmp_path / "s.jpg", short_side=300, upscale=True).shape == (300, 600, 3)


def test_huge_pictures_are_refused_from_their_header(tmp_path: Path) -> None:
    Image.new("1", (9000, 9000)).save(tmp_path / "huge.png")
    with pytest.raises(ValueError, match="9000 x 9000 pixels, more than max_pixels=1000000"):
        load(tmp_path / "huge.png")


def test_extremely_narrow_pictures_are_refused(tmp_path: Path) -> None:
    Image.new("RGB", (600, 3)).save(tmp_path / "n.png")
    with pytest.raises(ValueError, match="600 x 3 pixels, narrower than 1:50"):
        load(tmp_path / "n.png")


def test_a_truncated_picture_and_a_text_are_refused_without_their_path(tmp_path: Path) -> None:
    Image.fromarray(picture(4)).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:-200])
    (tmp_path / "text.jpg").write_text("not a picture")
    assert load(tmp_path / "whole.jpg").shape == (30, 40, 3)
    for name, cause in (("cut.jpg", "truncated"), ("text.jpg", "no picture")):
        with pytest.raises(ValueError, match=cause) as caught:
            load(tmp_path / name)
        assert str(tmp_path) not in str(caught.value)


def test_stored_pictures_come_back_nearly_the_same() -> None:
    image = picture(5, (300, 260))
    back = decode_jpeg(encode_jpeg(image, 95))
    assert np.abs(back.astype(int) - image).mean() < 2


def test_a_jpeg_is_bounded_before_decoding() -> None:
    with pytest.raises(ValueError, match="more than max_pixels=100"):
        decode_jpeg(encode_jpeg(picture(6), 90), max_pixels=100)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_its_picture_of_several_the_first(tmp_path: Path, kind: str) -> None:
    first, second = Image.fromarray(picture(7)), Image.fromarray(picture(8))
    several = kind in ("GIF", "WEBP", "TIFF", "PNG", "AVIF")
    more: dict[str, Any] = {"save_all": True, "append_images": [second]} if several else {}
    first.save(tmp_path / "x", kind, **more)
    pixels = load(tmp_path / "x").astype(int)
    if kind == "ICO":  # squeezed to a square by Pillow
        pixels = np.asarray(Image.fromarray(pixels.astype(np.uint8)).resize(first.size)).astype(int)
    assert pixels.shape == (30, 40, 3)
    near, far = (np.abs(pixels - np.asarray(image)).mean() for image in (first, second))
    assert near < 20 < far
    assert is_picture(str(tmp_path / "x")) is (kind != "TGA")  # which has no mark at its start


def test_the_endings_are_those_that_pillow_knows_of_the_formats() -> None:
    known = Image.registered_extensions().items()
    assert {ending for ending, kind in known if kind in FORMATS} == ENDINGS


def test_a_format_whose_decoder_runs_a_program_is_refused(tmp_path: Path) -> None:
    Image.fromarray(picture(7)).save(tmp_path / "x.eps")
    assert not is_picture(str(tmp_path / "x.eps"))
    with pytest.raises(ValueError, match="no picture, or of an unknown format"):
        load(tmp_path / "x.eps")
