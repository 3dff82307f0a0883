"""Class names: lists in files, words of names, and who is seen, unseen or for validation."""

import difflib
import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import yaml

from shards.manifest import ClassEntry
from vgse.errors import UserError
from vgse.files import read_text
from vgse.knowledge.words import words_of


def hash_key(*parts: object) -> bytes:
    """sha256 of the parts: an order that depends on nothing else, on any machine."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).digest()


def draw(names: Iterable[str], fraction: float, seed: int, purpose: str) -> list[str]:
    """A fraction of the names (at least one unless it is 0), drawn by hash, sorted."""
    names = list(names)
    count = max(1, round(fraction * len(names))) if fraction > 0 else 0
    return draw_count(names, count, seed, purpose)


def draw_count(names: Iterable[str], count: int, seed: int, purpose: str) -> list[str]:
    """So many of the names, drawn by hash, sorted."""
    return sorted(sorted(names, key=lambda name: hash_key(purpose, seed, name))[:count])


def read_names(file: str) -> list[str]:
    """Class names from a text file (one a line, also numbered), or a JSON or YAML list.

    `FILE#a.b` takes the list under the keys a, b of a JSON or YAML file.
    """
    exists = Path(file).expanduser().exists()
    path, _, keys = (file, "", "") if exists else file.partition("#")
    if Path(path).suffix not in (".json", ".yaml", ".yml"):
        lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
        matches = [re.fullmatch(r"\s*\d+\s+(\S.*)", line) for line in lines]
        # Data sets number their lists ("1 antelope"); a name may begin with a number, too.
        return [m[1] for m in matches if m] if all(matches) else lines
    content = _load(path)
    for key in filter(None, keys.split(".")):
        if not isinstance(content, dict) or key not in content:
            raise UserError(f"{path}: no key {key!r} on the way {keys!r}")
        content = content[key]
    if not isinstance(content, list):
        hint = f"; say which list, as in {path}#unseen" if isinstance(content, dict) else ""
        raise UserError(f"{path}: not a list of class names{hint}")
    strange = [name for name in content if not isinstance(name, str) or not name.strip()]
    if strange:
        raise UserError(f"{path}: not a list of class names: {strange[0]!r} is in it; correct it")
    return [name.strip() for name in content]


def read_words(file: str) -> dict[str, list[str]]:
    """Words by class name from a JSON or YAML mapping; a string counts as its words."""
    content = _load(file)
    if not isinstance(content, dict):
        raise UserError(f"{file}: not a mapping of class names to words")
    words = {}
    for name, value in content.items():
        parts = value.split() if isinstance(value, str) else value
        if not isinstance(parts, list) or not parts or not all(isinstance(w, str) for w in parts):
            raise UserError(f"{file}: class {name!r} has no list of words but {value!r}")
        words[str(name)] = parts
    return words


def make_entries(
    names: Collection[str],
    unseen: Collection[str],
    val: Collection[str],
    words: dict[str, list[str]],
    synsets: dict[str, list[str]],
    *,
    where: str,
) -> list[ClassEntry]:
    """The classes, sorted by name, with roles, words and the synsets that are named."""
    require_known(unseen, names, f"{where}: unseen classes")
    require_known(val, names, f"{where}: validation classes")
    require_known(words, names, "class_words")
    require_known(synsets, names, "synsets")
    both = sorted(set(unseen) & set(val))
    if both:
        raise UserError(f"{where}: {some(both)} both unseen and for validation; keep one role")
    if not unseen:
        raise UserError(f"{where}: no unseen classes; name them with --unseen FILE")
    if not set(names) - set(unseen) - set(val):
        raise UserError(f"{where}: no class is left to train on; shorten the other lists")
    roles = {**dict.fromkeys(names, "train"), **dict.fromkeys(val, "val")}
    roles |= dict.fromkeys(unseen, "unseen")
    return [
        ClassEntry(
            name,
            roles[name],
            words.get(name) or words_of(name) or [name.lower()],
            " ".join(synsets.get(name, ())) or None,
        )
        for name in sorted(names)
    ]


def require_known(wanted: Iterable[str], known: Collection[str], what: str) -> None:
    """UserError where a name is none of the known classes'."""
    strange = sorted(set(wanted) - set(known))
    if strange:
        near = difflib.get_close_matches(strange[0], known, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"{what}: not among the {len(known)} classes: {some(strange)}{hint}")


def some(names: list[str]) -> str:
    """The first ten names, and how many more there are."""
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(names[:10]) + more


def _load(path: str) -> Any:
    """The lists and mappings of a JSON or YAML file, with every plain value as the text that is
    written there: `no`, `007` and `1e3` are names of classes."""
    text = read_text(path)
    try:
        if path.endswith(".json"):
            return json.loads(
                text, parse_int=str, parse_float=str, object_pairs_hook=_without_repeats
            )
        return _Texts(text).get_single_data()
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())})") from None


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        twice = [key for key, number in Counter(key for key, _ in pairs).items() if number > 1]
        raise ValueError(f"{some(twice)} twice; keep one")
    return mapping


class _Texts(yaml.BaseLoader):
    """YAML whose plain values are text."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        _without_repeats([(str(key.value), None) for key, _ in node.value])
        return dict(super().construct_mapping(node, deep))
