"""The optimiser of a run, in the form that is fastest on its device."""

import torch

from vgse.config import TrainingConfig
from vgse.training.model import TrainingModel


def make_optimizer(model: TrainingModel, config: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW or SGD with a peak rate each for prototypes and projection, for Q and S, and for θ.

    Each group holds its peak under "peak". On a GPU one kernel updates all parameters.
    """
    head = model.head
    regressors = [*head.classifier.parameters(), *head.regressor.parameters()]
    known = {id(parameter) for parameter in regressors}
    clustering = [p for p in head.parameters() if p.requires_grad and id(p) not in known]
    rates = [(clustering, config.learning_rate), (regressors, config.regressor_learning_rate)]
    if model.backbone is not None:
        part = [p for p in model.backbone.parameters() if p.requires_grad]
        rates.append((part, config.backbone_learning_rate))
    groups = [{"params": parameters, "peak": rate, "lr": rate} for parameters, rate in rates]
    fused, decay = head.centroids.is_cuda or None, config.weight_decay
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, weight_decay=decay, fused=fused)
    return torch.optim.SGD(groups, momentum=config.momentum, weight_decay=decay, fused=fused)


@torch.no_grad()
def match_layout(optimizer: torch.optim.Optimizer) -> None:
    """Lay the optimiser's moments out in memory as their parameters are.

    A checkpoint holds them row by row; fused kernels refuse that beside a channels_last weight.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
