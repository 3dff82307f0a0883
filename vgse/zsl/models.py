"""The zero-shot models of the table, by name.

A model is `fit(training, embeddings [S, D_e], *, seed, **params) -> score` and a score is
`score(features [M, D], embeddings of K candidates [K, D_e]) -> [M, K]`, the higher the likelier.
`Training` and `features` come from `vgse.zsl.features`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

from vgse.zsl.ale import fit_ale
from vgse.zsl.bilinear import Score
from vgse.zsl.conse import fit_conse
from vgse.zsl.devise import fit_devise
from vgse.zsl.eszsl import fit_eszsl
from vgse.zsl.prototype import fit_prototype
from vgse.zsl.sae import fit_sae
from vgse.zsl.sje import fit_sje

Params = dict[str, float]


Fit = Callable[..., Score]
"""fit(training, embeddings [S, D_e], *, seed, **params) -> score."""


@dataclass(frozen=True)
class Model:
    """A zero-shot model and the hyper-parameters among which validation chooses."""

    name: str
    label: str
    fit: Fit
    grid: tuple[Params, ...]
    stochastic: bool = False


def _grid(**values: tuple[float, ...]) -> tuple[Params, ...]:
    return tuple(dict(zip(values, chosen, strict=True)) for chosen in product(*values.values()))


_ONE_VIOLATOR = _grid(weight_decay=(0.003, 0.03, 0.1, 0.3, 1.0))
_ALL_VIOLATORS = _grid(weight_decay=(0.0001, 0.0003, 0.001, 0.003, 0.01))

MODELS: dict[str, Model] = {
    model.name: model
    for model in (
        Model(
            "eszsl",
            "ESZSL",
            fit_eszsl,
            _grid(gamma=(0.1, 1.0, 10.0, 100.0), lam=(0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)),
        ),
        Model("sje", "SJE", fit_sje, _ONE_VIOLATOR, stochastic=True),
        Model(
            "prototype",
            "prototype",
            fit_prototype,
            _grid(ridge=(0.01, 0.1, 1.0, 10.0, 100.0), shrinkage=(1.0, 10.0, 1000.0)),
        ),
        Model("ale", "ALE", fit_ale, _ALL_VIOLATORS, stochastic=True),
        Model("devise", "DeViSE", fit_devise, _ALL_VIOLATORS, stochastic=True),
        Model("sae", "SAE", fit_sae, _grid(balance=(0.1, 1.0, 10.0, 100.0, 1000.0))),
        Model("conse", "ConSE", fit_conse, _grid(top=(1, 3, 10, 30)), stochastic=True),
    )
}


def find_model(name: str) -> Model:
    """The model called `name`; ValueError names those there are."""
    if name not in MODELS:
        raise ValueError(f"zero-shot model {name!r} is unknown: choose among {', '.join(MODELS)}")
    return MODELS[name]
