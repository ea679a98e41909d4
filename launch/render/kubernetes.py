"""Manifests for Kubernetes as JSON, which is YAML: an Indexed Job with a headless Service, or a Kubeflow TrainJob.

Every value is a JSON string, to which no quoting rule of YAML applies, and no shell of a container reads any of them.
"""

import json
import re
from typing import Any, Literal, NamedTuple

from launch.plan.words import LaunchFault

PORT = 29400
CONFIG_DIRECTORY = "/etc/duoflow"
GRACE_SECONDS = 300
"""Between SIGTERM and SIGKILL: a step and a checkpoint."""
FAILURES_PER_NODE = 3
"""Pods that may fail, times the nodes: one lost rank fails the pods of all."""
EXIT_USER_MISTAKE, EXIT_STOPPED = 2, 75

_LABEL = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?")
"""RFC 1035: what names a Service and a TrainJob, and so a pod's host name."""
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]*")
_VOLUME_PATH = re.compile(r"/[A-Za-z0-9._/-]+")


class KubernetesOptions(NamedTuple):
    """What a job asks for."""

    name: str
    image: str
    claim: str
    """Name of the PersistentVolumeClaim with data and runs, which all nodes mount."""
    nodes: int
    gpus_per_node: int
    """A rank each; 0 is one rank per node on the CPU."""
    namespace: str | None = None
    volume: str = "/workspace"
    """Where the claim is mounted: the ranks' working directory, in which the recipe's paths begin."""
    variant: Literal["job", "trainjob"] = "job"


def manifests(options: KubernetesOptions, config: str, run: str) -> str:
    """A `List` for `kubectl apply -f -`.

    Args:
        config: text of the resolved configuration.
        run: the run's directory, from the volume.

    Raises:
        LaunchFault: an option that Kubernetes would refuse or read as something else.
    """
    check_options(options)
    kinds = [_service, _config_map, _job] if options.variant == "job" else [_config_map, _train_job]
    items = [make(options, config, run) for make in kinds]
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": items}, indent=2, ensure_ascii=True) + "\n"


def check_options(options: KubernetesOptions) -> None:
    """Refuse what Kubernetes would.

    Raises:
        LaunchFault: with the option.
    """
    # A pod is called NAME-INDEX, and that is a host name of at most 63 characters.
    longest = 63 - len(f"-{options.nodes}")
    for flag, value in (("--name", options.name), ("--namespace", options.namespace), ("--claim", options.claim)):
        if value is not None and (not _LABEL.fullmatch(value) or len(value) > longest):
            raise LaunchFault(
                f"{flag} {value!r}: expected at most {longest} small letters, digits and -, beginning with a letter"
            )
    if not _IMAGE.fullmatch(options.image):
        raise LaunchFault(f"--image {options.image!r}: expected a container image, such as registry.org/team/duoflow:1")
    if not _VOLUME_PATH.fullmatch(options.volume) or ".." in options.volume:
        raise LaunchFault(f"--volume {options.volume!r}: expected an absolute path of letters, digits and ._/-")
    for flag, number, least in (("--nodes", options.nodes, 1), ("--gpus-per-node", options.gpus_per_node, 0)):
        if number < least:
            raise LaunchFault(f"{flag} {number}: expected at least {least}")


def _service(options: KubernetesOptions, _config: str, _run: str) -> dict[str, Any]:
    """Gives every pod a name that the others can look up: NAME-0.NAME is rank 0's."""
    spec = {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "selector": _labels(options),
        "ports": [{"name": "rendezvous", "port": PORT}],
    }
    return {"apiVersion": "v1", "kind": "Service", "metadata": _metadata(options, options.name), "spec": spec}


def _config_map(options: KubernetesOptions, config: str, _run: str) -> dict[str, Any]:
    metadata = _metadata(options, f"{options.name}-config")
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"config.yaml": config}}


def _job(options: KubernetesOptions, _config: str, run: str) -> dict[str, Any]:
    container = {
        "name": "node",
        "image": options.image,
        "workingDir": options.volume,
        "command": _command(options, run, _pod_names(options)),
        "env": _variables(options),
        "ports": [{"name": "rendezvous", "containerPort": PORT}],
        "resources": _resources(options),
        "volumeMounts": _mounts(options),
    }
    pod = {
        "subdomain": options.name,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "containers": [container],
        "volumes": _volumes(options),
    }
    spec = {
        "completionMode": "Indexed",
        "completions": options.nodes,
        "parallelism": options.nodes,
        "backoffLimit": FAILURES_PER_NODE * options.nodes,
        "podFailurePolicy": {"rules": _failure_rules()},
        "template": {"metadata": {"labels": _labels(options)}, "spec": pod},
    }
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": _metadata(options, options.name), "spec": spec}


def _failure_rules() -> list[dict[str, Any]]:
    """A mistake fails the job at once; a run that was stopped and has saved, or lost its node, starts again."""

    def on_code(action: str, code: int) -> dict[str, Any]:
        return {"action": action, "onExitCodes": {"containerName": "node", "operator": "In", "values": [code]}}

    disrupted = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    return [on_code("FailJob", EXIT_USER_MISTAKE), on_code("Ignore", EXIT_STOPPED), disrupted]


def _train_job(options: KubernetesOptions, _config: str, run: str) -> dict[str, Any]:
    """Kubeflow Trainer 2.2 or newer, with its runtime `torch-distributed`, whose container is called `node`."""
    trainer = {
        "image": options.image,
        "command": _command(options, run, _train_job_names(options)),
        "env": _variables(options),
        "numNodes": options.nodes,
        "resourcesPerNode": _resources(options),
    }
    container = {"name": "node", "volumeMounts": _mounts(options)}
    pod = {"volumes": _volumes(options), "containers": [container]}
    jobs = [{"name": "node", "template": {"spec": {"template": {"spec": pod}}}}]
    patch = {
        "manager": "duoflow.io/launch",
        "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": jobs}}},
    }
    spec = {"runtimeRef": {"name": "torch-distributed"}, "trainer": trainer, "runtimePatches": [patch]}
    metadata = _metadata(options, options.name)
    return {"apiVersion": "trainer.kubeflow.org/v1alpha1", "kind": "TrainJob", "metadata": metadata, "spec": spec}


def _command(options: KubernetesOptions, run: str, hosts: list[str]) -> list[str]:
    return [
        *("python", "-m", "launch.pod", "--node-rank=$(JOB_COMPLETION_INDEX)", f"--hosts={','.join(hosts)}"),
        *(f"--slots={max(1, options.gpus_per_node)}", f"--port={PORT}", f"--run={_escape(run)}"),
        *("trainer.train", f"{CONFIG_DIRECTORY}/config.yaml"),
    ]


def _escape(word: str) -> str:
    """Kubernetes replaces $(NAME) in a command; $$ is a dollar."""
    return word.replace("$", "$$")


def _pod_names(options: KubernetesOptions) -> list[str]:
    return [f"{options.name}-{index}.{options.name}" for index in range(options.nodes)]


def _train_job_names(options: KubernetesOptions) -> list[str]:
    """As JobSet names its pods: SET-JOB-REPLICA-INDEX under a service called like the set."""
    return [f"{options.name}-node-0-{index}.{options.name}" for index in range(options.nodes)]


def _variables(options: KubernetesOptions) -> list[dict[str, Any]]:
    cpu = {"DS_ACCELERATOR": "cpu"} if options.gpus_per_node == 0 else {}
    # Weights are fetched once, into the volume. A folder of the volume called `model` hides nothing of the image.
    values = {**cpu, "HF_HOME": f"{options.volume}/hf", "PYTHONSAFEPATH": "1"}
    return [{"name": name, "value": value} for name, value in values.items()]


def _resources(options: KubernetesOptions) -> dict[str, Any]:
    return {"limits": {"nvidia.com/gpu": str(options.gpus_per_node)}} if options.gpus_per_node else {}


def _mounts(options: KubernetesOptions) -> list[dict[str, Any]]:
    return [
        {"name": "workspace", "mountPath": options.volume},
        {"name": "config", "mountPath": CONFIG_DIRECTORY, "readOnly": True},
        {"name": "shared-memory", "mountPath": "/dev/shm"},
    ]


def _volumes(options: KubernetesOptions) -> list[dict[str, Any]]:
    return [
        {"name": "workspace", "persistentVolumeClaim": {"claimName": options.claim}},
        {"name": "config", "configMap": {"name": f"{options.name}-config"}},
        # Loader workers and NCCL share tensors there; a container's own is 64 MB.
        {"name": "shared-memory", "emptyDir": {"medium": "Memory"}},
    ]


def _labels(options: KubernetesOptions) -> dict[str, str]:
    return {"app.kubernetes.io/name": "duoflow", "app.kubernetes.io/instance": options.name}


def _metadata(options: KubernetesOptions, name: str) -> dict[str, Any]:
    namespace = {} if options.namespace is None else {"namespace": options.namespace}
    return {"name": name, **namespace, "labels": _labels(options)}
