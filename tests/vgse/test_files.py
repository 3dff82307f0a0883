"""A run or search folder belongs to one process at a time."""

import codecs
import errno
import fcntl
import gzip
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vgse.errors import UserError
from vgse.files import folder_for_sockets, read_mapping, read_text, sole_user, written_whole

HOLD = """
import sys
from pathlib import Path
from vgse.files import sole_user
with sole_user(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(folder: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert process.stdout and process.stdout.readline() == "held\n"
    return process


def test_a_folder_in_use_is_refused_until_its_user_is_gone_even_by_sigkill(tmp_path: Path) -> None:
    other = holder(tmp_path)
    with pytest.raises(ValueError, match="another process is at work here"), sole_user(tmp_path):
        pass
    other.kill()
    other.communicate()
    with sole_user(tmp_path):
        pass


def test_a_folder_is_free_again_after_the_block(tmp_path: Path) -> None:
    with pytest.raises(KeyError), sole_user(tmp_path):
        raise KeyError
    holder(tmp_path).communicate()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_file_system_without_locks_holds_nobody_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def no_locks(*arguments: object) -> None:
        raise OSError(number, "no locks here")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with sole_user(tmp_path), sole_user(tmp_path):
        pass


def test_a_file_that_fails_half_way_leaves_the_old_one_alone(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file"
    with written_whole(path) as stream:
        stream.write(b"old")
    with pytest.raises(KeyError), written_whole(path) as stream:
        raise KeyError(stream.write(b"new"))
    assert path.read_bytes() == b"old" and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.json", '{"half": '), ("a.json", "[1]"), ("a.yaml", "a: [\n"), ("a.yaml", "words")],
)
def test_fields_that_cannot_be_read_are_one_line_with_the_remedy(
    tmp_path: Path, name: str, text: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=rf"{name}: .*; make it again$") as refused:
        read_mapping(tmp_path / name, remedy="make it again")
    assert "\n" not in str(refused.value)


def test_a_missing_or_empty_file_has_no_fields(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("")
    assert read_mapping(tmp_path / "empty.yaml") == read_mapping(tmp_path / "none.json") == {}


CAFE = "caf\u00e9\nnew\n"


@pytest.mark.parametrize(
    "data",
    [
        CAFE.encode(),
        CAFE.encode("utf-8-sig"),
        CAFE.encode("utf-16"),
        codecs.BOM_UTF16_BE + CAFE.encode("utf-16-be"),
        CAFE.encode("utf-32"),
        "cafe\u0301\nnew\n".encode(),  # as macOS spells it
        gzip.compress(CAFE.encode()),
    ],
)
def test_texts_of_every_editor_and_system_read_the_same(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / ("list.txt.gz" if data.startswith(b"\x1f\x8b") else "list.txt")
    path.write_bytes(data)
    assert read_text(path) == CAFE


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"cat\r\ncaf\xe9\r\n", "line 2: is not UTF-8"),
        ("cat\ndog\n".encode("utf-16-le"), "line 1: holds zero bytes"),
        (b"\xff\xfec\0a", "line 1: is not UTF-16"),
    ],
)
def test_bytes_that_are_no_text_are_named_by_their_line(
    tmp_path: Path, data: bytes, problem: str
) -> None:
    (tmp_path / "list.txt").write_bytes(data)
    with pytest.raises(UserError, match=f"list.txt, {problem}"):
        read_text(tmp_path / "list.txt")
    with pytest.raises(UserError, match=r"none\.txt: no such file; correct the path"):
        read_text(tmp_path / "none.txt")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="Linux's own file system")
def test_a_file_system_that_takes_no_folders_is_named() -> None:
    with (
        pytest.raises(UserError, match=r"/proc/none: cannot be used"),
        written_whole(Path("/proc/none/run/file")),
    ):
        pass


LONG = "/scratch/local/some.user.name/slurm_job_12345678/some.array.task.0001/tmp"


def test_sockets_go_elsewhere_where_the_folder_of_temporary_files_is_too_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    below = "/" + 40 * "x"
    assert folder_for_sockets("/scratch/short", below) is None
    assert folder_for_sockets(LONG, below) == "/tmp"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match=r"TMPDIR is /scratch/.* path has 66 characters at most"):
        folder_for_sockets(LONG, below)


PROCESSES = """
import multiprocessing, os, tempfile
from vgse.files import keep_sockets_short
if {short}:
    keep_sockets_short()
assert tempfile.gettempdir() == os.environ["TMPDIR"]
print(multiprocessing.connection.arbitrary_address("AF_UNIX"))
"""


@pytest.mark.parametrize("short", [True, False])
def test_sockets_of_processes_are_short_and_temporary_files_stay(
    tmp_path: Path, short: bool
) -> None:
    folder = tmp_path / LONG[1:]
    folder.mkdir(parents=True)
    code = "import multiprocessing.connection\n" + PROCESSES.format(short=short)
    env = os.environ | {
        "TMPDIR": str(folder),
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
    }
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True)
    assert (len(done.stdout.strip()) <= 107) == short
