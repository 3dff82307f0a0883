"""The sample of patches that starts the clusters: those with the smallest hashes, taken from each
unit of the feature cache where it is made, or else where it lies."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from distributed.features.cache import Unit, UnitFeatures, access_of, read_unit
from distributed.setup import Prepared
from shards.objects import Access
from vgse.clusters import hash_threshold, patch_hashes
from vgse.config import RunConfig

ALL = 2**64 - 1


@dataclass(frozen=True)
class Sampling:
    """Which patches are the sample, and where to look for them."""

    labels: tuple[int, ...]  # classes whose images count
    size: int  # patches
    num_patches: int  # of an image
    seed: int
    below: int = ALL  # no hash of the sample is larger, as far as is known
    stored: int = ALL  # the cache holds the patches whose hash lies below this


@dataclass(frozen=True)
class SamplePart:
    """What some units have of the sample, and a few patches more."""

    hashes: NDArray[np.uint64]  # [n]
    names: NDArray[np.str_]  # [n], of the patches
    features: NDArray[np.float16]  # [n, D_f]
    population: int  # patches that the units have of the classes


@dataclass
class PatchSample:
    """The sample of a run, gathered from parts in any order; holds little more than it is."""

    sampling: Sampling
    population: int = 0
    units: set[str] = field(default_factory=set)  # files of those that are in it
    _parts: list[SamplePart] = field(default_factory=list)

    def add(self, part: SamplePart, units: Iterable[Unit]) -> None:
        """Add what some units have; they count once."""
        self.population += part.population
        self.units.update(unit.file for unit in units)
        self._parts.append(part)
        if len(self) > 1.25 * self.sampling.size:
            self._parts = [self.smallest()]
            largest = int(self._parts[0].hashes.max())
            self.sampling = replace(self.sampling, below=min(self.sampling.below, largest + 1))

    def __len__(self) -> int:
        return sum(len(part.hashes) for part in self._parts)

    @property
    def is_short(self) -> bool:
        """Whether more patches of the sample can lie above `below`."""
        below = min(self.sampling.below, self.sampling.stored)
        return len(self) < self.sampling.size and below < self.sampling.stored

    def widen(self) -> None:
        """Begin anew with four times as many patches."""
        self.sampling = replace(self.sampling, below=min(ALL, 4 * self.sampling.below))
        self.population = 0
        self.units.clear()
        self._parts.clear()

    def features(self) -> NDArray[np.float16]:
        """[k, D_f] in the order of the patches' names; the parts are gone afterwards."""
        chosen = self._chosen()
        names = np.concatenate([part.names for part in self._parts])[chosen]
        features = self._rows(chosen[np.argsort(names, kind="stable")])
        self._parts.clear()
        return features

    def smallest(self) -> SamplePart:
        """The sample as one part."""
        chosen = self._chosen()
        hashes, names = (
            np.concatenate([getattr(part, name) for part in self._parts])[chosen]
            for name in ("hashes", "names")
        )
        return SamplePart(hashes, names, self._rows(chosen), self.population)

    def _chosen(self) -> NDArray[np.int64]:
        """The smallest hashes among those of all parts, one after another."""
        hashes, size = np.concatenate([part.hashes for part in self._parts]), self.sampling.size
        if len(hashes) <= size:
            return np.arange(len(hashes))
        return np.sort(np.argpartition(hashes, size - 1)[:size])

    def _rows(self, chosen: NDArray[np.int64]) -> NDArray[np.float16]:
        """Features of some patches, counted through all parts, which are never joined."""
        rows = np.empty((len(chosen), self._parts[0].features.shape[1]), np.float16)
        order = np.argsort(chosen, kind="stable")
        starts = np.cumsum([0, *(len(part.hashes) for part in self._parts)])
        edges = np.searchsorted(chosen[order], starts)
        for part, start, first, last in zip(self._parts, starts, edges, edges[1:], strict=False):
            places = order[first:last]
            rows[places] = part.features[chosen[places] - start]
        return rows


def run_sample(config: RunConfig, prepared: Prepared) -> PatchSample:
    """The sample that a run's clusters start from, still empty."""
    manifest = prepared.manifest
    counts = manifest.class_counts["train"]
    images = sum(counts.get(manifest.class_names[label], 0) for label in prepared.trained)
    sampling = sampling_of(config, prepared.trained.tolist(), manifest.num_patches)
    below = hash_threshold(sampling.size, images * manifest.num_patches)
    return PatchSample(replace(sampling, below=below))


def sampling_of(config: RunConfig, labels: Collection[int], num_patches: int) -> Sampling:
    """The sample of some classes that a configuration asks for."""
    size = config.model.num_clusters * config.model.max_points_per_centroid
    return Sampling(tuple(sorted(labels)), size, num_patches, config.seed)


def unit_sample(content: UnitFeatures, unit: Unit, sampling: Sampling) -> SamplePart:
    """What a unit has of the sample, given the content of the whole unit."""
    count = sampling.num_patches
    chosen = np.isin(content.labels.numpy(), sampling.labels) & unit.holds(content.rows.numpy())
    drawn = patch_hashes(content.keys, count, sampling.seed)
    below = np.uint64(min(sampling.below, sampling.stored))
    flat = np.flatnonzero((chosen[:, None] & (drawn < below)).ravel())
    names = [f"{content.keys[i // count]}/{i % count:04d}" for i in flat]
    if content.patches.dim() == 3:
        features = content.patches.flatten(0, 1)[flat].numpy()
    else:  # only the sampled patches are stored, in their order within the unit
        stored = np.flatnonzero(drawn.ravel() < np.uint64(sampling.stored))
        features = content.patches[np.searchsorted(stored, flat)].numpy()
    hashes = drawn.ravel()[flat]
    return SamplePart(hashes, np.array(names, np.str_), features, int(chosen.sum()) * count)


def sample_of_units(
    folder: str, units: Sequence[Unit], sampling: Sampling, access: Access
) -> tuple[SamplePart, Sequence[Unit]]:
    """What some units of a cache have of the sample; each is read once."""
    sample = PatchSample(sampling)
    for unit in units:
        content = read_unit(folder, unit.whole, access)
        sample.add(unit_sample(content, unit, sample.sampling), [unit])
    return sample.smallest(), units


def sample_patches(
    folder: str,
    units: Sequence[Unit],
    labels: Sequence[int],
    config: RunConfig,
    *,
    num_patches: int,
    below: int,
) -> tuple[NDArray[np.float16], int]:
    """Features [k, D_f] of the patches of some classes with the smallest hashes, whatever the order
    of the units, and how many patches they were drawn from. Memory is bounded by the sample. The
    cache holds patches whose hash lies under `below`."""
    sampling = replace(sampling_of(config, labels, num_patches), stored=below)
    sample = PatchSample(sampling)
    sample.add(*sample_of_units(folder, units, sampling, access_of(config.data)))
    return sample.features(), sample.population
