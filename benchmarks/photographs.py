"""A folder of realistic JPEGs, drawn from the photographs that ship with installed libraries.

Nine photographs of scikit-image, scikit-learn and matplotlib; random crops and mirror images of
them, a class folder each, stored like ImageNet's: about 500 x 375 pixels and 110 kB.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter, ImageOps

SIZES = [(500, 375), (500, 375), (500, 333), (375, 500)]  # width, height
TARGET_BYTES = 110_000
MIN_SHARE = 0.7  # of the largest possible crop; smaller ones would be blown up and smooth
# As photo sites do after reducing. With it 110 kB become 56 kB at quality 90, as with ImageNet's.
SHARPEN = ImageFilter.UnsharpMask(radius=0.8, percent=100, threshold=0)


def sources() -> dict[str, Path]:
    """The photographs by name; each becomes a class."""
    import matplotlib
    import skimage
    import sklearn.datasets

    sk = Path(skimage.__file__).parent / "data"
    learn = Path(sklearn.datasets.__file__).parent / "images"
    names = ["astronaut", "chelsea", "coffee", "motorcycle_left", "motorcycle_right"]
    return {
        **{name: sk / f"{name}.png" for name in names},
        "rocket": sk / "rocket.jpg",
        "china": learn / "china.jpg",
        "flower": learn / "flower.jpg",
        "hopper": Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg",
    }


def encode(image: Image.Image, quality: int) -> bytes:
    """JPEG as libjpeg writes it by default (colour at half the resolution)."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def crop(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A random crop of one of SIZES's shapes, brought to that size, mirrored every other time."""
    width, height = SIZES[rng.integers(len(SIZES))]
    scale = min(image.width / width, image.height / height) * rng.uniform(MIN_SHARE, 1)
    w, h = round(width * scale), round(height * scale)
    x = int(rng.integers(image.width - w + 1))
    y = int(rng.integers(image.height - h + 1))
    part = image.resize((width, height), Image.Resampling.LANCZOS, (x, y, x + w, y + h))
    part = part.filter(SHARPEN)
    return ImageOps.mirror(part) if rng.random() < 0.5 else part


def quality_for(image: Image.Image, rng: np.random.Generator) -> int:
    """The JPEG quality at which crops of this photograph come nearest to TARGET_BYTES."""
    samples = [crop(image, rng) for _ in range(3)]

    def distance(quality: int) -> float:
        return abs(sum(len(encode(s, quality)) for s in samples) / len(samples) - TARGET_BYTES)

    return min(range(80, 100), key=distance)


def write_photographs(folder: Path, count: int, seed: int = 0) -> list[int]:
    """Write `count` JPEGs as folder/<class>/<number>.jpg; returns their sizes in bytes."""
    rng = np.random.default_rng(seed)
    sizes = []
    photographs = {name: Image.open(path).convert("RGB") for name, path in sources().items()}
    qualities = {name: quality_for(image, rng) for name, image in photographs.items()}
    names = list(photographs)
    for number in range(count):
        name = names[number % len(names)]
        data = encode(crop(photographs[name], rng), qualities[name])
        path = folder / name / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        sizes.append(len(data))
    return sizes
