"""cluster.yaml, the RayJob and the image, as far as they can be checked without a cloud."""

import copy
import re
import shlex
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from packaging.utils import canonicalize_name
from ray.autoscaler._private.util import prepare_config, validate_config

from deploy import pin
from distributed.__main__ import make_parser
from rayjob_schema import RAYJOB
from vgse.config import RunConfig, validate

ROOT = Path(__file__).resolve().parents[2]
PIN = re.compile(r"ray(?:\[[a-z,]+\])?(?:==|:)(\d+\.\d+\.\d+)")


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / name).read_text())  # type: ignore[no-any-return]


def checked(config: dict[str, Any]) -> dict[str, Any]:
    """What Ray's launcher makes of a cluster's configuration."""
    pytest.importorskip("boto3")
    config = prepare_config(copy.deepcopy(config))
    validate_config(config)
    return config


def commands(config: dict[str, Any]) -> str:
    return "\n".join(line for key, lines in config.items() if "commands" in key for line in lines)


def test_the_launcher_takes_the_cluster() -> None:
    config = checked(read("cluster.yaml"))
    types = config["available_node_types"]
    assert types[config["head_node_type"]]["resources"] == {"CPU": 0}
    assert (types["gpu"]["min_workers"], types["gpu"]["max_workers"]) == (0, 8)
    assert types["gpu"]["resources"]["GPU"] == 1
    assert config["max_workers"] >= types["gpu"]["max_workers"]
    assert any(option.startswith("--shm-size=") for option in config["docker"]["run_options"])


def no_head(config: dict[str, Any]) -> None:
    config["head_node_type"] = "none"


def misspelt(config: dict[str, Any]) -> None:
    config["max_worker"] = 3


def too_many(config: dict[str, Any]) -> None:
    config["available_node_types"]["gpu"]["min_workers"] = 9


@pytest.mark.parametrize("spoil", [no_head, misspelt, too_many])
def test_the_launcher_would_refuse_a_wrong_cluster(spoil: Callable[[dict[str, Any]], None]) -> None:
    config = read("cluster.yaml")
    spoil(config)
    with pytest.raises((ValueError, jsonschema.ValidationError)):
        checked(config)


def test_the_launcher_installs_no_ray_of_its_own() -> None:
    assert "nightly" not in (told := commands(checked(read("cluster.yaml"))))
    assert "ray-wheels" not in told
    defaults = read("cluster.yaml")
    del defaults["setup_commands"]
    assert "ray-wheels" in commands(checked(defaults))  # what leaving them out would do


def test_every_node_asks_for_a_token_and_the_dashboard_stays_on_loopback() -> None:
    config = checked(read("cluster.yaml"))
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        (start,) = (line for line in config[key] if "ray start" in line)
        assert "export RAY_AUTH_MODE=token;" in start
    assert "--dashboard-host=127.0.0.1" in commands(config)
    assert "0.0.0.0" not in commands(config)
    mounts = config["file_mounts"]
    assert mounts["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"
    assert "chmod 600 ~/.ray/auth_token ~/secrets" in config["setup_commands"][0]


def test_the_launcher_copies_every_mount_and_its_own_key() -> None:
    config = read("cluster.yaml")
    mounts = [path for pair in config["file_mounts"].items() for path in pair]
    names = [Path(path).name for path in (*mounts, "ray-autoscaler_us-west-2.pem")]
    # rsync leaves out a single file, too, if an exclude names it.
    for pattern in config["rsync_exclude"]:
        assert not [name for name in names if fnmatch(name, pattern)], pattern


def test_one_ray_is_pinned_everywhere_and_the_project_takes_it() -> None:
    texts = [(ROOT / name).read_text() for name in ("cluster.yaml", "deploy/Dockerfile")]
    found = [pin for text in texts for pin in PIN.findall(text)]
    found.append(read("deploy/rayjob.yaml")["spec"]["rayClusterSpec"]["rayVersion"])
    assert len(found) == 5
    assert len(set(found)) == 1
    lowest = re.search(r'"ray\[.*\]>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert lowest and found[0].startswith(lowest[1])


def install_arguments(command: str) -> list[str]:
    """What `python -m pip install` is given, without constraints, extra and Ray's pin."""
    words = shlex.split(command.partition("-m pip install")[2])
    if "--constraint" in words:
        place = words.index("--constraint")
        del words[place : place + 2]
    return [word.replace(".[s3]", ".") for word in words if not PIN.match(word)]


def test_image_and_nodes_install_the_versions_that_were_tested() -> None:
    texts = [(ROOT / name).read_text() for name in ("cluster.yaml", "deploy/Dockerfile")]
    installs = [line for text in texts for line in text.splitlines() if "pip install" in line]
    assert len(installs) == 3
    assert all(re.search(r"--constraint \S*deploy/constraints\.txt ", line) for line in installs)
    lines = (ROOT / "deploy/constraints.txt").read_text().splitlines()[1:]
    pins = dict(line.split("==") for line in lines)
    needed = pin.wanted()
    for requirement in needed:
        if requirement.marker is None or requirement.marker.evaluate():
            assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)])
    assert set(pin.closure(needed)) <= set(pins)  # what they need themselves as well
    assert set(PIN.findall(texts[1])) == {pins["ray"]}


def test_nodes_start_from_an_image_with_a_driver() -> None:
    types = read("cluster.yaml")["available_node_types"].values()
    images = {each["node_config"]["ImageId"] for each in types}
    assert len(images) == 1 and "base-oss-nvidia-driver-gpu" in images.pop()
    config = checked(read("cluster.yaml"))["available_node_types"]
    assert "base-oss-nvidia-driver-gpu" in config["gpu"]["node_config"]["ImageId"]


def test_image_and_nodes_are_installed_as_the_readme_does() -> None:
    makefile = (ROOT / "Makefile").read_text()
    (ours,) = re.findall(r"-m pip install .*--editable \.$", makefile, re.MULTILINE)
    (image,) = re.findall(r"^RUN (.*)$", (ROOT / "deploy/Dockerfile").read_text(), re.MULTILINE)
    nodes = read("cluster.yaml")["setup_commands"][1]
    assert install_arguments(image) == install_arguments(ours)
    assert install_arguments(nodes) == install_arguments(ours)
    assert "[s3]" in image and PIN.search(image)


def test_the_rayjob_fits_the_schema() -> None:
    jsonschema.validate(read("deploy/rayjob.yaml"), RAYJOB)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("spec.shutdownAfterJobFinish", True),
        ("spec.rayClusterSpec.authOptions.mode", "tokens"),
        ("spec.rayClusterSpec.headGroupSpec.rayStartParams.num-cpus", 0),
        ("spec.ttlSecondsAfterFinished", "600"),
        ("apiVersion", "ray.io/v1alpha1"),
    ],
)
def test_a_wrong_rayjob_would_be_seen(place: str, value: object) -> None:
    job = read("deploy/rayjob.yaml")
    *way, last = place.split(".") if place != "apiVersion" else [place]
    inner = job
    for name in way:
        inner = inner[name]
    inner[last] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(job, RAYJOB)


def test_the_rayjobs_pods_fit_together() -> None:
    cluster = read("deploy/rayjob.yaml")["spec"]["rayClusterSpec"]
    assert cluster["authOptions"]["mode"] == "token"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    (workers,) = cluster["workerGroupSpecs"]
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    for group in (cluster["headGroupSpec"], workers):
        pod = group["template"]["spec"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        (container,) = pod["containers"]
        mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert set(mounted.values()) == set(volumes)
        shm = volumes[mounted["/dev/shm"]]["emptyDir"]
        assert shm["medium"] == "Memory"
        memory = container["resources"]["limits"]["memory"]
        assert int(shm["sizeLimit"].removesuffix("Gi")) > 0.3 * int(memory.removesuffix("Gi"))
    assert workers["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]


def test_the_rayjobs_command_is_one_that_trains() -> None:
    spec = read("deploy/rayjob.yaml")["spec"]
    change, _, command = spec["entrypoint"].partition(" && python -m distributed ")
    (workdir,) = re.findall(
        r"^WORKDIR (.*)$", (ROOT / "deploy/Dockerfile").read_text(), re.MULTILINE
    )
    assert change == f"cd {workdir}"
    arguments = shlex.split(command)
    place = arguments.index("--config") + 1
    arguments[place] = str(ROOT / arguments[place])
    parser = make_parser()
    options = parser.instantiate(parser.parse_args(arguments)).train
    for name in ("config", "run_id", "resume", "verbose"):
        options.pop(name)
    config = RunConfig(**vars(options))
    validate(config)
    assert config.cluster.num_workers == spec["rayClusterSpec"]["workerGroupSpecs"][0]["replicas"]
    mounts = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert any(config.storage.startswith(m["mountPath"]) for m in mounts["volumeMounts"])
    assert isinstance(yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"], dict)
