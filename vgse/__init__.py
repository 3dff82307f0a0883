"""Visually-grounded semantic embeddings of classes; docs/python.md shows these names in use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vgse.config import RunConfig, load_config
    from vgse.errors import UserError
    from vgse.relations.predict import ClassRelation, relate_classes
    from vgse.run_folder import Run, load_run
    from vgse.zsl.data import ZslData
    from vgse.zsl.external import evaluate_embeddings

__all__ = [
    "ClassRelation",
    "Run",
    "RunConfig",
    "UserError",
    "ZslData",
    "evaluate_embeddings",
    "load_config",
    "load_run",
    "relate_classes",
]

_MODULES = {
    "ClassRelation": "vgse.relations.predict",
    "Run": "vgse.run_folder",
    "RunConfig": "vgse.config",
    "UserError": "vgse.errors",
    "ZslData": "vgse.zsl.data",
    "evaluate_embeddings": "vgse.zsl.external",
    "load_config": "vgse.config",
    "load_run": "vgse.run_folder",
    "relate_classes": "vgse.relations.predict",
}


def __getattr__(name: str) -> Any:
    """A public name, imported when it is asked for: SciPy and scikit-learn take a second."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
