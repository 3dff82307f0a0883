"""Montages: the patches nearest to each cluster, seen and unseen classes apart."""

from collections import Counter

import numpy as np

from vgse.report.page import attribute_json, esc, fold, percent
from vgse.report.pictures import Pixels, resize, strip, webp
from vgse.report.run_files import Arrays, RunFiles, need

NUM_SHOWN = 24
NUM_FOLDED = 126
PLAIN = 12.0
"""Clusters whose patches vary less than this (grey levels) are shown last."""


def clusters_section(run: RunFiles) -> str:
    """Cards of clusters, the most used first and the nearly plain ones last, later ones folded."""
    content = run.pictures
    need(content, "pictures.npz", "cluster_ids", "cluster_seen", "cluster_unseen")
    order = cluster_order(content)[: NUM_SHOWN + NUM_FOLDED]
    side = 56 if len(order) <= 64 else 48
    cards = [_card(content, int(k), side) for k in order]
    body = (
        "<p>A cluster is a kind of picture patch that the training found by itself. The upper row "
        "holds the nearest patches of seen classes, the lower row those of unseen classes, which "
        "took no part in training: where both rows show the same thing, the cluster carries over. "
        "The most used clusters come first, nearly plain ones last.</p>"
        f'<div class="clusters">{"".join(cards[:NUM_SHOWN])}</div>'
    )
    if len(cards) > NUM_SHOWN:
        rest = f'<div class="clusters">{"".join(cards[NUM_SHOWN:])}</div>'
        body += fold(f"Show {len(cards) - NUM_SHOWN} more clusters", rest, kind="more")
    return body


def cluster_order(content: Arrays) -> list[int]:
    """Rows [K] of the montages by falling share, those with nearly plain patches at the end."""
    seen = content["cluster_seen"].astype(np.float32)  # [K, m, s, s, 3]
    shares = content.get("cluster_mass", np.zeros(len(seen)))
    contrast = seen.std(axis=(2, 3)).mean(axis=(1, 2)) if seen.size else np.zeros(len(seen))
    return [int(k) for k in np.lexsort((-shares, contrast < PLAIN))]


def _card(content: Arrays, row: int, side: int) -> str:
    share = content["cluster_mass"][row] if "cluster_mass" in content else None
    text = "" if share is None else f"<small>{percent(share)}% of patches</small>"
    rows = "".join(_strip(content, row, side, role) for role in ("seen", "unseen"))
    number = int(content["cluster_ids"][row])
    return f'<article class="cluster"><h3>Cluster {number} {text}</h3>{rows}</article>'


def _strip(content: Arrays, row: int, side: int, role: str) -> str:
    pictures: Pixels = content[f"cluster_{role}"][row]
    names = [str(name) for name in content.get(f"cluster_{role}_class", np.zeros((0, 0)))[row]]
    if not names:
        names = [""] * len(pictures)
    kept = [n for n, name in enumerate(names) if name or pictures[n].any()]  # padding is black
    if not kept:
        return f'<p class="strip-label"><b>{role}</b> no patch</p>'
    names = [names[n] for n in kept]
    row_of_patches = strip(resize(pictures[kept], side))
    common = [name for name, _ in Counter(name for name in names if name).most_common(3)]
    text = ", ".join(map(esc, common))
    return (
        f'<p class="strip-label"><b>{role}</b> {text}</p>'
        f'<img class="strip" src="{webp(row_of_patches)}" loading="lazy" decoding="async" '
        f'width="{row_of_patches.shape[1]}" height="{row_of_patches.shape[0]}" '
        f'style="--share:{100 * len(names) / len(pictures):.1f}%" '
        f'alt="Patches of {text}" data-names="{attribute_json(names)}">'
    )
