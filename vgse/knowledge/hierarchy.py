"""What a hierarchy says of a class: its ancestors, near ones more than far ones."""

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from vgse.errors import UserError
from vgse.files import read_text
from vgse.knowledge.words import words_of

DECAY = 0.9

Node = TypeVar("Node", bound=Hashable)


def ancestor_weights(
    starts: Mapping[Node, float], parents: Callable[[Node], Iterable[Node]], decay: float = DECAY
) -> dict[Node, float]:
    """Every start and every ancestor of one, with the largest start weight · decay^steps."""
    found: dict[Node, float] = {}
    for start, weight in starts.items():
        level, visited = [start], {start}
        while level:
            for node in level:
                found[node] = max(found.get(node, 0.0), weight)
            above = dict.fromkeys(p for node in level for p in parents(node) if p not in visited)
            visited.update(above)
            level, weight = list(above), weight * decay
    return found


def information_content(common: NDArray[np.integer], num_classes: int) -> NDArray[np.float64]:
    """[N] of each node, ln(classes / those that have it), given how many have it [N]; one that none
    has counts as had by one."""
    return np.asarray(np.log(num_classes / np.maximum(common, 1)))


def node_name(text: str) -> str:
    """A name as classes and nodes are compared: "Black-footed Albatross" black_footed_albatross."""
    return "_".join(words_of(text)) or text.strip()


def read_hierarchy(path: str) -> dict[str, list[str]]:
    """Node -> its parents, by `node_name`, from a text file of child<TAB>parent lines.

    A line with one name is a root without children; lines from # on are remarks.
    """
    lines = read_text(path, remedy="give child<TAB>parent lines").splitlines()
    parents: dict[str, list[str]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        names = [node_name(part) for part in line.strip("\r\n").split("\t")]
        if len(names) > 2 or not all(names):
            raise UserError(f"{path}, line {number}: expected child<TAB>parent, got {line!r}")
        for name in names:
            parents.setdefault(name, [])
        if len(names) == 2 and names[1] not in parents[names[0]]:
            parents[names[0]].append(names[1])
    if not parents:
        raise UserError(f"{path}: holds no child<TAB>parent line")
    _refuse_cycles(path, parents)
    return parents


def _refuse_cycles(path: str, parents: Mapping[str, list[str]]) -> None:
    done: set[str] = set()
    for root in parents:
        trail: dict[str, None] = {}  # the nodes from root to the current one, in order
        stack = [(root, False)]
        while stack:
            node, leaving = stack.pop()
            if leaving:
                del trail[node]
                done.add(node)
            elif node in trail:
                names = list(trail)
                cycle = " -> ".join([*names[names.index(node) :], node])
                raise UserError(f"{path}: a cycle, {cycle}; take one of these lines out")
            elif node not in done:
                trail[node] = None
                stack.append((node, True))
                stack += [(parent, False) for parent in parents[node]]
