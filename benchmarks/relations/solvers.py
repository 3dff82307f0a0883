"""The peers of `vgse.relations`, one function each, as their users would call them.

Each takes a centred problem (seen [S, D_w], target w [D_w], ridge, alpha) and returns r [S].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import clarabel
import cvxpy
import numpy as np
import osqp
import piqp
from numpy.typing import NDArray
from scipy.optimize import LinearConstraint, minimize, nnls
from scipy.sparse import csc_matrix, eye_array, vstack

F64 = NDArray[np.float64]
Solver = Callable[[F64, F64, float, float], F64]


@dataclass(frozen=True)
class Peer:
    """A solver, whether it is given the ridge, and how many problems it gets at most."""

    name: str
    solve: Solver
    ridged: bool
    sample: Callable[[int], int]  # number of seen classes -> problems
    any_alpha: bool = True


def solve_cvxpy(seen: F64, target: F64, ridge: float, alpha: float) -> F64:
    """CVXPY's default solver on the norm, as in the paper's formula; no ridge."""
    r = cvxpy.Variable(len(seen))
    goal = cvxpy.Minimize(cvxpy.norm(target - r @ seen))  # type: ignore[attr-defined]
    total = cvxpy.sum(r)  # type: ignore[attr-defined]
    cvxpy.Problem(goal, [r >= alpha, r <= 1, total == 1]).solve()
    return np.asarray(r.value)


def solve_slsqp(seen: F64, target: F64, ridge: float, alpha: float) -> F64:
    """SciPy's SLSQP with exact gradients."""

    def objective(r: F64) -> tuple[float, F64]:
        error = r @ seen - target
        return 0.5 * float(error @ error + ridge * r @ r), seen @ error + ridge * r

    num_seen = len(seen)
    found = minimize(
        objective,
        np.full(num_seen, 1 / num_seen),
        jac=True,
        method="SLSQP",
        bounds=[(alpha, 1.0)] * num_seen,
        constraints=LinearConstraint(np.ones((1, num_seen)), 1, 1),
        options={"ftol": 1e-12, "maxiter": 1000},
    )
    return np.asarray(found.x)


def solve_nnls(seen: F64, target: F64, ridge: float, alpha: float) -> F64:
    """SciPy's nnls; the sum is a row of weight 1e4. No ridge; alpha is 0."""
    rows = np.vstack([seen.T, np.full((1, len(seen)), 1e4)])
    return np.asarray(nnls(rows, np.append(target, 1e4), maxiter=30 * len(seen))[0])


def solve_osqp(seen: F64, target: F64, ridge: float, alpha: float) -> F64:
    """OSQP with polishing."""
    num_seen = len(seen)
    hessian = csc_matrix(np.triu(seen @ seen.T + ridge * np.eye(num_seen)))
    identity: Any = eye_array(num_seen)
    rows = csc_matrix(vstack([csc_matrix(np.ones((1, num_seen))), identity]))
    low, high = np.full(num_seen + 1, alpha), np.ones(num_seen + 1)
    low[0] = 1.0
    solver = osqp.OSQP()
    solver.setup(
        hessian,
        -seen @ target,
        rows,
        low,
        high,
        eps_abs=1e-6,
        eps_rel=1e-6,
        max_iter=20_000,
        polishing=True,
        verbose=False,
    )
    return np.asarray(solver.solve().x)


def solve_clarabel(seen: F64, target: F64, ridge: float, alpha: float) -> F64:
    """Clarabel's interior point on the quadratic programme."""
    num_seen = len(seen)
    hessian = csc_matrix(np.triu(seen @ seen.T + ridge * np.eye(num_seen)))
    identity: Any = eye_array(num_seen)
    rows = csc_matrix(vstack([csc_matrix(np.ones((1, num_seen))), -identity, identity]))
    right = np.concatenate([[1.0], np.full(num_seen, -alpha), np.ones(num_seen)])
    cones = [clarabel.ZeroConeT(1), clarabel.NonnegativeConeT(2 * num_seen)]
    options = clarabel.DefaultSettings()
    options.verbose = False
    solver = clarabel.DefaultSolver(hessian, -seen @ target, rows, right, cones, options)
    return np.asarray(solver.solve().x)


def solve_piqp(seen: F64, target: F64, ridge: float, alpha: float) -> F64:
    """PIQP's dense interior point."""
    num_seen = len(seen)
    solver = piqp.DenseSolver()
    solver.setup(
        np.asfortranarray(seen @ seen.T + ridge * np.eye(num_seen)),
        -seen @ target,
        np.asfortranarray(np.ones((1, num_seen))),
        np.ones(1),
        x_l=np.full(num_seen, alpha),
        x_u=np.ones(num_seen),
    )
    solver.solve()
    return np.asarray(solver.result.x)


def _few(num_seen: int) -> int:
    return 5 if num_seen < 1_000 else 3


PEERS = [
    Peer("CVXPY norm(), default", solve_cvxpy, False, _few),
    Peer("SciPy SLSQP", solve_slsqp, True, lambda num_seen: 5 if num_seen < 500 else 1),
    Peer("SciPy nnls, weighted sum row", solve_nnls, False, _few, any_alpha=False),
    Peer("OSQP, polished", solve_osqp, True, _few),
    Peer("Clarabel", solve_clarabel, True, _few),
    Peer("PIQP dense", solve_piqp, True, _few),
]
