"""The zero-shot models of the table, by name."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

from vgse.errors import UserError
from vgse.zsl.features import Training
from vgse.zsl.models import bilinear
from vgse.zsl.models.bilinear import Params
from vgse.zsl.models.closed_form import fit_eszsl, fit_prototype, fit_sae, fit_sae_decoder


@dataclass(frozen=True)
class Model:
    """A zero-shot model and the hyper-parameters among which validation chooses."""

    name: str
    label: str
    fit_grid: Callable[..., Iterable[bilinear.Score]]
    """(training, embeddings [S, D_e], seed, list of hyper-parameters) -> a score for each."""
    grid: tuple[Params, ...]
    stochastic: bool = False  # learned by SGD: it depends on the seed, and a fit is costly
    unit_length: bool = False  # it brings embeddings to unit length itself
    calibrated: bool = True  # or else its authors take the plain arg max over all classes

    def fit(
        self, training: Training, embeddings: bilinear.Embeddings, *, seed: int = 0, **params: float
    ) -> bilinear.Score:
        """The score with one set of hyper-parameters."""
        [score] = self.fit_grid(training, embeddings, seed, [params])
        return score


def _grid(**values: tuple[float, ...]) -> tuple[Params, ...]:
    return tuple(dict(zip(values, chosen, strict=True)) for chosen in product(*values.values()))


def _fit_cada_vae(*arguments: Any) -> Iterable[bilinear.Score]:
    from vgse.zsl.models.cada_vae import fit_cada_vae  # torch takes a second to import

    return fit_cada_vae(*arguments)


def _sgd(name: str, label: str, slope: bilinear.Slope, weight_decay: tuple[float, ...]) -> Model:
    """A model that is its loss, learned by SGD."""
    fit_grid = partial(bilinear.fit_bilinear, slope=slope)
    grid = _grid(weight_decay=weight_decay)
    return Model(name, label, fit_grid, grid, stochastic=True, unit_length=True)


_ONE_VIOLATOR = (0.003, 0.03, 0.1, 0.3, 1.0)
_ALL_VIOLATORS = (0.0001, 0.0003, 0.001, 0.003, 0.01)
_ESZSL = _grid(gamma=(0.1, 1.0, 10.0, 100.0), lam=(0.01, 0.1, 1.0, 10.0, 100.0, 1000.0))
_SAE = _grid(balance=(0.1, 1.0, 10.0, 100.0, 1000.0))
_PROTOTYPE = _grid(ridge=(0.01, 0.1, 1.0, 10.0, 100.0), shrinkage=(1.0, 10.0, 1000.0))

MODELS: dict[str, Model] = {
    model.name: model
    for model in (
        Model("eszsl", "ESZSL", fit_eszsl, _ESZSL),
        _sgd("sje", "SJE", bilinear.sje_slope, _ONE_VIOLATOR),
        Model("prototype", "prototype", fit_prototype, _PROTOTYPE),
        _sgd("ale", "ALE", bilinear.ale_slope, _ALL_VIOLATORS),
        _sgd("devise", "DeViSE", bilinear.devise_slope, _ALL_VIOLATORS),
        Model("sae", "SAE F→S", fit_sae, _SAE),
        Model("sae_decoder", "SAE S→F", fit_sae_decoder, _SAE),
        Model(*("conse", "ConSE", bilinear.fit_conse, _grid(top=(1, 3, 10, 30))), stochastic=True),
        Model(
            *("cada_vae", "small CADA-VAE", _fit_cada_vae, _grid(noise=(0.3, 1.0))),
            stochastic=True,
            calibrated=False,
        ),
    )
}


def label_of(name: str) -> str:
    """How tables call a model; one that is not known by its name."""
    return MODELS[name].label if name in MODELS else name


def find_model(name: str) -> Model:
    """The model called `name`."""
    if name not in MODELS:
        raise UserError(f"zero-shot model {name!r} is unknown: choose among {', '.join(MODELS)}")
    return MODELS[name]
