"""Montages: the patches nearest to each cluster, seen and unseen classes apart."""

from collections import Counter
from typing import Any

import numpy as np

from vgse.report.pictures import resize, strip, webp
from vgse.report.run_files import Arrays, RunFiles, need

NUM_SHOWN = 24
NUM_FOLDED = 126
PLAIN = 12.0  # clusters whose patches vary less (grey levels) are shown last


def clusters_section(run: RunFiles) -> dict[str, Any]:
    """Cards of clusters, the most used first and the nearly plain ones last, later ones folded."""
    content = run.pictures
    need(content, "pictures.npz", "cluster_ids", "cluster_seen", "cluster_unseen")
    order = cluster_order(content)[: NUM_SHOWN + NUM_FOLDED]
    side = 56 if len(order) <= 64 else 48
    shares = content.get("cluster_mass", [None] * len(content["cluster_ids"]))
    cards = [
        {
            "number": content["cluster_ids"][row],
            "share": shares[row],
            "strips": [_strip(content, row, side, role) for role in ("seen", "unseen")],
        }
        for row in order
    ]
    return {"shown": cards[:NUM_SHOWN], "folded": cards[NUM_SHOWN:]}


def cluster_order(content: Arrays) -> list[int]:
    """Rows [K] of the montages by falling share, those with nearly plain patches at the end."""
    seen = content["cluster_seen"].astype(np.float32)  # [K, m, s, s, 3]
    shares = content.get("cluster_mass", np.zeros(len(seen)))
    contrast = seen.std(axis=(2, 3)).mean(axis=(1, 2)) if seen.size else np.zeros(len(seen))
    return [int(k) for k in np.lexsort((-shares, contrast < PLAIN))]


def _strip(content: Arrays, row: int, side: int, role: str) -> dict[str, Any]:
    pictures = content[f"cluster_{role}"][row]
    names = [""] * len(pictures)
    if f"cluster_{role}_class" in content:
        names = [str(name) for name in content[f"cluster_{role}_class"][row]]
    used = [n for n, name in enumerate(names) if name or pictures[n].any()]  # padding is black
    names = [names[n] for n in used]
    if not used:
        return {"role": role, "names": names}
    image = strip(resize(pictures[used], side))
    return {
        "role": role,
        "names": names,
        "common": ", ".join(name for name, _ in Counter(filter(None, names)).most_common(3)),
        "src": webp(image),
        "width": image.shape[1],
        "height": image.shape[0],
        "share": round(100 * len(names) / len(pictures), 1),
    }
