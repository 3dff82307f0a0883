"""Folders with odd names, endings, links and files: each picture is a sample, or named."""

import os
import tempfile
import unicodedata
from io import BytesIO
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from shards.config import PackConfig
from shards.datasets import listing
from shards.datasets.listing import visible
from shards.images import ENDINGS
from shards.pack.pack import pack
from shards.samples import read_shard

FORMATS = ["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "AVIF", "JPEG2000"]
SUFFIXES = ["", ".", ".png", ".JPG", ".jfif", ".avif", ".jp2", ".tiff", ".txt", ".json", ".xyz"]
ODD = [
    "-rf",
    "a'b\"c",
    "new\nline",
    "[bold]",
    "100%",
    "a=b",
    "*",
    "$HOME",
    " ",
    "é",
    "😀",
    "x" * 200,
]

signs = st.characters(exclude_categories=["Cs"], exclude_characters="/\0")
stems = st.sampled_from([*ODD, "caf\udce9", ".hidden"]) | st.text(signs, min_size=1, max_size=8)
names = st.builds("{}{}".format, stems, st.sampled_from(SUFFIXES)).filter(
    lambda name: name not in (".", "..") and len(os.fsencode(name)) < 250
)
plain = st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"], exclude_characters="/.")
classes = st.sampled_from(["é", "-class", "no", "007", "$x"]) | st.text(
    plain, min_size=1, max_size=9
)
entries = st.one_of(
    st.tuples(st.just("picture"), names, st.sampled_from(FORMATS)),
    st.tuples(st.just("other"), names, st.sampled_from([b"", b"text", b"BM", b"P5 x"])),
    st.tuples(st.just("cut"), names, st.just(None)),
    st.tuples(st.just("pipe"), names, st.just(None)),
    st.tuples(st.just("folder"), names | st.just("@eaDir"), names),
    st.tuples(
        st.just("link"), names, st.sampled_from([".", "..", "../..", "../zz", "/gone", "zz"])
    ),
    st.tuples(st.just("linked folder"), names, names),
    st.tuples(st.just("linked picture"), names, st.none()),
    st.tuples(st.just("link to a picture"), names, st.none()),
)


class Tree:
    """A data set on disk, with what must become of each of its files."""

    def __init__(self, home: Path) -> None:
        self.root, self.store = home / "set", home / "store"
        self.store.mkdir(parents=True)
        self.samples: dict[str, tuple[str, tuple[int, ...]]] = {}
        self.damaged: set[str] = set()
        self.left_out = 0

    def draw(self, path: Path, kind: str) -> tuple[int, ...]:
        """Write a picture of one colour, which no other has."""
        number = len(list(self.store.iterdir())) + len(self.samples)
        colour = tuple(25 + 40 * (number // 6**i % 6) for i in range(3))
        Image.new("RGB", (8, 8), colour).save(path, kind)
        return colour

    def add(self, name: str, folder: Path, entry: tuple[str, str, Any]) -> None:
        kind, file, extra = entry
        path = folder / file
        if os.path.lexists(path):
            return
        source = self.source(path)
        visible = not file.startswith(".")
        named = PurePath(file).suffix.lower() in ENDINGS
        if kind == "picture":
            colour = self.draw(path, extra)
            if visible:
                self.samples[source] = name, colour
        elif kind == "cut":
            content = BytesIO()
            Image.new("RGB", (99, 99)).save(content, "PNG")
            path.write_bytes(content.getvalue()[:60])
            self.damaged |= {source} if visible else set()
        elif kind == "other":
            path.write_bytes(extra)
            if visible and named:
                self.damaged.add(source)
            else:
                self.left_out += 1
            return
        elif kind == "folder":
            path.mkdir()
            if visible and file != "@eaDir":
                self.add(name, path, ("picture", extra, "PNG"))
                return
            self.draw(path / "in.png", "PNG")
            self.left_out += visible
        elif kind == "linked folder":
            there = Path(tempfile.mkdtemp(dir=self.store))
            path.symlink_to(there)
            if visible:
                self.add(name, path, ("picture", extra, "PNG"))
        elif kind == "linked picture":
            there = Path(tempfile.mkdtemp(dir=self.store), "x.png")
            colour = self.draw(there, "PNG")
            path.symlink_to(there)
            if visible:
                self.samples[source] = name, colour
        elif kind == "pipe":
            os.mkfifo(path)
            self.left_out += visible
        else:
            path.symlink_to("../zz/0.png" if kind == "link to a picture" else extra)
            self.left_out += visible
        self.left_out += not visible

    def source(self, path: Path) -> str:
        return os.fsencode(path.relative_to(self.root)).decode("utf-8", "backslashreplace")


Content = dict[str, list[tuple[str, str, Any]]]


def check(content: Content) -> None:
    """Pack a tree of these classes and compare with what must become of its files."""
    with tempfile.TemporaryDirectory() as home:
        tree = Tree(Path(home))
        for folder in ["zz", *content]:
            name = unicodedata.normalize("NFC", folder)
            if (tree.root / folder).exists() or name in {n for n, _ in tree.samples.values()}:
                continue
            (tree.root / folder).mkdir(parents=True)
            tree.add(name, tree.root / folder, ("picture", "0.png", "PNG"))
            for entry in content.get(folder, []):
                tree.add(name, tree.root / folder, entry)
        (Path(home) / "unseen.txt").write_text("zz\n")
        manifest = pack(
            PackConfig(
                source=f"folder:{tree.root}",
                out=f"{home}/out",
                unseen=f"{home}/unseen.txt",
                max_damaged=1.0,
                num_patches=1,
                test_fraction=0.0,
                val_fraction=0.0,
            )
        )
        found = {}
        for shard in manifest.shards:
            for sample in read_shard(manifest, shard):
                assert sample.source not in found, "a picture twice"
                found[sample.source] = manifest.class_names[sample.label], sample.image.mean((0, 1))
        assert {source: name for source, (name, _) in found.items()} == {
            source: name for source, (name, _) in tree.samples.items()
        }
        for source, (_, colour) in tree.samples.items():
            assert np.abs(found[source][1] - colour).max() < 15, source
        assert manifest.num_damaged == len(tree.damaged)
        for source in tree.damaged:
            start = visible(f"{source}: ")
            assert any(line.startswith(start) for line in manifest.damaged), source
        assert sum(manifest.left_out.values()) == tree.left_out


@settings(
    max_examples=25,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(st.dictionaries(classes, st.lists(entries, max_size=5), min_size=2, max_size=4))
def test_every_picture_is_a_sample_of_its_class_or_is_named(content: Content) -> None:
    check(content)


def test_a_thumbnail_among_the_samples_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    content: Content = {"ant": [("folder", "@eaDir", "x.png"), ("link", "up", "..")], "bee": []}
    check(content)
    monkeypatch.setattr(listing, "_FOREIGN", frozenset())
    with pytest.raises(AssertionError):
        check(content)
