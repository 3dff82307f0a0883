"""A tiny data set of drawn textures whose classes k-means alone does not find.

A class is a texture (direction, width and contrast of stripes); the colours, which take most of
the variance, are drawn anew for every picture.
"""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from shards.config import PackConfig
from shards.manifest import Manifest
from shards.pack.pack import pack

NUM_CLASSES = 14
NAMES = [f"texture{chr(ord('a') + i)}" for i in range(NUM_CLASSES)]
UNSEEN = NAMES[10:]
WORD_SIZE = 8


def draw(texture: int, random: np.random.Generator, side: int = 64) -> NDArray[np.uint8]:
    """One picture of a class, uint8 [side, side, 3]."""
    angle = np.pi * (texture % 7) / 7 + random.normal(0, 0.05)
    period = (6, 14)[texture // 7]
    y, x = np.mgrid[:side, :side]
    wave = np.sin(
        2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / period + random.random() * 6
    )
    low, high = random.integers(0, 256, (2, 3))
    picture = np.where(wave[..., None] > 0, high, low) + random.normal(0, 8, (side, side, 3))
    return picture.clip(0, 255).astype(np.uint8)


def draw_tree(root: Path, train: int = 24, test: int = 10) -> None:
    """train/ and test/ with a folder a class."""
    random = np.random.default_rng(0)
    for part, count in (("train", train), ("test", test)):
        for texture, name in enumerate(NAMES):
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                picture = draw(texture, random)[..., ::-1]
                cv2.imwrite(str(folder / f"{number:03d}.png"), picture)


def write_words(path: Path) -> None:
    """Word vectors in which textures of nearby angle and equal period are neighbours."""
    random = np.random.default_rng(1)
    lines = []
    for texture, name in enumerate(NAMES):
        angle = 2 * np.pi * (texture % 7) / 7
        known = [np.cos(angle), np.sin(angle), texture // 7 - 0.5]
        vector = np.concatenate([known, random.normal(0, 0.1, WORD_SIZE - len(known))])
        lines.append(" ".join([name, *(f"{v:.5f}" for v in vector)]))
    path.write_text("\n".join(lines) + "\n")


def make_tiny(root: Path, train: int = 24, test: int = 10) -> Manifest:
    """The packed set in root/packed, its words in root/words.txt."""
    draw_tree(root / "images", train, test)
    write_words(root / "words.txt")
    (root / "unseen.txt").write_text("\n".join(UNSEEN) + "\n")
    config = PackConfig(
        source=f"folder:{root / 'images'}",
        out=str(root / "packed"),
        unseen=str(root / "unseen.txt"),
        num_patches=4,
        short_side=64,
        images_per_shard=100,
        quality=95,
        title="drawn textures",
        workers=1,
    )
    return pack(config)
