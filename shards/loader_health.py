"""Where a loader's time goes, and what to change when training waits for it."""

from dataclasses import astuple, dataclass

STALL = 0.05  # share of waiting above which something is said


@dataclass(frozen=True)
class LoadTimes:
    """Seconds that a reader spent on a batch, or the sum over batches (and readers)."""

    read: float = 0.0
    """Waiting for bytes of the disk or the store, and taking the tar apart."""
    decode: float = 0.0
    """JPEG to pixels."""
    cut: float = 0.0
    """Resizing or cutting patches, and copying them into the batch."""
    idle: float = 0.0
    """From handing the batch over before to being asked for this one: the trainer's step in one
    process; in a loader process the hand-over, and rest when it is ahead."""

    def __add__(self, other: "LoadTimes") -> "LoadTimes":
        """Sum, part by part."""
        return LoadTimes(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def busy(self) -> float:
        """Seconds of work: all but idle."""
        return self.read + self.decode + self.cut


NO_TIMES = LoadTimes()


def explain_stall(
    stall: float, times: LoadTimes, *, loader_workers: int, remote: bool
) -> str | None:
    """One sentence that names the slowest part of loading and what to change.

    Args:
        stall: share of the time, in 0..1, that training waited for data.
        times: summed over the batches of an epoch.
        loader_workers: loader processes of each training worker.
        remote: whether shards are streamed from a store.

    Returns:
        None where training hardly waits (up to 5%) or nothing was measured.
    """
    whole = times.busy + times.idle
    if stall <= STALL or whole <= 0:
        return None
    parts = {"read": times.read, "decode": times.decode, "cut": times.cut}
    slowest = max(parts, key=lambda part: parts[part])
    seconds = parts[slowest]
    if loader_workers and times.idle > times.busy:
        # Readers that rest while the trainer waits: what is slow lies between them.
        slowest, seconds = "copy", times.idle
    share = seconds / (whole if loader_workers else times.busy)
    what = {
        "read": f"waiting for the {'network' if remote else 'disk'}",
        "decode": "decoding JPEGs",
        "cut": "resizing and copying pictures",
        "copy": "handing batches over",
    }[slowest]
    return (
        f"training waited for data {stall:.0%} of the time, and loaders spent {share:.0%} of "
        f"theirs {what}: {_remedy(slowest, loader_workers, remote)}"
    )


def _remedy(part: str, loader_workers: int, remote: bool) -> str:
    if part == "copy":
        return (
            "pack with a smaller --short_side, lower cluster.loader_workers if the cores are full, "
            "and see whether /dev/shm is large enough"
        )
    if part == "read" and remote:
        return (
            "keep shards in a local cache, raise cluster.loader_workers to have more reads at "
            "once, or bring the store nearer"
        )
    if part == "read":
        return "move the shards to a faster disk, or copy them to one beside the GPUs"
    if not loader_workers:
        return "raise cluster.loader_workers, so that loading runs beside training"
    smaller = "pack with a smaller --short_side"
    if part == "cut":
        smaller += ", or cut on the accelerator"
    return f"raise cluster.loader_workers (now {loader_workers}) if cores are idle, or {smaller}"
