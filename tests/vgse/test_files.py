"""A run or search folder belongs to one process at a time."""

import errno
import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from vgse.errors import UserError
from vgse.files import read_mapping, sole_user, written_whole

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
