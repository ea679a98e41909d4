"""Manifests that Kubernetes' own schema takes, with nothing of a user in a shell and no secret in them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.plan.words import LaunchFault
from launch.render.kubernetes import EXIT_STOPPED, EXIT_USER_MISTAKE, KubernetesOptions, manifests
from tests.unit.launch.render.golden import check_golden

OPTIONS = KubernetesOptions(name="gqa", image="registry.org/team/duoflow:1", claim="data", nodes=2, gpus_per_node=4)
CONFIG = 'run: {name: "gqa"}\nnote: "$(id) # {{ }} \\u00e9"\n'


def items(options: KubernetesOptions, config: str = CONFIG, run: str = "runs/gqa") -> dict[str, dict]:
    return {item["kind"]: item for item in json.loads(manifests(options, config, run))["items"]}


@pytest.mark.parametrize("variant", ["job", "trainjob"])
def test_golden(variant):
    options = OPTIONS._replace(variant=variant, namespace="team")
    check_golden(f"{variant}.json", manifests(options, CONFIG, "runs/gqa"))


@pytest.mark.parametrize("gpus", [0, 4])
def test_kubernetes_schema_takes_it(gpus: int):
    schema = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
    for item in items(OPTIONS._replace(gpus_per_node=gpus, namespace="team")).values():
        schema.validate(item, schema.latest_version(), strict=True)


def test_kubeflows_model_takes_it():
    models = pytest.importorskip("kubeflow_trainer_api.models", reason="pip install kubeflow-trainer-api")
    job = items(OPTIONS._replace(variant="trainjob"))["TrainJob"]
    read = models.TrainerV1alpha1TrainJob.from_dict(job)
    assert json.loads(read.to_json()) == job, "a key that the model does not know is dropped"


def test_every_pod_finds_rank_0_by_the_name_that_the_service_gives_it():
    made = items(OPTIONS)
    pod = made["Job"]["spec"]["template"]
    assert made["Service"]["spec"]["clusterIP"] == "None"
    assert made["Service"]["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert pod["spec"]["subdomain"] == made["Service"]["metadata"]["name"]
    assert "--hosts=gqa-0.gqa,gqa-1.gqa" in pod["spec"]["containers"][0]["command"]


def test_a_mistake_fails_the_job_and_a_stop_starts_it_again():
    spec = items(OPTIONS)["Job"]["spec"]
    actions = {
        rule["onExitCodes"]["values"][0]: rule["action"]
        for rule in spec["podFailurePolicy"]["rules"]
        if "onExitCodes" in rule
    }
    assert actions == {EXIT_USER_MISTAKE: "FailJob", EXIT_STOPPED: "Ignore"}
    assert (spec["completions"], spec["parallelism"], spec["completionMode"]) == (2, 2, "Indexed")
    assert spec["template"]["spec"]["terminationGracePeriodSeconds"] == 300
    assert spec["template"]["spec"]["restartPolicy"] == "Never"


@given(st.text(max_size=200))
def test_any_configuration_arrives_as_it_is(config: str):
    assert items(OPTIONS, config)["ConfigMap"]["data"]["config.yaml"] == config


def test_what_kubernetes_would_expand_in_a_command_is_escaped():
    command = items(OPTIONS, run="runs/$(JOB_COMPLETION_INDEX)")["Job"]["spec"]["template"]["spec"]["containers"][0]
    assert "--run=runs/$$(JOB_COMPLETION_INDEX)" in command["command"]


@pytest.mark.parametrize(
    ("field", "value", "flag"),
    [
        ("name", "Gqa", "--name"),
        ("name", "1gqa", "--name"),
        ("name", "gqa_base", "--name"),
        ("name", "a" * 62, "--name"),
        ("name", "gqa\n", "--name"),
        ("name", "", "--name"),
        ("namespace", "$(id)", "--namespace"),
        ("claim", "a b", "--claim"),
        ("image", "image; id", "--image"),
        ("image", "", "--image"),
        ("volume", "data", "--volume"),
        ("volume", "/data/../etc", "--volume"),
        ("volume", "/", "--volume"),
        ("nodes", 0, "--nodes"),
        ("gpus_per_node", -1, "--gpus-per-node"),
    ],
)
def test_what_kubernetes_would_refuse_is_refused_here(field: str, value: object, flag: str):
    with pytest.raises(LaunchFault, match=f"^{flag} ") as fault:
        manifests(OPTIONS._replace(**{field: value}), CONFIG, "runs/gqa")
    assert "\n" not in str(fault.value)
