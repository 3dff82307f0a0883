"""Folders of pictures: each real folder listed once, many at a time, and what is left out."""

import os
import stat
import struct
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import PurePath
from typing import TypeVar

from shards.images import ENDINGS, is_picture
from vgse.errors import UserError

Key = TypeVar("Key")

THREADS = 32  # of a network's file system the answers are waited for, most of the time
_CHUNK = 256
BROKEN = "broken links"
READ_ALREADY = "links to what is read elsewhere"
# What NAS boxes, archives and file systems put between pictures: thumbnails and deleted files.
_FOREIGN = frozenset(
    [
        *("@eadir", "@tmp", "@__thumb", "@recycle", "@recently-snapshot", "#recycle", "#snapshot"),
        *("__macosx", "$recycle.bin", "system volume information", "lost+found", "__pycache__"),
    ]
)
# Camera files begin as TIFF does, but what Pillow finds in them is a thumbnail.
_CAMERAS = frozenset([".dng", ".nef", ".cr2", ".cr3", ".arw", ".pef", ".orf", ".rw2", ".srw"])


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder's path, and the one without links that tells it from others."""

    path: str
    real: str
    linked: bool = False


@dataclass
class Listing:
    """What a folder holds, in the order of names."""

    folder: Folder
    pictures: list[tuple[str, bytes]] = field(default_factory=list)
    """Names, each with its stamp."""
    linked_pictures: list[tuple[str, bytes]] = field(default_factory=list)
    folders: list[Folder] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    other_files: Counter[str] = field(default_factory=Counter)
    """Files that are no pictures, by ending."""


def folder_at(path: str | os.PathLike[str]) -> Folder:
    """The folder at `path`."""
    text = os.fspath(path)
    return Folder(text, os.path.realpath(text), os.path.islink(text))


def stamp_of(status: os.stat_result) -> bytes:
    """Size and times of a file: other ones mean that its content may be another. The time of the
    last change of its status (ctime) also changes where a program puts the old mtime back."""
    return struct.pack("<3q", status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def size_of(stamp: bytes) -> int:
    """The size in a stamp."""
    return int(struct.unpack_from("<q", stamp)[0])


def scan(folder: Folder, pool: ThreadPoolExecutor | None = None) -> Listing:
    """The listing of a folder: one call for it and one for each picture, in `pool` where there are
    many. Files without a picture's ending are opened, to see whether they are one all the same."""
    found = Listing(folder)
    try:
        with os.scandir(folder.path) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
        chunks = [ordered[start : start + _CHUNK] for start in range(0, len(ordered), _CHUNK)]
        work = pool.map if pool and len(chunks) > 1 else map
        for part in work(partial(_listing_of, folder), chunks):
            found.pictures += part.pictures
            found.linked_pictures += part.linked_pictures
            found.folders += part.folders
            found.left_out.update(part.left_out)
            found.other_files.update(part.other_files)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"{error.filename or folder.path}: cannot be read ({reason}); change its permissions, "
            "or take it out"
        ) from None
    return found


def _listing_of(folder: Folder, entries: list[os.DirEntry[str]]) -> Listing:
    found = Listing(folder)
    for entry in entries:
        _sort_in(entry, found)
    return found


def _sort_in(entry: os.DirEntry[str], found: Listing) -> None:
    name, linked = entry.name, entry.is_symlink()
    if name.startswith("."):
        found.left_out["hidden files and folders"] += 1
        return
    if name.lower() in _FOREIGN:
        found.left_out[f"{name} folders"] += 1
        return
    if entry.is_dir(follow_symlinks=False):
        found.folders.append(Folder(entry.path, os.path.join(found.folder.real, name)))
        return
    try:
        status = entry.stat()
    except OSError as error:
        if linked:
            found.left_out[BROKEN] += 1
        elif not isinstance(error, FileNotFoundError):  # which is deleted at this moment
            raise
        return
    if stat.S_ISDIR(status.st_mode):
        found.folders.append(Folder(entry.path, os.path.realpath(entry.path), linked=True))
        return
    if not stat.S_ISREG(status.st_mode):  # reading one could wait for ever
        found.left_out["pipes, sockets and devices"] += 1
        return
    ending = PurePath(name).suffix.lower()
    try:
        picture = ending in ENDINGS or (ending not in _CAMERAS and is_picture(entry.path))
    except OSError:
        found.left_out["files that cannot be read"] += 1
        return
    if picture:
        pictures = found.linked_pictures if linked else found.pictures
        pictures.append((name, stamp_of(status)))
    else:
        plain = ending[1:].isalnum() and len(ending) <= 9
        kind = f"{ending} files" if plain else "files without an ending"
        found.other_files[kind] += 1


def walk(
    tops: Iterable[tuple[Key, Folder]],
    *,
    root: Folder,
    left_out: Counter[str],
    skip: Iterable[str] = (),
) -> Iterator[tuple[Key, Listing]]:
    """Listings of all folders below `tops`, each with the key of its top; adds to `left_out`.

    Every real folder comes once, real paths before links: a link to what another path reads, or
    to `root` or a folder above it, is left out, and so are links to pictures in folders that are
    read. `skip` are folders without a part in the data set.
    """
    batch: list[tuple[Key, Folder]] = []
    later: list[tuple[Key, Folder]] = []
    links: list[tuple[Key, Folder, str, bytes]] = []
    for key, folder in tops:
        (later if folder.linked else batch).append((key, folder))
    outside = {root.real, *map(str, PurePath(root.real).parents)}
    outside -= {folder.real for _, folder in batch}  # the root itself may be the top
    outside |= {os.path.realpath(folder) for folder in skip}
    visited = set(outside)
    with ThreadPoolExecutor(THREADS) as pool, ThreadPoolExecutor(THREADS) as inner:
        while batch or later:
            if not batch:
                batch, later = later, []
            fresh = []
            for key, folder in batch:
                if folder.real not in visited:
                    visited.add(folder.real)
                    fresh.append((key, folder))
                elif folder.linked:
                    left_out[READ_ALREADY] += 1
            batch = []
            listings = pool.map(partial(scan, pool=inner), [folder for _, folder in fresh])
            for (key, _), listing in zip(fresh, listings, strict=True):
                for folder in listing.folders:
                    (later if folder.linked else batch).append((key, folder))
                links += [(key, listing.folder, *link) for link in listing.linked_pictures]
                left_out.update(listing.left_out + listing.other_files)
                yield key, listing
    visited -= outside
    taken: set[str] = set()
    for key, folder, name, stamp in links:
        real = os.path.realpath(os.path.join(folder.path, name))
        inside, file = os.path.split(real)
        if real in taken or (inside in visited and not file.startswith(".")):
            left_out[READ_ALREADY] += 1
        else:
            taken.add(real)
            yield key, Listing(folder, [(name, stamp)])


def find_folder(path: str) -> str | None:
    """The folder at `path` as the disk spells it, whose é may be one sign or two."""
    if os.path.isdir(path):
        return path
    parent, name = os.path.split(path)
    above = find_folder(parent) if parent != path else None
    if above is None:
        return None
    wanted = unicodedata.normalize("NFC", name)
    with os.scandir(above) as entries:
        same = [e.path for e in entries if unicodedata.normalize("NFC", e.name) == wanted]
    return next((path for path in same if os.path.isdir(path)), None)


def file_finder() -> Callable[[str], tuple[str, bytes] | None]:
    """A function that finds the file at a path, as the disk spells it, with its stamp. It lists
    each folder once."""

    @cache
    def files_in(folder: str) -> dict[str, tuple[str, bytes]]:
        there = find_folder(folder)
        if there is None:
            return {}
        with os.scandir(there) as entries:
            return {
                unicodedata.normalize("NFC", entry.name): (entry.path, stamp_of(entry.stat()))
                for entry in entries
                if entry.is_file()
            }

    def find(path: str) -> tuple[str, bytes] | None:
        folder, name = os.path.split(path)
        return files_in(folder).get(unicodedata.normalize("NFC", name))

    return find


def as_utf8(text: str) -> str:
    """A path's text, with bytes that are not UTF-8 as \\xNN."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def visible(text: str) -> str:
    """`text` in one line, with line breaks and what else steers a terminal as escapes."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)
