import os
from pathlib import Path

import pytest
from PIL import Image

from shards.__main__ import main
from shards.manifest import Manifest, load_manifest
from shards.pack.check import check
from shards.samples import read_raw
from shards_trees import flat_tree, pack_tree, split_tree


@pytest.fixture
def packed(tmp_path: Path) -> Manifest:
    return pack_tree(flat_tree(tmp_path / "set"), tmp_path / "out")


def arguments(tmp_path: Path, *more: str) -> list[str]:
    source = f"folder:{tmp_path / 'set'}"
    return ["pack", "--source", source, "--out", str(tmp_path / "new"), "--workers", "1", *more]


def test_pack_then_check_are_two_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flat_tree(tmp_path / "set")
    assert main(arguments(tmp_path, "--unseen_fraction", "0.34", "--num_patches", "4")) == 0
    assert main(["check", str(tmp_path / "new"), "--workers", "1"]) == 0
    said = capsys.readouterr().out
    assert "test_unseen" in said and "all shards are sound" in said
    assert "left out: " not in said
    with Image.open(tmp_path / "new" / "check.png") as sheet:
        assert sheet.width > 1000


def test_pack_says_how_many_training_images_of_unseen_classes_it_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    split_tree(tmp_path / "set")
    for _ in ("packed", "packed before"):
        assert main(arguments(tmp_path, "--unseen_fraction", "0.34", "--num_patches", "4")) == 0
        assert "left out: 8 training images of unseen classes\n" in capsys.readouterr().out


def test_a_title_is_shown_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flat_tree(tmp_path / "set")
    given = ["--unseen_fraction", "0.34", "--num_patches", "4", "--title", "x[/2019] [bold]:dog:"]
    assert main(arguments(tmp_path, *given)) == 0
    assert "x[/2019] [bold]:dog:" in capsys.readouterr().out


def test_a_yaml_file_holds_the_options(tmp_path: Path) -> None:
    flat_tree(tmp_path / "set")
    (tmp_path / "pack.yaml").write_text("unseen_fraction: 0.34\nnum_patches: 4\nlicence: CC0\n")
    assert main(arguments(tmp_path, "--config", str(tmp_path / "pack.yaml"))) == 0
    assert load_manifest(str(tmp_path / "new")).licence == "CC0"


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_yaml_file_that_is_not_utf8_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], encoding: str
) -> None:
    (tmp_path / "pack.yaml").write_text("seed: 1\nlicence: caf\u00e9\n", encoding=encoding)
    with pytest.raises(SystemExit) as stopped:
        main(arguments(tmp_path, "--config", str(tmp_path / "pack.yaml")))
    assert stopped.value.code == 2
    line = {"latin-1": 2, "utf-16": 1}[encoding]
    assert f"pack.yaml, line {line}: is not UTF-8; save" in capsys.readouterr().err


def test_a_mistake_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flat_tree(tmp_path / "set")
    assert main(arguments(tmp_path)) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ") and "\n" not in said and "--unseen FILE" in said


def test_a_misspelt_option_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments(tmp_path, "--num_patchs", "4"))
    assert stopped.value.code == 2 and "num_patchs" in capsys.readouterr().err


def test_the_help_explains_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["pack", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    for words in ("Shorter side of stored images", "one a line", "Address of a Ray cluster"):
        assert words in said


def test_check_without_a_manifest_is_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(tmp_path / "nowhere")]) == 2
    assert "no such file; make it with" in capsys.readouterr().err


def test_check_finds_nothing_in_sound_shards(packed: Manifest) -> None:
    assert check(packed) == []


def test_check_of_a_folder_that_cannot_be_written_draws_no_picture(
    packed: Manifest, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Root may write everywhere but on a mount that is read-only.
    monkeypatch.setattr("shards.__main__.os.access", lambda path, mode: False)
    before = sorted(Path(packed.url).iterdir())
    assert main(["check", packed.url, "--workers", "1"]) == 0
    assert "cannot be written: --picture FILE draws" in capsys.readouterr().out
    assert sorted(Path(packed.url).iterdir()) == before


def test_pack_says_what_it_left_out_and_shows_no_control_signs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = flat_tree(tmp_path / "set")
    (root / "cat" / "notes.md").write_text("x")
    (root / "cat" / "[red]a\x1b[2Jb\n.png").write_bytes(b"x")
    more = ["--unseen_fraction", "0.34", "--num_patches", "4", "--max_damaged", "0.1"]
    assert main(arguments(tmp_path, *more)) == 0
    shown = capsys.readouterr().out
    assert "left out: 1 .md files\n" in shown
    assert "left out: cat/[red]a\\x1b[2Jb\\n.png: no picture" in shown
    assert load_manifest(str(tmp_path / "new")).left_out == {".md files": 1}


def test_check_names_a_shard_that_changed_by_one_bit(
    packed: Manifest, capsys: pytest.CaptureFixture[str]
) -> None:
    tar = Path(packed.url, "train-000001.tar")
    data = bytearray(tar.read_bytes())
    data[600] ^= 1
    tar.write_bytes(data)
    assert main(["check", packed.url, "--workers", "1"]) == 1
    said = capsys.readouterr().out
    assert "train-000001.tar: sha256 is" in said and said.endswith("\n1 problem\n")


def test_check_names_a_picture_that_cannot_be_decoded(packed: Manifest) -> None:
    shard = packed.shards[0]
    raw = next(read_raw(packed, shard))
    tar = Path(packed.url, shard.file)
    data = bytearray(tar.read_bytes())
    at = data.find(raw.jpeg)
    data[at : at + 30] = bytes(30)
    tar.write_bytes(data)
    found = check(packed)
    assert any(f"sample {raw.key}: not a sound JPEG" in line for line in found)


def test_check_goes_on_after_a_missing_and_a_truncated_shard(packed: Manifest) -> None:
    Path(packed.url, "train-000000.tar").unlink()
    os.truncate(Path(packed.url, "train-000001.tar"), 3000)
    found = "\n".join(check(packed))
    assert "missing shards: train-000000.tar" in found
    assert "'train-000001.tar' has 3000 bytes" in found
    assert "train-000001.tar: ends at byte" in found


def test_check_finds_a_key_that_is_in_two_shards(packed: Manifest) -> None:
    one, two = packed.shards_of("train")[:2]
    data = Path(packed.url, one.file).read_bytes()
    Path(packed.url, two.file).write_bytes(data)
    assert any("is in 2 shards; pack again" in line for line in check(packed))
