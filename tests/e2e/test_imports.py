"""Imports run one way, and nothing loads what could run code."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ORDER = ["vgse", "shards", "distributed", "tune"]
FILES = sorted(path for package in ORDER for path in (ROOT / package).rglob("*.py"))
OTHERS = sorted(path for part in ("demo", "benchmarks") for path in (ROOT / part).rglob("*.py"))
METHOD = sorted(set((ROOT / "vgse").rglob("*.py")) - {ROOT / "vgse" / "__main__.py"})
UNSAFE_MODULES = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
SAFE_ONLY_WITH = {
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
    "torch.load": ("weights_only", True),
    "get_state_dict": ("weights_only", True),
    "load_state_dict_from_url": ("weights_only", True),
}
NEVER = {
    "yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "eval", "exec",
    "pd.read_pickle", "pandas.read_pickle", "read_pickle", "torch.hub.load",
}  # fmt: skip


def imported(tree: ast.AST, package: str) -> Iterator[str]:
    """Dotted names of all modules that a file imports, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            yield f"{package}.{module}" if node.level else module
            # `from numpy import load` would hide from the check of calls below
            yield from (f"{module}.{alias.name}" for alias in node.names if not node.level)


def wrong_way(source: str, package: str) -> set[str]:
    """Packages imported against the order."""
    later = set(ORDER[ORDER.index(package) + 1 :])
    tops = {name.partition(".")[0] for name in imported(ast.parse(source), package)}
    return tops & later


def unsafe(source: str) -> list[str]:
    """Imports and calls that could run what a file holds."""
    tree = ast.parse(source)
    names = list(imported(tree, ""))
    if names.count("joblib") == names.count("joblib.cpu_count") == 1:
        names = [name for name in names if name not in ("joblib", "joblib.cpu_count")]
    found = [name for name in names if name.partition(".")[0] in UNSAFE_MODULES]
    found += [name for name in names if name in NEVER or name in SAFE_ONLY_WITH]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        last = called.rpartition(".")[2]
        if called in NEVER:
            found.append(called)
        required = SAFE_ONLY_WITH.get(called) or SAFE_ONLY_WITH.get(last)
        if required and not any(
            word.arg == required[0]
            and isinstance(word.value, ast.Constant)
            and word.value.value is required[1]
            for word in node.keywords
        ):
            found.append(called)
    return found


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_the_packages_are_there() -> None:
    names = {name_of(path) for path in FILES}
    assert {
        "vgse/training/losses.py",
        "shards/manifest.py",
        "distributed/features/cache.py",
    } <= names


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_run_one_way(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    assert wrong_way(path.read_text(encoding="utf-8"), package) == set()


@pytest.mark.parametrize("path", FILES + OTHERS, ids=name_of)
def test_nothing_loads_a_pickle(path: Path) -> None:
    assert unsafe(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_what_users_wrote_is_no_markup_to_any_terminal(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Console"):
            said = {word.arg: ast.unparse(word.value) for word in node.keywords}
            assert (said.get("markup"), said.get("emoji")) == ("False", "False")


@pytest.mark.parametrize("path", METHOD, ids=name_of)
def test_the_method_knows_no_ray_no_tar_and_does_not_print(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = set(imported(tree, "vgse"))
    assert not {name.partition(".")[0] for name in names} & {"ray", "tarfile", "webdataset"}
    assert not names & {"rich.console", "rich.print", "rich.live", "rich.progress"}
    calls = [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert "print" not in calls


@pytest.mark.parametrize(
    ("source", "package"),
    [
        ("import shards.samples", "vgse"),
        ("def f():\n    from distributed import start", "shards"),
        ("import numpy, tune.search", "distributed"),
    ],
)
def test_an_import_against_the_order_would_be_seen(source: str, package: str) -> None:
    assert wrong_way(source, package)
    assert not wrong_way(source, "tune")


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import joblib\nfrom joblib import cpu_count",
        "from joblib import cpu_count, load",
        "def f():\n    from cloudpickle import loads",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=flag)",
        "from numpy import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "weights.get_state_dict(progress=False)",
        "yaml.load(text, yaml.SafeLoader)",
        "from yaml import unsafe_load",
        "eval(text)",
    ],
)
def test_a_call_that_could_run_code_would_be_seen(source: str) -> None:
    assert unsafe(source)


@pytest.mark.parametrize(
    "source",
    [
        "np.load(path, allow_pickle=False)",
        "torch.load(path, weights_only=True)",
        "yaml.safe_load(text)",
        "json.load(file)",
        "from joblib import cpu_count",
        "model.eval()",
    ],
)
def test_safe_calls_pass(source: str) -> None:
    assert not unsafe(source)
