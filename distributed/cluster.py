"""Joining or starting a Ray cluster, quietly and with its token kept private."""

import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

from vgse.config import ClusterConfig

_QUIET = {
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # The controller takes one report a poll; the default of two seconds would rule short epochs.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


def _private_token() -> None:
    """See that Ray's token is this user's alone; Ray itself would make it readable to all."""
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    path = Path.home() / ".ray" / "auth_token"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
        return
    with os.fdopen(handle, "w") as file:
        file.write(secrets.token_hex(32))


@contextmanager
def ray_cluster(config: ClusterConfig, *, verbose: bool = False) -> Iterator[None]:
    """Join the cluster at `config.address` (or RAY_ADDRESS), or start one on this machine.

    A cluster that was started here is stopped on leaving; one that was there already, also a
    Ray that this process had initialised before, is left as it was.

    Raises:
        ValueError: the address does not answer.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.update({key: value for key, value in _QUIET.items() if key not in os.environ})
    address = config.address or os.environ.get("RAY_ADDRESS") or "local"
    own: dict[str, object] = {}
    if address == "local":
        _private_token()
        needed = int(config.num_workers * config.cpus_per_worker)
        own = {"num_cpus": max(os.cpu_count() or 1, needed), "include_dashboard": False}
    try:
        ray.init(
            address=address,
            log_to_driver=verbose,
            logging_level=logging.INFO if verbose else logging.ERROR,
            **own,  # type: ignore[arg-type]
        )
    except ConnectionError as error:
        raise ValueError(
            f"cluster.address: no Ray cluster answers at {address} ({error}); "
            "start one with 'ray start --head', or leave the address out"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def wants_gpu(config: ClusterConfig) -> bool:
    """Whether training workers get a GPU each, by configuration and by what the cluster has.

    Raises:
        ValueError: GPUs were asked for and are not there.
    """
    available = ray.cluster_resources().get("GPU", 0)
    if config.use_gpu == "yes" and available < config.num_workers:
        raise ValueError(
            f"cluster.use_gpu is yes, but the cluster has {available:.0f} GPUs for "
            f"{config.num_workers} workers; lower cluster.num_workers or set use_gpu to auto"
        )
    return config.use_gpu != "no" and available >= config.num_workers
