"""Which files of a folder are pictures of the data set, and what becomes of the others."""

import os
import shutil
import socket
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from shards.config import PackConfig
from shards.datasets.dataset import DataSet, read_source
from shards_trees import NAMES, awa2_tree, flat_tree, picture, split_tree, sun_tree, write


def read(source: str, **options: Any) -> DataSet:
    return read_source(PackConfig(source=source, out="unused", unseen_fraction=0.34, **options))


def counts(data: DataSet) -> Counter[str]:
    return Counter(image.class_name for image in data.images)


def test_a_link_that_points_up_brings_no_picture_twice(tmp_path: Path) -> None:
    root = flat_tree(tmp_path / "set")
    (root / "cat" / "up").symlink_to("..")
    (root / "cat" / "far_up").symlink_to("../../..")
    data = read(f"folder:{root}")
    assert counts(data) == dict.fromkeys(NAMES, 5)
    assert data.left_out == {"links to what is read elsewhere": 2}


def test_a_link_to_another_class_is_no_class(tmp_path: Path) -> None:
    root = flat_tree(tmp_path / "set")
    (root / "aardvark").symlink_to("cat")
    (root / "dog" / "1.png").symlink_to("../cat/cat_1.png")
    data = read(f"folder:{root}")
    assert counts(data) == dict.fromkeys(NAMES, 5)
    assert data.left_out == {"links to what is read elsewhere": 2}


@pytest.mark.parametrize(
    ("kind", "make", "folder"),
    [
        ("folder", flat_tree, "cat"),
        ("folder", split_tree, "train/cat"),
        ("awa2", awa2_tree, "JPEGImages/cat"),
        ("sun", sun_tree, "images/a/abbey"),
    ],
)
def test_linked_class_folders_count_in_every_layout(
    tmp_path: Path, kind: str, make: Callable[[Path], Path], folder: str
) -> None:
    root = make(tmp_path / "set")
    expected = counts(read(f"{kind}:{root}"))
    shutil.move(root / folder, tmp_path / "elsewhere")
    (root / folder).symlink_to(tmp_path / "elsewhere")
    assert counts(read(f"{kind}:{root}")) == expected
    if kind == "sun":
        (root / "ClassName.txt").unlink()
        assert counts(read(f"{kind}:{root}")) == expected


def test_linked_pictures_from_elsewhere_count_once(tmp_path: Path) -> None:
    root = flat_tree(tmp_path / "set")
    write(tmp_path / "store" / "x.png", 1)
    for name in ("one.png", "two.png"):
        (root / "cat" / name).symlink_to(tmp_path / "store" / "x.png")
    data = read(f"folder:{root}")
    assert counts(data)["cat"] == 6
    assert data.left_out == {"links to what is read elsewhere": 1}


def test_whatever_pillow_decodes_is_a_picture_with_any_ending_or_none(tmp_path: Path) -> None:
    root = flat_tree(tmp_path / "set", images=2)
    image = Image.fromarray(picture(3))
    kinds = {
        "a.jfif": "JPEG",
        "b.AVIF": "AVIF",
        "c.jp2": "JPEG2000",
        "d.webp": "WEBP",
        "e.tga": "TGA",
        "f.ico": "ICO",
        "no_ending": "PNG",
        "g.data": "JPEG",
        "h.1": "BMP",
    }
    for name, kind in kinds.items():
        image.save(root / "cat" / name, kind)
    (root / "cat" / "notes").write_text("Personal notes, which begin as a .ppm may")
    (root / "cat" / "BM").write_text("BMW")
    (root / "cat" / "drawing.svg").write_text("<svg/>")
    (root / "cat" / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    data = read(f"folder:{root}")
    assert counts(data)["cat"] == 2 + len(kinds)
    assert data.left_out == {".heic files": 1, ".svg files": 1, "files without an ending": 2}


def test_what_nas_boxes_and_archives_add_is_no_sample_and_no_class(tmp_path: Path) -> None:
    root = flat_tree(tmp_path / "set")
    write(root / "cat" / "@eaDir" / "cat_1.png" / "SYNOPHOTO_THUMB_M.jpg", 1)
    write(root / "__MACOSX" / "cat" / "x.png", 1)
    write(root / "cat" / "._cat.png", 1)
    data = read(f"folder:{root}")
    assert counts(data) == dict.fromkeys(NAMES, 5)
    assert data.left_out == {
        "@eaDir folders": 1,
        "__MACOSX folders": 1,
        "hidden files and folders": 1,
    }


def test_pipes_sockets_and_broken_links_are_counted_and_never_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = flat_tree(tmp_path / "set")
    os.mkfifo(root / "cat" / "pipe.png")
    (root / "cat" / "to_pipe.png").symlink_to("pipe.png")
    server = socket.socket(socket.AF_UNIX)
    monkeypatch.chdir(root / "cat")  # a path of a socket must be short
    server.bind("socket.png")
    server.close()
    (root / "cat" / "gone.png").symlink_to("nowhere")
    (root / "cat" / "circle.png").symlink_to("circle.png")
    (root / "gnu").symlink_to("/nowhere")
    data = read(f"folder:{root}")
    assert counts(data) == dict.fromkeys(NAMES, 5)
    assert data.left_out == {"broken links": 3, "pipes, sockets and devices": 3}
