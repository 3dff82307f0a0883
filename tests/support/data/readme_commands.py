"""The commands and snippets of the README, and running one of them in this process."""

import re
import shlex
from pathlib import Path

import distributed.__main__
import shards.__main__
import tune.__main__
import vgse.__main__

README = Path(__file__).resolve().parents[3] / "README.md"
MODULES = {
    "shards": shards.__main__.main,
    "distributed": distributed.__main__.main,
    "tune": tune.__main__.main,
    "vgse": vgse.__main__.main,
}


def blocks(language: str, document: Path = README) -> list[str]:
    """The code blocks of one language in README.md, or in another document."""
    return re.findall(rf"```{language}\n(.*?)```", document.read_text(), re.DOTALL)


def commands_of(block: str) -> list[str]:
    """The command lines of a shell block, without their remarks."""
    lines = block.replace("\\\n", " ").splitlines()
    return [line.partition("  #")[0].strip() for line in lines if line.strip()]


def block_with(words: str) -> list[str]:
    """The commands of the one block that holds these words."""
    (block,) = [block for block in blocks("bash") if words in block]
    return commands_of(block)


def run_command(line: str) -> int:
    """Run `python -m PACKAGE …` here; returns its exit status."""
    _, _, module, *arguments = shlex.split(line)
    return MODULES[module](arguments)
