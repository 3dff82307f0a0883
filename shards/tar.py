"""A plain tar in two functions: written to be the same byte for byte, read with bounds."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from vgse.errors import UserError

BLOCK = 512
MAX_MEMBER_BYTES = 64 << 20

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,98}")


class TarWriter:
    """Appends members to a file object; keeps the length and the sha256 of what it wrote.

    Owner, mode and time are constants, so equal members give equal bytes.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.bytes = 0
        self.sha256 = hashlib.sha256()

    def add(self, name: str, data: bytes) -> None:
        """Write one member; the name must be plain (letters, digits, `_`, `-` and `.`)."""
        assert _NAME.fullmatch(name), name
        self._write(_header(name, len(data)))
        self._write(data)
        self._write(bytes(-len(data) % BLOCK))

    def close(self) -> None:
        """Write the end of the archive (the file object stays open)."""
        self._write(bytes(2 * BLOCK))

    def _write(self, data: bytes) -> None:
        self.file.write(data)
        self.sha256.update(data)
        self.bytes += len(data)


@dataclass(frozen=True)
class Member:
    """A file of a tar; offset is where its header starts."""

    name: str
    data: bytes
    offset: int


def read_members(file: BinaryIO, *, where: str, offset: int = 0) -> Iterator[Member]:
    """Members from the file's position to the end of the archive or of the file.

    Reads forward only and holds one member at a time. `where` and `offset` (the position
    in the whole archive) only serve the messages. Raises ValueError for a truncated or
    damaged archive, for anything but plain files with plain names, and for members above
    64 MiB.
    """
    while header := file.read(BLOCK):
        if len(header) < BLOCK:
            raise UserError(f"{where}: ends inside a header at byte {offset}; copy it again")
        if not header.strip(b"\0"):
            return
        name, size = _parse_header(header, where, offset)
        padded = size + -size % BLOCK
        data = file.read(padded)
        if len(data) < padded:
            raise UserError(f"{where}: ends inside member {name!r}; copy it again")
        yield Member(name, data[:size], offset)
        offset += BLOCK + padded


def _header(name: str, size: int) -> bytes:
    header = bytearray(BLOCK)
    header[0 : len(name)] = name.encode()
    header[100:108] = b"0000644\0"
    header[108:116] = b"0000000\0"
    header[116:124] = b"0000000\0"
    header[124:136] = b"%011o\0" % size
    header[136:148] = b"%011o\0" % 0
    header[156:157] = b"0"
    header[257:265] = b"ustar\x0000"
    header[148:156] = b"%06o\0 " % _checksum(header)
    return bytes(header)


def _checksum(header: bytes | bytearray) -> int:
    # The field counts as eight spaces while the sum is taken.
    return sum(header) - sum(header[148:156]) + 8 * ord(" ")


def _parse_header(header: bytes, where: str, offset: int) -> tuple[str, int]:
    try:
        expected = int(header[148:156].strip(b"\0 ") or b"x", 8)
        size = int(header[124:136].strip(b"\0 ") or b"x", 8)
    except ValueError:
        raise UserError(f"{where}: no tar header at byte {offset}; pack again") from None
    if expected != _checksum(header):
        raise UserError(f"{where}: damaged tar header at byte {offset}; copy it again")
    name = header[:100].split(b"\0", 1)[0].decode("utf-8", "replace")
    if header[156:157] not in (b"0", b"\0"):
        raise UserError(f"{where}: member {name!r} is not a plain file; pack again")
    if not _NAME.fullmatch(name) or header[345:346] != b"\0":
        raise UserError(f"{where}: member name {name!r} is not a plain file name; pack again")
    if not 0 <= size <= MAX_MEMBER_BYTES:
        raise UserError(f"{where}: member {name!r} claims {size} bytes; pack again")
    return name, size
