"""Secrets of a job's environment, shipped as a file of its owner: Ray would log `env_vars`."""

import os
import shlex
import sys
from pathlib import Path

from vgse.errors import UserError
from vgse.files import decode_text

FILE = ".job-env"
HOOK = "distributed.jobs.env_file.load_env_file"


def parse_env_file(path: Path) -> dict[str, str]:
    """Variables from lines NAME=VALUE; empty lines and those that start with # are skipped."""
    if not path.is_file():
        raise UserError(f"--env-file: no file {path}")
    if path.stat().st_mode & 0o077:
        sys.stderr.write(f"warning: others can read {path}; chmod 600 {path}\n")
    variables = {}
    for number, line in enumerate(decode_text(path.read_bytes(), path).splitlines(), 1):
        text = line.strip().removeprefix("export ")
        if not text or text.startswith("#"):
            continue
        name, equals, value = text.partition("=")
        if not equals or not name.strip().isidentifier():
            raise UserError(f"--env-file {path}: line {number} is not NAME=VALUE")  # not the line
        value = value.strip()
        quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
        variables[name.strip()] = value[1:-1] if quoted else value
    return variables


def write_env_file(folder: Path, variables: dict[str, str]) -> None:
    """Put the variables into the folder that is shipped, readable by their owner only."""
    path = folder / FILE
    path.touch(mode=0o600)
    path.write_text("".join(f"{k}={shlex.quote(v)}\n" for k, v in variables.items()))


def with_variables(command: str) -> str:
    """The shell command, run with what `write_env_file` left in its folder."""
    return f"set -a && . ./{FILE} && set +a && {command}"


def load_env_file() -> None:
    """Take the variables into this process; Ray calls this as a worker of the job starts."""
    path = Path(__file__).resolve().parents[2] / FILE
    for line in path.read_text().splitlines():
        name, _, value = line.partition("=")
        os.environ[name] = "".join(shlex.split(value))


def find_token() -> str | None:
    """The cluster's token, where the environment names one; to be called before Ray is imported,
    which reads these variables once, so that RAY_AUTH_MODE may be left out."""
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if not (token := os.environ.get("RAY_AUTH_TOKEN")) and path and not Path(path).is_file():
        raise UserError(f"RAY_AUTH_TOKEN_PATH: no file {path}; copy the cluster's token there")
    if path or token:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    if os.environ.get("RAY_AUTH_MODE") != "token":
        return None
    file = Path(path or "~/.ray/auth_token").expanduser()
    return token or (file.read_text().strip() if file.is_file() else None)
