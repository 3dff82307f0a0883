"""Differences between rows of the ablation, and which of them are more than chance."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from scipy import stats

from benchmarks.quality.settings import DEFAULT
from benchmarks.quality.values import Ablation, Outcome, Values

MEASURES: tuple[tuple[str, Callable[[Outcome], Values]], ...] = (
    ("NMI", lambda o: o.measure("nmi")),
    ("nearest class mean", lambda o: o.measure("nearest_class_mean")),
    ("SMO T1", lambda o: o.accuracy("smo")),
    ("SMO H", lambda o: o.accuracy("smo", "harmonic_mean")),
    ("own-images T1", lambda o: o.accuracy("oracle")),
)
_FAR_OFF = ("random", "permuted", "oracle", "image_oracle")


@dataclass(frozen=True)
class Difference:
    """Of two rows, split by split, in points."""

    mean: float
    std: float | None  # over the splits, None for one split
    usual: float  # what the deviation usually is in this column

    @property
    def clear(self) -> bool:
        """Whether it exceeds two standard deviations; one split says nothing.

        That of a few splits can be next to nothing by luck: the usual one is the least.
        """
        return self.std is not None and abs(self.mean) > 2 * max(self.std, self.usual)

    @property
    def plain(self) -> str:
        """Mean ± deviation."""
        return f"{self.mean:+.1f}" if self.std is None else f"{self.mean:+.1f} ± {self.std:.1f}"

    def __str__(self) -> str:
        return f"**{self.plain}**" if self.clear else self.plain


def difference(first: Values, second: Values, usual: float = 0.0) -> Difference:
    """`first` minus `second`, paired by split; the deviation is that of a sample."""
    gap = first - second
    return Difference(float(gap.mean()), float(gap.std(ddof=1)) if len(gap) > 1 else None, usual)


def usual_deviation(gaps: Iterable[Values]) -> float:
    """Root mean square of the gaps' standard deviations over the splits; 0 for one split."""
    variances = [gap.var(ddof=1) for gap in gaps if len(gap) > 1]
    return float(np.sqrt(np.mean(variances))) if variances else 0.0


@dataclass(frozen=True)
class Comparison:
    """The settings of an ablation, compared with its default."""

    default: Outcome
    others: list[Outcome]  # that are not the default under another name
    usual: dict[str, float]  # measure -> deviation of its differences

    def change(self, before: Outcome, after: Outcome) -> dict[str, Difference]:
        """What each measure gains from one setting to another."""
        return {
            name: difference(get(after), get(before), self.usual[name]) for name, get in MEASURES
        }

    def luck(self) -> float:
        """Share, in 0..1, of differences that are truly nothing and yet are clear, where the
        usual deviation is theirs; NaN for one split."""
        splits = len(self.default.results)
        freedom = (splits - 1) * len(self.others)
        return float(2 * stats.t.sf(2 * np.sqrt(splits), freedom)) if freedom else float("nan")


def compare(ablation: Ablation) -> Comparison:
    """All settings beside the default, which every ablation holds."""
    default = ablation.find(DEFAULT)
    assert default is not None, "every ablation holds the default"
    others = [o for o in ablation.outcomes if o.results != default.results]
    usual = {
        name: usual_deviation(get(outcome) - get(default) for outcome in others)
        for name, get in MEASURES
    }
    return Comparison(default, others, usual)


def usual_of_relations(outcome: Outcome) -> float:
    """The usual deviation of T1 between rows of relations and SMO; controls that have to fail and
    oracles, which are far off, do not count."""
    smo = outcome.accuracy("smo")
    rows = [row for row in outcome.row_names() if row not in ("smo", *_FAR_OFF)]
    return usual_deviation(outcome.accuracy(row) - smo for row in rows)


def spread(values: Values) -> str:
    """Mean ± standard deviation over the splits."""
    mean = f"{values.mean():.1f}"
    return f"{mean} ± {values.std(ddof=1):.1f}" if len(values) > 1 else mean
