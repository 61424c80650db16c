"""deploy/kubernetes against the published schemas, and what it says of whitd against a real one."""

import copy
import json
import os
import pathlib
import re
import shutil
import subprocess

import grpc
import pytest
import yaml
from conftest import BIN_DIR
from grpc_health.v1 import health_pb2, health_pb2_grpc
from whitd import Whitd, eventually, request

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy/kubernetes"
SCHEMAS = pathlib.Path(__file__).parent / "kubernetes_schemas"
KUBERNETES = "1.34"
# What whitd may take after --drain-timeout: for what is cancelled then, and for goodbyes.
LAST_SECONDS = 13


def load(name):
    return yaml.safe_load((FOLDER / name).read_text())


KUSTOMIZATIONS = {path.parent.relative_to(FOLDER): yaml.safe_load(path.read_text())
                  for path in sorted(FOLDER.glob("**/kustomization.yaml"))}
RESOURCES = [str(folder / name) for folder, kustomization in KUSTOMIZATIONS.items()
             for name in kustomization["resources"]]
POD = load("deployment.yaml")["spec"]["template"]
WHITD, = POD["spec"]["containers"]


def validate(document):
    """Raises an error that names what is wrong."""
    missing = "pip install -r tests/integration/optional_requirements.txt"
    validator = pytest.importorskip("kubernetes_validate", reason=missing)
    jsonschema = pytest.importorskip("jsonschema", reason=missing)
    schema = SCHEMAS / f"{document['kind']}.json"
    if schema.exists():
        jsonschema.validate(document, json.loads(schema.read_text()))
    else:
        validator.validate(document, KUBERNETES, strict=True)


@pytest.mark.parametrize("name", RESOURCES)
def test_resources_are_valid(name):
    document = load(name)
    validate(document)
    # A misspelt field is found.
    broken = copy.deepcopy(document)
    broken["spec"]["whitt"] = 1
    with pytest.raises(Exception, match="whitt"):
        validate(broken)


def test_every_file_is_used():
    values = {"autoscaling/prometheus-adapter-values.yaml",
              "inference-gateway/endpoint-picker-values.yaml"}
    assert {str(path.relative_to(FOLDER)) for path in FOLDER.glob("**/*.yaml")
            if path.name != "kustomization.yaml"} == {*RESOURCES, *values}


def test_the_rules_are_a_valid_prometheus_rule():
    """As monitoring/kustomization.yaml tells how to make it."""
    rules = (ROOT / "deploy/prometheus/rules.yml").read_text()
    head = re.search(r"printf '(.*)'", (FOLDER / "monitoring/kustomization.yaml").read_text())[1]
    text = head.replace(r"\n", "\n") + re.sub("^", "  ", rules, flags=re.MULTILINE)
    made = yaml.safe_load(text)
    assert len(made["spec"]["groups"]) == 2
    validate(made)


def test_selectors_and_names_fit_together():
    labels = POD["metadata"]["labels"].items()
    selectors = [load("deployment.yaml")["spec"]["selector"]["matchLabels"],
                 load("service.yaml")["spec"]["selector"],
                 load("poddisruptionbudget.yaml")["spec"]["selector"]["matchLabels"],
                 load("networkpolicy.yaml")["spec"]["podSelector"]["matchLabels"],
                 load("inference-gateway/inferencepool.yaml")["spec"]["selector"]["matchLabels"]]
    for selector in selectors:
        assert selector and selector.items() <= labels
    of_monitor = load("monitoring/servicemonitor.yaml")["spec"]["selector"]["matchLabels"]
    assert of_monitor.items() <= load("service.yaml")["metadata"]["labels"].items()

    picker = load("inference-gateway/endpoint-picker-values.yaml")["inferenceExtension"]
    key, value = picker["endpointsServer"]["endpointSelector"].split("=")
    assert dict(labels)[key] == value

    ports = {port["name"]: port["containerPort"] for port in WHITD["ports"]}
    pool = load("inference-gateway/inferencepool.yaml")["spec"]
    assert [port["number"] for port in pool["targetPorts"]] == [ports["grpc"]]
    assert picker["endpointsServer"]["targetPorts"] == [ports["grpc"]]
    assert picker["flags"]["model-server-metrics-port"] == ports["metrics"]
    services = load("service.yaml")["spec"]["ports"]
    assert {port["targetPort"]: port["port"] for port in services} == ports
    endpoint, = load("monitoring/servicemonitor.yaml")["spec"]["endpoints"]
    assert endpoint["port"] in ports
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert WHITD[probe]["grpc"]["port"] == ports["grpc"]

    route, = load("inference-gateway/httproute.yaml")["spec"]["rules"]
    backend, = route["backendRefs"]
    assert (backend["kind"], backend["name"]) == ("InferencePool", "whitd")
    services = {path.stem: re.search(r"^package (\S+);", path.read_text(), re.M)[1]
                for path in (ROOT / "proto").glob("**/*.proto")}
    assert f"/{services['text_generation']}.TextGenerationService" in [
        match["path"]["value"] for match in route["matches"]]


def test_patches_of_components_apply():
    for folder, kustomization in KUSTOMIZATIONS.items():
        for patch in kustomization.get("patches", ()):
            assert patch["target"] == {"kind": "Deployment", "name": "whitd"}
            for operation in yaml.safe_load(patch["patch"]):
                *path, last = operation["path"].split("/")[1:]
                place = load("deployment.yaml")
                for key in path:
                    place = place[int(key) if isinstance(place, list) else key]
                assert (isinstance(place, list) and last == "-") or last in place, folder


def test_all_of_it_builds(tmp_path):
    """Whoever has kustomize sees the whole, with every component, and it is valid."""
    kustomize = ([shutil.which("kustomize"), "build"] if shutil.which("kustomize") else
                 [shutil.which("kubectl"), "kustomize"] if shutil.which("kubectl") else None)
    if kustomize is None:
        pytest.skip("neither kustomize nor kubectl is installed")
    folder = os.path.relpath(FOLDER, tmp_path.resolve())
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump({
        "apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization",
        "resources": [folder], "components": [
            f"{folder}/{name}" for name in KUSTOMIZATIONS if name != pathlib.Path(".")]}))
    built = subprocess.run([*kustomize, tmp_path], capture_output=True, text=True, timeout=60)
    assert built.returncode == 0, built.stderr
    documents = {document["kind"]: document for document in yaml.safe_load_all(built.stdout)}
    assert len(documents) == len(RESOURCES)
    for document in documents.values():
        validate(document)
    deployment = documents["Deployment"]["spec"]
    container, = deployment["template"]["spec"]["containers"]
    assert "--metrics-compat=vllm" in container["args"]
    assert "replicas" not in deployment


def test_pods_are_confined():
    pod = POD["spec"]
    assert pod["securityContext"]["runAsNonRoot"] and not pod["automountServiceAccountToken"]
    for container in (*pod["initContainers"], WHITD):
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"] and not context["allowPrivilegeEscalation"]
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert "memory" in container["resources"]["limits"]
    models, = WHITD["volumeMounts"]
    assert models["readOnly"]


def seconds(duration):
    return int(re.fullmatch(r"(\d+)s", duration)[1])


def test_a_pod_has_time_to_drain():
    flags = dict(argument.removeprefix("--").split("=") for argument in WHITD["args"])
    before = WHITD["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert POD["spec"]["terminationGracePeriodSeconds"] >= (
        before + seconds(flags["drain-timeout"]) + LAST_SECONDS)


def test_the_pods_variables_are_flags():
    """Others are not noticed by whitd."""
    done = subprocess.run([BIN_DIR / "whitd", "--help"], capture_output=True, text=True, check=True)
    for variable in WHITD["env"]:
        flag = variable["name"].removeprefix("WHIT_").lower().replace("_", "-")
        assert f"--{flag}" in done.stdout


@pytest.fixture
def pod(slow_model):
    """whitd with the pod's flags and variables, but for its addresses and its model."""
    added = [operation["value"]
             for patch in KUSTOMIZATIONS[pathlib.Path("inference-gateway")]["patches"]
             for operation in yaml.safe_load(patch["patch"])]
    variables = {variable["name"]: variable.get("value") or WHITD["resources"]["requests"]["cpu"]
                 for variable in WHITD["env"]}
    server = Whitd(BIN_DIR / "whitd", slow_model, *WHITD["args"], *added, variables=variables)
    yield server
    server.kill()


def test_whitd_takes_the_pods_flags_and_drains_before_it_is_killed(pod):
    """A stream that is under way when the pod is told to go ends as it should."""
    service = WHITD["readinessProbe"]["grpc"]["service"]
    with grpc.insecure_channel(pod.address) as channel, pod.client() as stub:
        health = health_pb2_grpc.HealthStub(channel)

        def ready():
            asked = health_pb2.HealthCheckRequest(service=service)
            return health.Check(asked).status == health_pb2.HealthCheckResponse.SERVING

        eventually(ready, "ready")
        assert pod.metric("whit_health_serving") == 1
        call = stub.GenerateStream(request([5] * 50, max_new_tokens=400, ignore_eos=True))
        first = next(call)
        pod.signal()
        pod.wait_for_event("draining")
        assert not ready()
        assert pod.metric("whit_health_serving") == 0
        assert sum(len(piece.token_ids) for piece in (first, *call)) == 400
    assert pod.wait() == 0


def test_the_gateways_and_the_autoscalers_metrics_are_there(pod):
    metrics = pod.metrics()
    names = {name for name, _ in metrics}
    assert {"vllm:num_requests_waiting", "vllm:num_requests_running",
            "vllm:kv_cache_usage_perc"} <= names
    config, = (dict(labels) for name, labels in metrics if name == "vllm:cache_config_info")
    assert config["block_size"] == "16"
    tokens = pod.metric("whit_admission_headroom_tokens", precision="floor")
    assert int(config["num_gpu_blocks"]) == tokens / 16 > 0
    wanted, = load("autoscaling/horizontalpodautoscaler.yaml")["spec"]["metrics"]
    metric = wanted["pods"]["metric"]
    assert metric["name"] in names
    rule, = load("autoscaling/prometheus-adapter-values.yaml")["rules"]["custom"]
    assert rule["seriesQuery"].startswith(metric["name"] + "{")


def test_without_the_flag_there_are_no_metrics_of_others(server):
    assert not [name for name, _ in server.metrics() if name.startswith("vllm:")]
