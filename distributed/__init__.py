"""One run on a Ray cluster."""

import os

# Ray reads these while it is imported. A Ray that is started here listens on this machine's
# loopback alone, as on systems where Ray knows no clusters; 1 asks for the opposite.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
# Of a dead worker or node the display has a line.
os.environ.setdefault(
    "RAY_DEDUP_LOGS_SKIP_REGEX", "^A worker died or was killed|marked dead because"
)
