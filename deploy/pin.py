"""Print the versions of all that an installation on a cluster needs, as they are installed here:
python deploy/pin.py > deploy/constraints.txt in the environment that the tests passed in."""

import importlib.metadata as metadata
import platform
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]


def wanted() -> list[Requirement]:
    """What nodes install: the project with its extra for S3, and boto3 for the launcher."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = [*project["dependencies"], *project["optional-dependencies"]["s3"], "boto3"]
    return [Requirement(name) for name in names]


def closure(requirements: list[Requirement]) -> dict[str, str]:
    """Installed versions of the requirements and of all that these require, by name."""
    found: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [(requirement, "") for requirement in requirements]
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        found[name] = metadata.version(name)
        for own in ("", *requirement.extras):
            if (name, own) not in seen:
                seen.add((name, own))
                waiting += [(Requirement(text), own) for text in metadata.requires(name) or []]
    return dict(sorted(found.items()))


def main() -> None:
    """Print the constraints."""
    version, system = platform.python_version(), f"{platform.system()} {platform.machine()}"
    sys.stdout.write(f"# By deploy/pin.py, from what the tests passed with: Python {version}, ")
    sys.stdout.write(f"{system}.\n")
    for name, installed in closure(wanted()).items():
        sys.stdout.write(f"{name}=={installed.partition('+')[0]}\n")


if __name__ == "__main__":
    main()
