"""The part of a data set that trials may see: its training shards, and nothing of the others."""

import hashlib
import io
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from shards.manifest import FILE, LABELS, Manifest, dump, load_labels
from shards.storage import is_remote
from vgse.formats import written_whole


def training_view(manifest: Manifest) -> tuple[Manifest, bytes]:
    """A manifest without the test shards, and its labels.npy.

    Unseen classes are hidden rather than left out, so that labels still count along the same
    class names and the feature cache of the whole data set can be shared.
    """
    labels = load_labels(manifest)
    shards = [shard for shard in manifest.shards if shard.split == "train"]
    stream = io.BytesIO()
    joined = np.concatenate([labels[shard.file] for shard in shards])
    np.save(stream, joined.astype(np.uint32), allow_pickle=False)
    content = stream.getvalue()
    classes = [
        replace(entry, role="hidden") if entry.role == "unseen" else entry
        for entry in manifest.classes
    ]
    digest = hashlib.sha256(content).hexdigest()
    view = replace(manifest, classes=classes, shards=shards, damaged=[], labels_sha256=digest)
    return view, content


def write_view(manifest: Manifest, folder: Path) -> str:
    """Write the training view into a folder and return its URL.

    Local shards are linked there, so that trials from pixels find them beside the manifest;
    shards of a store are not, and the view serves trials on the feature cache only.
    """
    view, labels = training_view(manifest)
    folder.mkdir(parents=True, exist_ok=True)
    if not is_remote(manifest.url):
        for shard in view.shards:
            link = folder / shard.file
            with suppress(FileExistsError):
                os.symlink(Path(manifest.url).absolute() / shard.file, link)
    with written_whole(folder / LABELS) as stream:
        stream.write(labels)
    with written_whole(folder / FILE) as stream:
        stream.write(dump(view).encode())
    return str(folder.absolute())
