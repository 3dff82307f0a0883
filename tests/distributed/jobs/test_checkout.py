"""What a job gets of the checkout, and the paths of its configuration."""

import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from distributed.__main__ import make_parser
from distributed.jobs import env_file, submit
from distributed.jobs.submit import (
    checkout_files,
    code_hash,
    link_files,
    resolve_paths,
    total_bytes,
    train_command,
)
from vgse.config import ClusterConfig, DataConfig, RunConfig, SourceConfig
from vgse.errors import UserError


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git checkout with shards, words, ignored files and a secret, as the working folder."""
    root = tmp_path / "checkout"
    for name in (
        "code.py",
        "words.txt",
        "shards/manifest.json",
        "shards/train-000000.tar",
        "shards/features/cache.bin",
        "data/words.txt",
        "runs/old/config.yaml",
        ".venv/lib.py",
        "aws.env",
        ".env",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    (root / ".gitignore").write_text("data/\nfeatures/\n")
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    monkeypatch.chdir(root)
    return root


def absolute(**data: str) -> RunConfig:
    paths = {"shards": "/shared/shards", "words": "/shared/words.txt"} | data
    return RunConfig(data=DataConfig(**paths), storage="/shared/runs")  # type: ignore[arg-type]


def test_what_git_would_add_is_shipped_and_nothing_else(checkout: Path) -> None:
    files = [".gitignore", "code.py", "shards/manifest.json", "shards/train-000000.tar"]
    assert checkout_files(checkout) == [*files, "words.txt"]


def test_a_file_added_by_force_is_shipped_although_a_rule_ignores_it(
    checkout: Path, tmp_path: Path
) -> None:
    subprocess.run(["git", "-C", str(checkout), "add", "-f", "data/words.txt"], check=True)
    (tmp_path / "staged").mkdir()
    link_files(checkout, checkout_files(checkout), tmp_path / "staged")
    assert (tmp_path / "staged" / "data" / "words.txt").read_text() == "data/words.txt"
    assert not (tmp_path / "staged" / ".gitignore").exists()  # Ray would drop it again by this


def test_the_file_with_the_variables_is_left_out(checkout: Path) -> None:
    (checkout / "variables").write_text("A=1")
    assert "variables" in checkout_files(checkout)
    assert "variables" not in checkout_files(checkout, Path("variables"))


SECRETS = (
    "secrets.env",
    "deploy/secrets",
    "secrets/token",
    ".env",
    ".env.local",
    ".envrc",
    "deploy/.env",
    "aws.key",
    "aws.pem",
    "id_rsa",
    "id_ed25519.pub",
)


def test_names_of_secrets_are_hidden_from_jobs_clusters_images_and_git(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[3]
    plain = ("environment.py", "keys.py", "secrets.py", "deploy/id.txt")
    assert shipped_of(tmp_path / "bare", *SECRETS, *plain) == sorted(plain)
    git = (root / ".gitignore").read_text().splitlines()
    image = (root / "deploy" / "Dockerfile.dockerignore").read_text().splitlines()
    assert set(submit.SECRET_NAMES) <= set(git)
    assert {f"**/{name}" for name in submit.SECRET_NAMES} <= set(image)
    cluster = yaml.safe_load((root / "cluster.yaml").read_text())
    assert cluster["rsync_filter"] == [".gitignore"]


def shipped_of(root: Path, *names: str) -> list[str]:
    """Those of some files that a checkout without a .gitignore ships."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    return checkout_files(root)


def test_a_changed_file_changes_the_hash(checkout: Path) -> None:
    files = checkout_files(checkout)
    before = code_hash(checkout, files)
    assert code_hash(checkout, files) == before
    (checkout / "code.py").write_text("other")
    assert code_hash(checkout, files) != before


def test_a_folder_without_git_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"submit ships what git lists, and git does not"):
        checkout_files(tmp_path)


def test_too_much_is_refused_with_the_largest_folders(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkout / "shards" / "train-000001.tar").write_bytes(bytes(3 * 2**20))
    files = checkout_files(checkout)
    total_bytes(checkout, files)
    monkeypatch.setattr(submit, "MAX_BYTES", 2 * 2**20)
    with pytest.raises(UserError, match=r"has 3 MiB and Ray ships 2 MiB .* shards \(3 MiB\)"):
        total_bytes(checkout, files)


def test_absolute_paths_and_urls_stay_as_they_are(checkout: Path) -> None:
    config = absolute(shards="s3://bucket/shards")
    before = replace(config, data=replace(config.data))
    assert resolve_paths(config, checkout, checkout_files(checkout)) == []
    assert config == before


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (RunConfig(storage="runs"), r"storage is runs, a relative path.*URL of storage"),
        (absolute(cache="cache"), r"data\.cache is cache, a relative path"),
        (
            absolute(words="data/words.txt"),
            r"data\.words: git ignores data/words\.txt",
        ),
        (absolute(words="gone.txt"), r"data\.words: no file gone\.txt"),
        (absolute(words="../words.txt"), r"data\.words: \.\./words\.txt lies outside the checkout"),
        (
            replace(absolute(), cluster=ClusterConfig(address="auto")),
            r"cluster\.address is auto, but a job runs on the cluster it is submitted to",
        ),
    ],
)
def test_a_path_that_the_job_would_lose_is_refused(
    checkout: Path, config: RunConfig, told: str
) -> None:
    (checkout.parent / "words.txt").touch()
    with pytest.raises(UserError, match=told) as caught:
        resolve_paths(config, checkout, checkout_files(checkout))
    assert len(str(caught.value).splitlines()) == 1


def test_relative_weights_are_refused(checkout: Path) -> None:
    config = absolute()
    config.backbone.weights = "theta.pt"
    with pytest.raises(UserError, match=r"backbone\.weights is theta\.pt, a relative path"):
        resolve_paths(config, checkout, checkout_files(checkout))


def test_paths_in_the_checkout_are_named_from_its_root_with_a_warning(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(checkout / "shards")
    config = absolute(shards=".", words="../words.txt")
    (warning,) = resolve_paths(config, checkout, checkout_files(checkout))
    assert "a cluster of one node only" in warning
    assert (config.data.shards, config.data.words) == ("shards", "words.txt")
    assert config.data.cache == "/shared/runs/cache"
    config = replace(absolute(shards="."), storage="s3://bucket/runs/")
    resolve_paths(config, checkout, checkout_files(checkout))
    assert config.data.cache == "s3://bucket/runs/cache"


def test_a_shard_that_git_ignores_is_named(checkout: Path) -> None:
    (checkout / ".gitignore").write_text("*.tar\n")
    with pytest.raises(UserError, match=r"data\.shards: git ignores shards/train-000000\.tar"):
        resolve_paths(absolute(shards="shards"), checkout, checkout_files(checkout))


def test_the_command_gives_back_the_same_configuration() -> None:
    config = absolute(words="/a b/it's $HOME.txt")
    config.training.learning_rate = 3e-4
    config.evaluation.models = ["eszsl"]
    config.model.train_projection = False
    config.loss.entropy = 0.0
    command = train_command(config, "mine", ["--resume"])
    script = f'python() {{ printf "%s\\0" "$@"; }}; {command}'
    out = subprocess.run(["sh", "-c", script], check=True, capture_output=True, text=True).stdout
    _, module, *arguments = out.split("\0")[:-1]
    assert module == "distributed"
    parser = make_parser()
    options = parser.instantiate(parser.parse_args(arguments)).train
    assert options.pop("run_id") == "mine"
    assert options.pop("resume")
    options.pop("verbose")
    options.pop("config")
    assert RunConfig(**vars(options)) == config


def test_variables_come_back_from_a_file_that_its_owner_alone_can_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = tmp_path / "given"
    given.touch(mode=0o600)
    given.write_text("# keys\nexport A=it's a \"b\" $HOME\n\nB='quoted words'\nC=x=y\n")
    found = env_file.parse_env_file(given)
    assert found == {"A": 'it\'s a "b" $HOME', "B": "quoted words", "C": "x=y"}
    assert capsys.readouterr().err == ""
    env_file.write_env_file(tmp_path, found)
    assert (tmp_path / env_file.FILE).stat().st_mode & 0o777 == 0o600
    shell = env_file.with_variables('printf "%s|%s|%s" "$A" "$B" "$C"')
    read = subprocess.run(["sh", "-c", shell], cwd=tmp_path, capture_output=True, text=True).stdout
    assert read.split("|") == list(found.values())


def test_a_wrong_line_is_named_by_its_number_and_not_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "given"
    path.write_text("A=1\nhunter2\n")
    path.chmod(0o644)
    with pytest.raises(UserError, match="line 2 is not NAME=VALUE") as caught:
        env_file.parse_env_file(path)
    assert "hunter2" not in str(caught.value)
    assert "chmod 600" in capsys.readouterr().err
    with pytest.raises(UserError, match="no file"):
        env_file.parse_env_file(tmp_path / "none")


def test_a_shipment_of_another_checkout_knows_no_file_of_this_one(checkout: Path) -> None:
    with pytest.raises(UserError, match=r"git ignores words\.txt"):
        resolve_paths(absolute(words="words.txt"), checkout, [])


def test_knowledge_in_the_checkout_is_named_from_its_root(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(checkout / "shards")
    config = absolute(shards="s3://bucket/shards")
    config.knowledge = [SourceConfig("table", "../words.txt"), SourceConfig("wordnet", "/wn")]
    assert resolve_paths(config, checkout, checkout_files(checkout)) == []
    assert [source.path for source in config.knowledge] == ["words.txt", "/wn"]
    config.knowledge = [SourceConfig("table", "gone.txt")]
    with pytest.raises(UserError, match=r"knowledge\[0\]\.path: no file gone\.txt"):
        resolve_paths(config, checkout, checkout_files(checkout))


def test_a_list_of_unseen_classes_travels_as_names(checkout: Path) -> None:
    (checkout / "unseen.txt").write_text("apple\nblue whale\n")
    config = absolute(unseen="unseen.txt")
    resolve_paths(config, checkout, checkout_files(checkout))
    given = shlex.split(train_command(config, "mine", []))
    assert make_parser().parse_args(given[3:]).train.data.unseen == ["apple", "blue whale"]
