"""How unseen classes are composed of seen ones: VGSE-SMO and VGSE-WAvg."""

from vgse.relations.smo import (
    GAP_TARGET,
    VIOLATION_TARGET,
    CachedSolver,
    Relations,
    solve_relations,
)
from vgse.relations.wavg import weighted_average

__all__ = [
    "GAP_TARGET",
    "VIOLATION_TARGET",
    "CachedSolver",
    "Relations",
    "solve_relations",
    "weighted_average",
]
