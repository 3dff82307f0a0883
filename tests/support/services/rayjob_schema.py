"""The part of KubeRay's RayJob (ray.io/v1) that deploy/rayjob.yaml uses, as a JSON schema.

Written by hand after the API's reference, since the resource definition itself is not at hand
offline. Unknown fields are refused, as the API server refuses them under strict validation.
"""

from typing import Any

TEXT: dict[str, Any] = {"type": "string", "minLength": 1}
COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}


def record(required: str = "", /, **fields: dict[str, Any]) -> dict[str, Any]:
    """An object of these fields and no other; `required` names some of them."""
    return {
        "type": "object",
        "properties": {name.rstrip("_"): schema for name, schema in fields.items()},
        "required": required.split(),
        "additionalProperties": False,
    }


def listed(schema: dict[str, Any]) -> dict[str, Any]:
    """A list of at least one."""
    return {"type": "array", "items": schema, "minItems": 1}


TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}  # numbers are refused
QUANTITIES = {
    "type": "object",
    "propertyNames": {"enum": ["cpu", "memory", "nvidia.com/gpu", "ephemeral-storage"]},
    "additionalProperties": {"type": "string", "pattern": r"^\d+(\.\d+)?(m|[KMGT]i?)?$"},
}
CONTAINER = record(
    "name image resources",
    name=TEXT,
    image=TEXT,
    env=listed(record("name", name=TEXT, value={"type": "string"})),
    envFrom=listed(
        record("secretRef", secretRef=record("name", name=TEXT, optional={"type": "boolean"}))
    ),
    ports=listed(
        record(
            "containerPort",
            name={"type": "string", "pattern": "^[a-z0-9-]{1,15}$"},
            containerPort={"type": "integer", "minimum": 1, "maximum": 65535},
        )
    ),
    resources=record("limits requests", limits=QUANTITIES, requests=QUANTITIES),
    volumeMounts=listed(record("name mountPath", name=TEXT, mountPath=TEXT)),
)
VOLUME = record(
    "name",
    name=TEXT,
    persistentVolumeClaim=record("claimName", claimName=TEXT),
    emptyDir=record(medium={"enum": ["", "Memory"]}, sizeLimit=TEXT),
)
TEMPLATE = record(
    "spec",
    metadata=record(labels=TEXTS, annotations=TEXTS),
    spec=record("containers", containers=listed(CONTAINER), volumes=listed(VOLUME)),
)
CLUSTER = record(
    "rayVersion headGroupSpec",
    rayVersion={"type": "string", "pattern": r"^\d+\.\d+\.\d+$"},
    authOptions=record("mode", mode={"enum": ["disabled", "token"]}),
    enableInTreeAutoscaling={"type": "boolean"},
    headGroupSpec=record("rayStartParams template", rayStartParams=TEXTS, template=TEMPLATE),
    workerGroupSpecs=listed(
        record(
            "groupName minReplicas maxReplicas rayStartParams template",
            groupName=TEXT,
            replicas=COUNT,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            rayStartParams=TEXTS,
            template=TEMPLATE,
        )
    ),
)
RAYJOB = record(
    "apiVersion kind metadata spec",
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=record(
        "name",
        name={"type": "string", "pattern": "^[a-z]([-a-z0-9]{0,45}[a-z0-9])?$"},
        namespace=TEXT,
        labels=TEXTS,
    ),
    spec=record(
        "entrypoint rayClusterSpec",
        entrypoint=TEXT,
        runtimeEnvYAML=TEXT,
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode"]},
        backoffLimit=COUNT,
        activeDeadlineSeconds=COUNT,
        shutdownAfterJobFinishes={"type": "boolean"},
        ttlSecondsAfterFinished=COUNT,
        rayClusterSpec=CLUSTER,
    ),
)
