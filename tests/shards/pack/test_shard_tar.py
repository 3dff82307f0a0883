import io
import tarfile
from typing import Any

import pytest

from shards.tar import TarWriter, read_members


def archive(*members: tuple[str, bytes]) -> bytes:
    file = io.BytesIO()
    tar = TarWriter(file)
    for name, data in members:
        tar.add(name, data)
    tar.close()
    assert tar.bytes == len(file.getvalue())
    return file.getvalue()


def names(data: bytes) -> list[str]:
    return [member.name for member in read_members(io.BytesIO(data), where="x.tar")]


def foreign(name: str, **fields: Any) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        info = tarfile.TarInfo(name)
        for key, value in fields.items():
            setattr(info, key, value)
        tar.addfile(info, io.BytesIO(bytes(info.size)))
    return file.getvalue()


MEMBERS = [("a.jpg", b"x" * 700), ("a.json", b"{}"), ("b.jpg", b""), ("b.json", b"y" * 512)]


def test_what_is_written_is_read_by_us_and_by_tarfile() -> None:
    data = archive(*MEMBERS)
    ours = [(m.name, m.data) for m in read_members(io.BytesIO(data), where="x.tar")]
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        theirs = [(info.name, tar.extractfile(info).read()) for info in tar]  # type: ignore[union-attr]
        assert all(info.mtime == 0 and info.uid == 0 for info in tar)
    assert ours == theirs == MEMBERS


def test_offsets_are_where_a_reader_can_begin() -> None:
    data = archive(*MEMBERS)
    third = list(read_members(io.BytesIO(data), where="x.tar"))[2]
    assert names(data[third.offset :]) == ["b.jpg", "b.json"]


@pytest.mark.parametrize(
    ("length", "message"), [(100, "inside a header"), (900, "inside member 'a.jpg'")]
)
def test_a_truncated_archive_says_where_it_ends(length: int, message: str) -> None:
    with pytest.raises(ValueError, match=f"x.tar: ends {message}"):
        names(archive(*MEMBERS)[:length])


def test_a_damaged_header_is_refused() -> None:
    data = bytearray(archive(*MEMBERS))
    data[3] ^= 1
    with pytest.raises(ValueError, match=r"x\.tar: damaged tar header at byte 0"):
        names(bytes(data))


def test_what_is_no_tar_is_refused() -> None:
    with pytest.raises(ValueError, match=r"x\.tar: no tar header at byte 0"):
        names(b"hello " * 200)


@pytest.mark.parametrize("name", ["../a.jpg", "/etc/passwd", "a/b.jpg", ".hidden", "x" * 120])
def test_member_names_that_are_paths_are_refused(name: str) -> None:
    data = foreign(name if len(name) < 100 else "d/" + name[:90])
    with pytest.raises(ValueError, match="is not a plain file name"):
        names(data)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE])
def test_links_and_folders_are_refused(kind: bytes) -> None:
    with pytest.raises(ValueError, match=r"member 'a\.jpg/?' is not a plain file"):
        names(foreign("a.jpg", type=kind, linkname="/etc/passwd"))


def test_a_huge_member_is_refused_before_it_is_read() -> None:
    header = foreign("a.jpg")[:512]
    info = tarfile.TarInfo("a.jpg")
    info.size = 1 << 32
    header = info.tobuf(tarfile.USTAR_FORMAT)
    with pytest.raises(ValueError, match=r"member 'a\.jpg' claims 4294967296 bytes"):
        names(header)
