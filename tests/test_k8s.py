"""What is applied to a cluster: each overlay builds, is valid down to its fields, keeps to the restricted standard."""

import copy
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kubeflow_trainer_api import models

from components.cluster.config import ClusterConfig
from components.cluster.manifest import Work, build_trainjob
from components.doctor.cluster import PERMISSIONS
from pipelines.resources import CompileSettings
from stabn.cli import build_parser
from stabn.config import override
from stabn.presets import load

ROOT = Path(__file__).parent.parent
OVERLAYS = ("local", "gpu", "ci")
KUBERNETES = "1.36"
Object = dict[str, Any]
_built: dict[str, list[Object]] = {}


def build(overlay: str) -> list[Object]:
    """Return the objects of an overlay, as kubectl makes them."""
    if overlay not in _built:
        kubectl = Path(sys.executable).parent / "kubectl"
        folder = ROOT / "k8s/overlays" / overlay
        done = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "deprecated" not in done.stderr.lower(), done.stderr
        _built[overlay] = list(yaml.safe_load_all(done.stdout))
    return copy.deepcopy(_built[overlay])


def one(objects: list[Object], kind: str, name: str) -> Object:
    found = [item for item in objects if item["kind"] == kind and item["metadata"]["name"] == name]
    assert len(found) == 1, f"{kind}/{name}: {len(found)} of it"
    return found[0]


def pods(objects: list[Object]) -> dict[str, Object]:
    """Return every pod template by kind and name."""
    found = {}
    for item in objects:
        where = f"{item['kind']}/{item['metadata']['name']}"
        if item["kind"] in ("Deployment", "Job"):
            found[where] = item["spec"]["template"]
        elif item["kind"] == "TrainingRuntime":
            for job in item["spec"]["template"]["spec"]["replicatedJobs"]:
                found[f"{where}/{job['name']}"] = job["template"]["spec"]["template"]
    return found


def containers(pod: Object) -> list[Object]:
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def matches(selector: Object, labels: dict[str, str]) -> bool:
    """Tell whether a label selector takes these labels."""
    for rule in selector.get("matchExpressions", []):
        assert rule["operator"] == "NotIn"
        if labels.get(rule["key"]) in rule["values"]:
            return False
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_built_in_object_is_valid(overlay: str) -> None:
    objects = build(overlay)
    built_in = [item for item in objects if "kubeflow.org" not in item["apiVersion"]]
    assert len(built_in) >= 20
    for item in built_in:
        kubernetes_validate.validate(item, KUBERNETES, strict=True)


def test_the_policy_for_a_whole_kubeflow_opens_kfps_api_to_the_editor_alone() -> None:
    policy = yaml.safe_load((ROOT / "k8s/kubeflow/network-policy.yaml").read_text())
    kubernetes_validate.validate(policy, KUBERNETES, strict=True)
    objects = build("gpu")
    assert policy["metadata"]["namespace"] == "kubeflow" and policy["spec"]["podSelector"] != {}
    ((rule),) = policy["spec"]["ingress"]
    (peer,) = rule["from"]
    namespace = one(objects, "Namespace", "stabn")["metadata"]["name"]
    assert peer["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": namespace}
    for where, pod in pods(objects).items():
        assert matches(peer["podSelector"], pod["metadata"]["labels"]) is (where == "Deployment/editor"), where
    host = one_config(objects, "STABN_EDITOR_KFP_HOST")
    assert host.endswith(f":{rule['ports'][0]['port']}") and len(rule["ports"]) == 1


def one_config(objects: list[Object], key: str) -> str:
    (value,) = [item["data"][key] for item in objects if item["kind"] == "ConfigMap" and key in item["data"]]
    return str(value)


def test_the_patches_that_the_page_gives_for_policies_fit(tmp_path: Path) -> None:
    page = (ROOT / "docs/install.md").read_text()
    blocks = re.findall(r"```yaml\n(  - target: \{kind: NetworkPolicy.*?)```", page, re.DOTALL)
    assert len(blocks) == 2
    overlay = os.path.relpath(ROOT / "k8s/overlays/gpu", tmp_path.resolve())
    (tmp_path / "kustomization.yaml").write_text(f"resources: [{overlay}]\npatches:\n{''.join(blocks)}")
    kubectl = Path(sys.executable).parent / "kubectl"
    done = subprocess.run([kubectl, "kustomize", tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    objects = list(yaml.safe_load_all(done.stdout))
    for name in ("dns", "object-storage"):
        kubernetes_validate.validate(one(objects, "NetworkPolicy", name), KUBERNETES, strict=True)
    assert "169.254.20.10/32" in str(one(objects, "NetworkPolicy", "dns")["spec"]["egress"][1])
    assert {"protocol": "TCP", "port": 9000} in one(objects, "NetworkPolicy", "object-storage")["spec"]["egress"][0][
        "ports"
    ]


def test_the_sizes_that_the_page_gives_for_following_steps_are_settings(tmp_path: Path) -> None:
    page = (ROOT / "docs/cluster-training.md").read_text()
    block = page[page.index("    stages:\n") :]
    (tmp_path / "settings.yaml").write_text(textwrap.dedent(block[: block.index("\n\n")]))
    stages = CompileSettings.load(tmp_path / "settings.yaml").stages
    assert {stages[name].cpu for name in ("train", "finetune", "evaluate", "promote")} == {"200m"}


def test_the_validation_sees_an_unknown_field() -> None:
    item = one(build("gpu"), "Deployment", "editor")
    item["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(item, KUBERNETES, strict=True)


def round_trip(runtime: Object) -> Object:
    understood = models.TrainerV1alpha1TrainingRuntime.from_dict(copy.deepcopy(runtime))
    assert understood is not None
    return understood.to_dict()


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_trainer_knows_every_field_of_the_runtime(overlay: str) -> None:
    runtime = one(build(overlay), "TrainingRuntime", "stabn-torch")
    assert runtime["apiVersion"] == "trainer.kubeflow.org/v1alpha1" and runtime["metadata"]["namespace"] == "stabn"
    assert round_trip(runtime) == runtime
    assert "torch" in runtime["spec"]["mlPolicy"]
    (job,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
    assert job["name"] == container["name"] == "node"
    assert job["template"]["metadata"]["labels"]["trainer.kubeflow.org/trainjob-ancestor-step"] == "trainer"
    assert job["template"]["spec"]["backoffLimit"] == 0


@pytest.mark.parametrize("path", ["spec.mlPolicy.torch.numProcPerNode", "spec.template.spec.replicas", "spec.policy"])
def test_the_round_trip_sees_an_unknown_field(path: str) -> None:
    runtime = one(build("gpu"), "TrainingRuntime", "stabn-torch")
    *parents, last = path.split(".")
    inner = runtime
    for name in parents:
        inner = inner[name]
    inner[last] = 8
    assert round_trip(runtime) != runtime


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_keeps_to_the_restricted_standard(overlay: str) -> None:
    found = pods(build(overlay))
    assert {"Deployment/mlflow", "Deployment/editor", "TrainingRuntime/stabn-torch/node"} <= set(found)
    for where, pod in found.items():
        security = pod["spec"]["securityContext"]
        assert security["runAsNonRoot"] is True and security["seccompProfile"] == {"type": "RuntimeDefault"}, where
        assert "runAsUser" not in security, f"{where}: any user id must do"
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod["spec"]), where
        assert all(not {"hostPath", "nfs"} & set(volume) for volume in pod["spec"]["volumes"]), where
        for container in containers(pod):
            own = container["securityContext"]
            assert own["allowPrivilegeEscalation"] is False and own["capabilities"] == {"drop": ["ALL"]}, where
            assert own["readOnlyRootFilesystem"] is True, where
            assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}, f"{where}: no place to write"
            for amounts in (container["resources"]["requests"], container["resources"]["limits"]):
                assert {"cpu", "memory"} <= set(amounts), where
            assert container["imagePullPolicy"] == "IfNotPresent", where
    namespace = one(build(overlay), "Namespace", "stabn")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_servers_have_probes(overlay: str) -> None:
    for item in build(overlay):
        if item["kind"] == "Deployment":
            for container in item["spec"]["template"]["spec"]["containers"]:
                assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(container), item["metadata"]["name"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_only_our_own_images_run(overlay: str) -> None:
    images = {container["image"] for pod in pods(build(overlay)).values() for container in containers(pod)}
    roles = {path.name.partition(".")[0] for path in (ROOT / "images").glob("*.Dockerfile")}
    assert {image.partition(":")[0] for image in images} <= {f"stabn-{role}" for role in roles}
    assert all(":" in image for image in images)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_everything_referred_to_exists(overlay: str) -> None:
    """Config maps, accounts and claims are in the overlay; secrets are, or the installation page says to make them."""
    objects = build(overlay)
    names = {(item["kind"], item["metadata"]["name"]) for item in objects}
    page = (ROOT / "docs/install.md").read_text()
    for where, pod in pods(objects).items():
        assert ("ServiceAccount", pod["spec"]["serviceAccountName"]) in names, where
        for volume in pod["spec"]["volumes"]:
            if claim := volume.get("persistentVolumeClaim"):
                assert ("PersistentVolumeClaim", claim["claimName"]) in names, where
        for container in containers(pod):
            sources = [
                *container.get("envFrom", []),
                *(e["valueFrom"] for e in container.get("env", []) if "valueFrom" in e),
            ]
            for source in sources:
                if config := source.get("configMapRef"):
                    assert ("ConfigMap", config["name"]) in names, where
                if secret := source.get("secretRef") or source.get("secretKeyRef"):
                    is_made = ("Secret", secret["name"]) in names
                    assert is_made or f"create secret generic {secret['name']} " in page, (where, secret["name"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_variable_in_the_editors_arguments_is_set(overlay: str) -> None:
    objects = build(overlay)
    (container,) = one(objects, "Deployment", "editor")["spec"]["template"]["spec"]["containers"]
    maps = [source["configMapRef"]["name"] for source in container["envFrom"] if "configMapRef" in source]
    values = {key: value for name in maps for key, value in one(objects, "ConfigMap", name)["data"].items()}
    arguments = [re.sub(r"\$\((\w+)\)", lambda match: values[match[1]], text) for text in container["args"]]
    args = build_parser().parse_args(["editor", *arguments])
    flags = {key: value for key, value in vars(args).items() if "." in key and value is not None}
    config = override(load("mini"), flags).editor
    assert config.kfp_host == "http://ml-pipeline.kubeflow.svc:8888" and not config.webhook_url, "a round starts a run"
    assert config.kfp_namespace == config.kfp_experiment == config.kfp_parameters == ""


def test_no_secret_is_in_the_files_for_a_real_cluster() -> None:
    assert not [item for item in build("gpu") if item["kind"] == "Secret"]


def test_the_roles_are_exactly_what_the_doctor_asks_for() -> None:
    objects = build("gpu")
    assert not [item for item in objects if item["kind"].startswith("ClusterRole")]
    given = {
        (group, resource): set(rule["verbs"])
        for rule in one(objects, "Role", "stabn-pipeline")["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    assert given == {(group, resource): set(verbs) for group, resource, verbs in PERMISSIONS}
    for role in (item for item in objects if item["kind"] == "Role"):
        assert "*" not in str(role["rules"]) and "secrets" not in str(role["rules"])
    mounting = [item for item in objects if item["kind"] == "ServiceAccount" and item["automountServiceAccountToken"]]
    assert [item["metadata"]["name"] for item in mounting] == ["stabn-pipeline"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_nothing_is_open_but_what_a_policy_opens(overlay: str) -> None:
    objects = build(overlay)
    policies = [item for item in objects if item["kind"] == "NetworkPolicy"]
    deny = one(objects, "NetworkPolicy", "default-deny")["spec"]
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for policy in policies:
        for rule in policy["spec"].get("ingress", []):
            assert rule.get("from") and (rule.get("ports") or policy["metadata"]["name"] == "trainer")
        for rule in policy["spec"].get("egress", []):
            assert rule.get("ports") or policy["metadata"]["name"] == "trainer"


def may_connect(objects: list[Object], source: dict[str, str], target: dict[str, str], port: int) -> bool:
    """Evaluate the policies for two pods of the namespace, given by their labels."""

    def allowed(direction: str, own: dict[str, str], other: dict[str, str]) -> bool:
        key, peer = {"Egress": ("egress", "to"), "Ingress": ("ingress", "from")}[direction]
        chosen = [
            item["spec"]
            for item in objects
            if item["kind"] == "NetworkPolicy"
            and direction in item["spec"]["policyTypes"]
            and matches(item["spec"]["podSelector"], own)
        ]
        return not chosen or any(
            (not rule.get(peer) or any("podSelector" in p and matches(p["podSelector"], other) for p in rule[peer]))
            and (not rule.get("ports") or any(item["port"] == port for item in rule["ports"]))
            for spec in chosen
            for rule in spec.get(key, [])
        )

    return allowed("Egress", source, target) and allowed("Ingress", target, source)


def test_each_pod_reaches_what_it_needs_and_no_more() -> None:
    objects = build("ci")
    found = {where.split("/")[1]: pod["metadata"]["labels"] for where, pod in pods(objects).items()}
    editor, mlflow, weed = found["editor"], found["mlflow"], found["seaweedfs"]
    node, step = found["stabn-torch"], found["doctor"]
    for source in (editor, mlflow, node, step):
        assert may_connect(objects, source, weed, 8333)
        assert not may_connect(objects, source, weed, 9333)
    assert may_connect(objects, node, mlflow, 5000) and may_connect(objects, step, mlflow, 5000)
    assert may_connect(objects, node, node, 41234), "torchrun and NCCL choose their ports"
    assert not may_connect(objects, editor, mlflow, 5000)
    assert not may_connect(objects, editor, node, 29500)
    assert not may_connect(objects, step, editor, 8017)
    assert not may_connect(objects, weed, mlflow, 5000)


def test_services_and_budgets_select_their_pods() -> None:
    objects = build("local")
    labels = {where: pod["metadata"]["labels"] for where, pod in pods(objects).items()}
    for item in objects:
        if item["kind"] == "Service":
            assert matches({"matchLabels": item["spec"]["selector"]}, labels[f"Deployment/{item['metadata']['name']}"])
        if item["kind"] == "PodDisruptionBudget":
            assert matches(item["spec"]["selector"], labels[f"Deployment/{item['metadata']['name']}"])


def test_a_node_of_the_gpu_overlay_has_eight_and_tolerates_their_taint() -> None:
    runtime = one(build("gpu"), "TrainingRuntime", "stabn-torch")
    pod = pods([runtime])["TrainingRuntime/stabn-torch/node"]["spec"]
    assert runtime["spec"]["mlPolicy"]["numNodes"] > 1
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "8"
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pod["tolerations"]


def test_ci_leaves_nothing_behind() -> None:
    objects = build("ci")
    assert not [item for item in objects if item["kind"] == "PersistentVolumeClaim"]
    assert all("persistentVolumeClaim" not in v for pod in pods(objects).values() for v in pod["spec"]["volumes"])


def test_one_gpu_asks_for_an_eighth_of_a_machine_with_eight() -> None:
    values = {
        name: text
        for name, text in one(build("gpu"), "ConfigMap", "stabn-trainjob")["data"].items()
        if name in ("STABN_TRAINJOB_CPU", "STABN_TRAINJOB_MEMORY", "STABN_TRAINJOB_SHM_SIZE")
    }
    cluster = ClusterConfig.load({**values, "STABN_TRAINJOB_IMAGE": "stabn-trainer:1"})
    for processes in (1, 8):
        work = Work(stage="train", command=("x",), num_nodes=1, procs_per_node=processes, accelerator="nvidia.com/gpu")
        limits = build_trainjob(work, cluster)["spec"]["trainer"]["resourcesPerNode"]["limits"]
        expected = {"cpu": f"{8 * processes}", "memory": f"{60 * processes}Gi", "nvidia.com/gpu": f"{processes}"}
        assert limits == expected


def test_a_machine_of_two_cores_has_room_for_both_finetunings() -> None:
    """Services, and two steps that each wait for a job of two nodes, beside what KFP and Kubernetes take themselves."""
    objects = build("ci")
    steps = yaml.safe_load((ROOT / "tests/cluster/settings.yaml").read_text())["stages"]
    trainjob = one(objects, "ConfigMap", "stabn-trainjob")["data"]
    for what, room in (("cpu", 1.0), ("memory", 4 * 2.0**30)):
        services = sum(
            number(container["resources"]["requests"][what])
            for where, pod in pods(objects).items()
            if not where.startswith(("TrainingRuntime", "Job"))
            for container in pod["spec"]["containers"]
        )
        node = number(trainjob[f"STABN_TRAINJOB_{what.upper()}"])
        assert services + 2 * (number(steps["finetune"][what]) + 2 * node) <= room, what


def number(amount: str) -> float:
    """Return an amount of Kubernetes in cores or bytes."""
    units = {"m": 1e-3, "Mi": 2.0**20, "Gi": 2.0**30}
    unit = next((unit for unit in units if amount.endswith(unit)), "")
    return float(amount.removesuffix(unit)) * units.get(unit, 1.0)


def test_a_private_registry_is_pulled_from_by_every_pod_of_ours() -> None:
    objects = build("gpu")
    with_secret = {
        item["metadata"]["name"]
        for item in objects
        if item["kind"] == "ServiceAccount" and item["imagePullSecrets"] == [{"name": "stabn-registry"}]
    }
    for where, pod in pods(objects).items():
        assert pod["spec"]["serviceAccountName"] in with_secret, where
