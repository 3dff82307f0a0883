"""Who drew the icons, under which licence: checked against the packages, written for readers."""

import json
from dataclasses import dataclass
from pathlib import Path

from icons import FAMILY, package_folder

ALLOWED = {
    "Apache-2.0": "licences/Apache-2.0.txt",
    "MIT": "licences/MIT-Microsoft.txt",
    "CC-BY-4.0": "https://creativecommons.org/licenses/by/4.0/legalcode",
}


@dataclass(frozen=True)
class Credit:
    """What a set's licence wants said. `declared` is the package's own word for the licence."""

    title: str
    authors: str
    licence: str
    home: str
    line: str
    declared: str


CREDITS = {
    "noto": Credit(
        "Noto Emoji",
        "Google",
        "Apache-2.0",
        "https://github.com/googlefonts/noto-emoji",
        "Noto Emoji, Copyright Google LLC.",
        "Apache-2.0",
    ),
    "noto-v1": Credit(
        "Noto Emoji, first version",
        "Google",
        "Apache-2.0",
        "https://github.com/googlefonts/noto-emoji",
        "Noto Emoji (first version), Copyright Google Inc.",
        "Apache-2.0",
    ),
    "twemoji": Credit(
        "Twemoji",
        "Twitter, Inc and other contributors",
        "CC-BY-4.0",
        "https://github.com/jdecked/twemoji",
        "Twemoji graphics, Copyright Twitter, Inc and other contributors.",
        "CC-BY-4.0",
    ),
    "emojione": Credit(
        "Emojitwo (EmojiOne 2)",
        "Ranks.com and the Emojitwo community",
        "CC-BY-4.0",
        "https://github.com/EmojiTwo/emojitwo",
        "Emoji artwork by Emojitwo, originally released as Emojione 2.2 "
        "(https://www.emojione.com) by Ranks.com (http://www.ranks.com), with contributions "
        "from the Emojitwo community.",
        "CC-BY-4.0",
    ),
    "fluent-emoji": Credit(
        "Fluent Emoji, colour",
        "Microsoft Corporation",
        "MIT",
        "https://github.com/microsoft/fluentui-emoji",
        "Fluent Emoji, Copyright (c) Microsoft Corporation.",
        "MIT",
    ),
    "fluent-emoji-flat": Credit(
        "Fluent Emoji, flat",
        "Microsoft Corporation",
        "MIT",
        "https://github.com/microsoft/fluentui-emoji",
        "Fluent Emoji (flat), Copyright (c) Microsoft Corporation.",
        "MIT",
    ),
    # The package names the licence of the set's code; its authors put the drawings under CC BY.
    "fxemoji": Credit(
        "FxEmoji (Firefox OS Emoji)",
        "Mozilla Foundation",
        "CC-BY-4.0",
        "https://github.com/mozilla/fxemoji",
        "Firefox OS Emoji, Copyright 2015 Mozilla Foundation.",
        "Apache-2.0",
    ),
    "streamline-emojis": Credit(
        "Streamline Emojis",
        "Streamline (Webalys)",
        "CC-BY-4.0",
        "https://github.com/webalys-hq/streamline-vectors",
        "Free emojis from Streamline (https://streamlinehq.com).",
        "CC-BY-4.0",
    ),
}

_HEAD = """# Licences of the demo

The pictures in `shards/` are drawings of the sets below. **What was done to them:** each icon
was rendered on white at 128 x 128 pixels, trimmed to what is drawn and centred with a margin of
8 pixels, and stored as JPEG. Nothing was added, recoloured or redrawn. Every picture's `source`
in the shards names its set and icon (`train/cat/noto__cat-face.png`). None of the authors
endorses this project.

Sets whose licence asks to share alike (OpenMoji, EmojiOne 1) or forbids changed copies are left
out.

| set | package, version | authors | licence | pictures | credit |
| --- | --- | --- | --- | --- | --- |
"""

_TAIL = """
Texts: Apache-2.0 in [licences/Apache-2.0.txt](licences/Apache-2.0.txt), MIT in
[licences/MIT-Microsoft.txt](licences/MIT-Microsoft.txt), CC-BY-4.0 at
<https://creativecommons.org/licenses/by/4.0/legalcode> (which also disclaims all warranties).

## Word vectors

`words.txt` holds {num_words} rows of GloVe 6B, 50 dimensions (Wikipedia 2014 and Gigaword 5), and
`../configs/cifar100/words.txt` those of the words of CIFAR-100's classes. GloVe is by Jeffrey
Pennington, Richard Socher and Christopher D. Manning, Stanford NLP Group
(<https://nlp.stanford.edu/projects/glove/>). Public Domain Dedication and License 1.0 (PDDL,
<https://opendatacommons.org/licenses/pddl/1-0/>). Rows were selected; no number was changed.

## WordNet

`wordnet/` holds the part of the nouns of WordNet 3.0 that the classes need: the first senses
of each name, with all their ancestors and glosses, and `../configs/cifar100/wordnet/` that of
CIFAR-100's classes. **What was done to it:** other synsets, lemmas and pointers were left out;
nothing else was changed. WordNet 3.0, Copyright 2006 by Princeton University, all rights reserved
(<https://wordnet.princeton.edu/>), under the WordNet 3.0 licence:
text in [licences/WordNet-3.0.txt](licences/WordNet-3.0.txt) and at the head of the files.
"""


def write_licences(node_modules: Path, counts: dict[str, int], num_words: int, out: Path) -> None:
    """Write the table of the sets. Raises ValueError if a package declares another licence."""
    rows = []
    for icon_set in FAMILY:
        credit = CREDITS[icon_set]
        folder = package_folder(node_modules, icon_set)
        declared = json.loads((folder / "info.json").read_text("utf-8"))["license"]["spdx"]
        if declared != credit.declared or credit.licence not in ALLOWED:
            raise ValueError(f"{folder}: licence is now {declared}; look again at {icon_set}")
        version = json.loads((folder / "package.json").read_text("utf-8"))["version"]
        rows.append(
            f"| [{credit.title}]({credit.home}) | `{icon_set}` {version} | {credit.authors} "
            f"| {credit.licence} | {counts[icon_set]} | {credit.line} |\n"
        )
    out.write_text(_HEAD + "".join(rows) + _TAIL.format(num_words=num_words), "utf-8")
