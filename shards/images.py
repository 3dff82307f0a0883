"""Any picture file to RGB, bounded before it is decoded; RGB to a stored JPEG."""

import warnings
from typing import cast

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from vgse.errors import UserError

# Of Pillow's decoders those that read plain pictures. EPS, for one, would run a program.
FORMATS = (
    *("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "AVIF", "JPEG2000"),
    *("DIB", "ICO", "PCX", "QOI", "SGI", "TGA"),
)
# As Pillow registers them, which takes it a while.
ENDINGS = frozenset(
    [
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".webp", ".avif", ".avifs"),
        *(".tif", ".tiff", ".bmp", ".dib", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".ico", ".qoi"),
        *(".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".pcx", ".tga", ".icb", ".vda", ".vst"),
        *(".sgi", ".rgb", ".rgba", ".bw"),
    ]
)
MAX_ASPECT = 50
_JPEG_LIMIT = 65500


def load_rgb(path: str, short_side: int, upscale: bool, max_pixels: int) -> NDArray[np.uint8]:
    """The picture as uint8 [H, W, 3], upright, on white, its shorter side brought to short_side.

    A short_side of 0 keeps the size; smaller pictures are enlarged only with `upscale`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of what is refused or repaired here
            with Image.open(path, formats=FORMATS) as image:
                _require_size(image.size, max_pixels)
                if short_side:
                    # Lets libjpeg decode a large photograph at a fraction of its size.
                    image.draft(None, (2 * short_side, 2 * short_side))
                rgb = _resize(_to_rgb(ImageOps.exif_transpose(image)), short_side, upscale)
                return np.asarray(rgb, np.uint8)
    except UserError:
        raise
    except UnidentifiedImageError:
        raise UserError("no picture, or of an unknown format") from None
    except Exception as error:  # decoders raise anything on damaged data
        text = " ".join(str(error).replace(path, "the file").split())
        raise UserError(f"{type(error).__name__}: {text}") from None


def is_picture(path: str) -> bool:
    """Whether a file begins as a picture of a known format, whatever its name; OSError where it
    cannot be opened."""
    with open(path, "rb") as file:
        try:
            Image.init()
            start = file.read(16)
            accepts = ((kind, Image.OPEN[kind][1]) for kind in FORMATS)
            fits = [kind for kind, accept in accepts if accept and accept(start) is True]
            if not fits:
                return False
            with Image.open(file, formats=fits):
                return True
        except Exception:  # decoders raise anything on what is no picture
            return False


def encode_jpeg(image: NDArray[np.uint8], quality: int) -> bytes:
    """JPEG of a uint8 [H, W, 3] image; colour at full resolution below 200 pixels."""
    # Halved colour is invisible in photographs, but not in icons of a few dozen pixels.
    chroma = "444" if min(image.shape[:2]) < 200 else "420"
    return cast(bytes, simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality, "RGB", chroma))


def decode_jpeg(data: bytes, *, max_pixels: int = 64_000_000) -> NDArray[np.uint8]:
    """uint8 [H, W, 3]; refused if damaged or above `max_pixels` by its header."""
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        _require_size((width, height), max_pixels)
        return cast(NDArray[np.uint8], simplejpeg.decode_jpeg(data, "RGB"))
    except ValueError as error:
        raise UserError(f"not a sound JPEG ({error})") from None


def resize_square(image: NDArray[np.uint8], side: int, out: NDArray[np.uint8]) -> None:
    """Squeeze a uint8 [H, W, 3] image into `out` [side, side, 3]."""
    height, width = image.shape[:2]
    # Bilinear is free of visible aliasing down to half the size, and several times faster.
    way = cv2.INTER_LINEAR if min(height, width) < 2 * side else cv2.INTER_AREA
    cv2.resize(image, (side, side), dst=out, interpolation=way)


def _require_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if min(size) < 1 or width * height > max_pixels:
        raise UserError(f"{width} x {height} pixels, more than max_pixels={max_pixels}")
    if max(size) > MAX_ASPECT * min(size):
        raise UserError(f"{width} x {height} pixels, narrower than 1:{MAX_ASPECT}")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        wide = image.mode != "I" or values.max(initial=0) > 255
        grey = (values / 257 if wide else values).clip(0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if image.mode == "F":
        raise UserError("a picture of floating-point numbers; convert it to 8 or 16 bits")
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def _resize(image: Image.Image, short_side: int, upscale: bool) -> Image.Image:
    width, height = image.size
    scale = short_side / min(width, height) if short_side else 1.0
    scale = min(scale if upscale else min(scale, 1.0), _JPEG_LIMIT / max(width, height))
    if scale == 1.0:
        return image
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
