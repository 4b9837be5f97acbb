"""`stabn doctor` against real and fake servers: what works is ok, what is broken fails with a remedy."""

import copy
import dataclasses
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.cluster.config import ClusterConfig
from components.doctor import Places, examine
from components.doctor.cluster import ARGO_SETTINGS, CLUSTER_RUNTIMES, PERMISSIONS, SECURITY_LABEL
from components.trainjob import Work, build_trainjob
from stabn.cli import main
from stabn.local_services import LocalStore

CLUSTER_VARIABLES = ("KUBERNETES_SERVICE_HOST", "KUBECONFIG", "KF_PIPELINES_ENDPOINT", "KF_PIPELINES_SA_TOKEN_PATH")
TRAINER = "/apis/trainer.kubeflow.org/v1alpha1"
NAMESPACE = "research"
RUNTIME_PATH = f"{TRAINER}/namespaces/{NAMESPACE}/trainingruntimes/stabn-torch"
TOKEN = "right"


ARGO = f"/api/v1/namespaces/kubeflow/configmaps/{ARGO_SETTINGS}"
POLICIES = "/apis/networking.k8s.io/v1/namespaces/kubeflow/networkpolicies"


def argo(policy: str) -> dict[str, Any]:
    """Return Argo's settings as KFP installs them, with a retry policy for all templates."""
    defaults = {"spec": {"templateDefaults": {"retryStrategy": {"limit": 2, "retryPolicy": policy}}}}
    return {"data": {"workflowDefaults": yaml.safe_dump(defaults)}}


class FakeCluster:
    """The paths of Kubernetes and KFP that the doctor asks for; a test changes what they answer."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.denied: set[str] = set()
        node = {"name": "node", "template": {"spec": {"template": {"spec": {"containers": [{"name": "node"}]}}}}}
        spec = {"mlPolicy": {"torch": {}}, "template": {"spec": {"replicatedJobs": [node]}}}
        gpus = [{"status": {"allocatable": {"nvidia.com/gpu": count}}} for count in ("8", "8", "0")]
        self.answers: dict[str, tuple[int, Any]] = {
            "/version": (200, {"gitVersion": "v1.36.0", "major": "1", "minor": "36"} | _build_info()),
            TRAINER: (200, {"kind": "APIResourceList", "resources": [{"name": "trainjobs"}]}),
            f"/openapi/v3{TRAINER}": (200, _openapi()),
            f"{TRAINER}/namespaces/{NAMESPACE}/trainingruntimes/stabn-torch": (200, {"spec": spec}),
            "/api/v1/nodes": (200, {"items": gpus}),
            "/api/v1/namespaces/kubeflow": (200, {"metadata": {"labels": {SECURITY_LABEL: "restricted"}}}),
            ARGO: (200, argo("Always")),
            POLICIES: (200, {"items": []}),
            f"/api/v1/namespaces/{NAMESPACE}": (200, {"metadata": {"labels": {}}}),
            "/kfp/apis/v2beta1/healthz": (200, {"tag_name": "2.17.0"}),
            "/kfp/apis/v2beta1/pipelines": (200, {"total_size": 3}),
        }

    def answer(self, path: str, body: Any, token: str) -> tuple[int, Any]:
        """Return status and document of a request."""
        if token != f"Bearer {TOKEN}" and not path.endswith("/healthz"):
            return 401, {"message": "Unauthorized"}
        if path.endswith("/selfsubjectaccessreviews"):
            asked = body["spec"]["resourceAttributes"]
            resource = "/".join(filter(None, (asked["resource"], asked.get("subresource"))))
            if resource == CLUSTER_RUNTIMES[1]:
                assert not asked.get("namespace"), "they are in no namespace"
                return 201, {"spec": body["spec"], "status": {"allowed": f"get {resource}" not in self.denied}}
            assert asked["namespace"] == NAMESPACE
            is_known = any((asked["group"], resource) == (group, name) for group, name, _ in PERMISSIONS)
            allowed = is_known and f"{asked['verb']} {resource}" not in self.denied
            return 201, {"spec": body["spec"], "status": {"allowed": allowed}}
        return self.answers.get(path, (404, {"message": f"{path} not found"}))


def _openapi(without: str = "") -> dict[str, Any]:
    """Return the document of a Trainer that knows what our jobs set, but for one field of the pods' patch.

    The TrainingRuntime has the whole pod in any version.
    """

    def schema(value: Any) -> dict[str, Any]:
        if isinstance(value, dict):
            return {"type": "object", "properties": {key: schema(item) for key, item in value.items()}}
        if isinstance(value, list):
            return {"type": "array", "items": schema(value[0])}
        return {"type": "string"}

    job = build_trainjob(Work(stage="train", command=("torchrun",), num_nodes=2), ClusterConfig(image="stabn-trainer"))
    runtime = copy.deepcopy({"spec": job["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]})
    pod = job["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"][0]
    pod["template"]["spec"]["template"]["spec"].pop(without, None)
    names = {"TrainJob": schema(job), "TrainingRuntime": schema(runtime)}
    return {"components": {"schemas": {f"org.kubeflow.trainer.v1alpha1.{key}": item for key, item in names.items()}}}


def _build_info() -> dict[str, str]:
    names = ("buildDate", "compiler", "gitCommit", "gitTreeState", "goVersion", "platform")
    return dict.fromkeys(names, "x")


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*CLUSTER_VARIABLES, "STABN_STORAGE_URI", "STABN_TRAINJOB_NAMESPACE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCluster]:
    """Run the server, with a kubeconfig and a token that fit it."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(None)

        def do_POST(self) -> None:
            self.reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def reply(self, body: Any) -> None:
            path = self.path.partition("?")[0].rstrip("/")
            status, document = fake.answer(path, body, self.headers.get("Authorization", ""))
            text = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    fake = FakeCluster(f"http://127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    write_kubeconfig(tmp_path / "kubeconfig", fake.url, TOKEN)
    (tmp_path / "token").write_text(TOKEN)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", f"{fake.url}/kfp")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "token"))
    yield fake
    server.shutdown()
    server.server_close()


def write_kubeconfig(path: Path, url: str, token: str) -> None:
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": url}}],
        "users": [{"name": "test", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": NAMESPACE}}],
    }
    path.write_text(yaml.safe_dump(content))


def run(**places: str) -> tuple[bool, dict[str, str]]:
    """Return whether nothing failed, and the line of each check by its name."""
    lines: list[str] = []
    is_well = examine(Places(**places), lines.append)
    assert all("\n" not in line and "Traceback" not in line for line in lines)
    return is_well, {line[9:21].strip(): f"{line[:8].strip()} {line[22:]}" for line in lines}


def test_a_working_store_and_database_are_ok(s3: LocalStore, s3_uri: str, mlflow_uri: str) -> None:
    is_well, lines = run(storage_uri=s3_uri, tracking_uri=mlflow_uri)
    assert is_well, lines
    assert lines["storage"].startswith(f"ok {s3_uri}") and lines["mlflow"].startswith("ok sqlite:///")
    assert lines["kubernetes"].startswith("skipped") and lines["kfp"].startswith("skipped")


def test_the_doctor_leaves_nothing_in_the_store(s3_uri: str) -> None:
    from stabn.storage import open_storage

    assert run(storage_uri=s3_uri)[0]
    assert list(open_storage(s3_uri).list()) == []


def test_a_store_that_is_not_there(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    is_well, lines = run(storage_uri=s3_uri)
    assert (
        not is_well
        and lines["storage"].startswith("failed")
        and "AWS_ENDPOINT_URL (http://127.0.0.1:9)" in lines["storage"]
    )


def test_keys_that_are_not_the_stores(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    is_well, lines = run(storage_uri=s3_uri)
    assert not is_well and "403" in lines["storage"] and "AWS_SECRET_ACCESS_KEY" in lines["storage"]


def test_a_bucket_that_is_not_there(s3: LocalStore) -> None:
    is_well, lines = run(storage_uri="s3://elsewhere/x")
    assert not is_well and "NoSuchBucket" in lines["storage"] and "check the bucket's name" in lines["storage"]


def test_a_database_that_is_not_there(tmp_path: Path) -> None:
    is_well, lines = run(tracking_uri=f"sqlite:///{tmp_path}/none.db")
    assert not is_well and "mlflow db upgrade" in lines["mlflow"]
    assert not (tmp_path / "none.db").exists()


def test_an_mlflow_server_that_is_not_there() -> None:
    is_well, lines = run(tracking_uri="http://127.0.0.1:9")
    assert not is_well and "is MLFLOW_TRACKING_URI right" in lines["mlflow"]


def test_a_whole_cluster_is_ok(cluster: FakeCluster) -> None:
    is_well, lines = run(kfp_host=f"{cluster.url}/kfp")
    assert is_well, lines
    assert "KFP 2.17.0, 3 pipelines" in lines["kfp"] and "v1.36.0, namespace research" in lines["kubernetes"]
    assert "stabn-torch" in lines["trainer"] and "all 15 " in lines["permissions"]
    assert lines["gpu nodes"] == "ok 16 nvidia.com/gpu on 2 of 3 nodes"
    assert lines["retries"].startswith("ok retryPolicy Always; the namespace enforces restricted")


@pytest.mark.parametrize(
    ("path", "answer", "check", "remedy"),
    [
        (TRAINER, (404, {}), "trainer", "install Kubeflow Trainer"),
        (f"/openapi/v3{TRAINER}", (200, {"components": {}}), "trainer", "upgrade Kubeflow Trainer to 2.3"),
        (
            f"/openapi/v3{TRAINER}",
            (200, _openapi(without="terminationGracePeriodSeconds")),
            "trainer",
            "no terminationGracePeriodSeconds in its runtimePatches: upgrade Kubeflow Trainer to 2.3",
        ),
        (
            f"{TRAINER}/namespaces/{NAMESPACE}/trainingruntimes/stabn-torch",
            (404, {}),
            "trainer",
            "no TrainingRuntime stabn-torch in namespace research: kubectl apply -k",
        ),
        (
            f"{TRAINER}/namespaces/{NAMESPACE}/trainingruntimes/stabn-torch",
            (200, {"spec": {"mlPolicy": {"mpi": {}}, "template": {"spec": {"replicatedJobs": []}}}}),
            "trainer",
            "apply k8s/base again",
        ),
        (ARGO, (200, argo("OnError")), "retries", "has retryPolicy OnError: a step that runs out of memory"),
        ("/version", (500, {"message": "etcd is away"}), "kubernetes", "500 etcd is away"),
        ("/kfp/apis/v2beta1/healthz", (404, {}), "kfp", "KF_PIPELINES_ENDPOINT has another path"),
        ("/kfp/apis/v2beta1/pipelines", (403, {}), "kfp", "the token lacks the permission"),
    ],
)
def test_what_a_cluster_can_lack(
    cluster: FakeCluster, path: str, answer: tuple[int, Any], check: str, remedy: str
) -> None:
    cluster.answers[path] = answer
    is_well, lines = run(kfp_host=f"{cluster.url}/kfp")
    assert not is_well and lines[check].startswith("failed") and remedy in lines[check]
    assert [name for name, line in lines.items() if line.startswith("failed")] == [check]


def test_a_runtime_of_the_whole_cluster_is_looked_for_there(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STABN_TRAINJOB_RUNTIME_KIND", "ClusterTrainingRuntime")
    for answer, said in (((404, {}), "failed"), (cluster.answers[RUNTIME_PATH], "ok")):
        cluster.answers[f"{TRAINER}/clustertrainingruntimes/stabn-torch"] = answer
        lines: list[str] = []
        examine(dataclasses.replace(Places.from_environment(), namespace=NAMESPACE), lines.append)
        (line,) = [line for line in lines if line.split()[1] == "trainer"]
        assert line.startswith(said) and "ClusterTrainingRuntime stabn-torch" in line


def test_missing_permissions_are_named(cluster: FakeCluster) -> None:
    cluster.denied = {"create trainjobs", "get pods/log"}
    is_well, lines = run()
    assert not is_well and "may not create trainjobs, get pods/log in namespace research" in lines["permissions"]
    assert "stabn-pipeline" in lines["permissions"]


def test_reading_a_runtime_of_the_whole_cluster_needs_a_role_of_the_cluster(cluster: FakeCluster) -> None:
    place = f"{TRAINER}/clustertrainingruntimes/stabn-torch"
    cluster.answers[place] = cluster.answers[RUNTIME_PATH]
    is_well, lines = run(runtime_kind="ClusterTrainingRuntime")
    assert is_well and "all 16 " in lines["permissions"]
    cluster.denied = {"get clustertrainingruntimes"}
    is_well, lines = run(runtime_kind="ClusterTrainingRuntime")
    assert not is_well and "may not get clustertrainingruntimes" in lines["permissions"]
    page = (Path(__file__).parent.parent / "docs" / "cluster-training.md").read_text()
    assert "cluster role stabn-runtimes (docs/cluster-training.md)" in lines["permissions"]
    assert "create clusterrole stabn-runtimes --verb=get --resource=clustertrainingruntimes." in page
    is_well, lines = run()
    assert is_well and "all 15 " in lines["permissions"], "a runtime of the namespace needs none"


def test_a_step_that_may_not_list_nodes_is_no_failure(cluster: FakeCluster) -> None:
    cluster.answers["/api/v1/nodes"] = (403, {"message": "nodes is forbidden"})
    is_well, lines = run()
    assert is_well and lines["gpu nodes"].startswith("skipped may not list nodes")


def test_a_step_that_may_not_read_argos_settings_is_no_failure(cluster: FakeCluster) -> None:
    for answer, said in (((403, {"message": "forbidden"}), "administrator"), ((404, {}), "KFP is elsewhere")):
        cluster.answers[ARGO] = answer
        is_well, lines = run()
        assert is_well and lines["retries"].startswith("skipped") and said in lines["retries"]


def policy(*peers: dict[str, Any], app: str = "ml-pipeline", **rule: Any) -> dict[str, Any]:
    """Return a policy as a whole Kubeflow has them: who may connect to a server of its own."""
    chosen = {"matchExpressions": [{"key": "app", "operator": "In", "values": [app]}]}
    spec = {"podSelector": chosen, "policyTypes": ["Ingress"], "ingress": [{"from": list(peers), **rule}]}
    return {"metadata": {"name": app}, "spec": spec}


PROFILES = {
    "namespaceSelector": {
        "matchExpressions": [
            {"key": "app.kubernetes.io/part-of", "operator": "In", "values": ["kubeflow-profile"]},
        ]
    }
}
OURS = yaml.safe_load((Path(__file__).parent.parent / "k8s/kubeflow/network-policy.yaml").read_text())


@pytest.mark.parametrize(
    ("policies", "labels", "is_open"),
    [
        ([policy(PROFILES)], {}, False),
        ([policy(PROFILES)], {"app.kubernetes.io/part-of": "kubeflow-profile"}, True),
        ([policy(PROFILES), OURS], {"kubernetes.io/metadata.name": "stabn"}, True),
        ([policy(PROFILES, app="minio")], {}, True),
        ([policy({"podSelector": {}})], {}, False),
        ([policy({"namespaceSelector": {}}, ports=[{"port": 8887}])], {}, False),
        ([policy({"namespaceSelector": {}}, ports=[{"port": "http"}])], {}, True),
        ([policy({"ipBlock": {"cidr": "0.0.0.0/0"}})], {}, False),
        ([{"metadata": {"name": "all"}, "spec": {"podSelector": {}}}], {}, False),
    ],
)
def test_policies_of_a_whole_kubeflow_are_read(
    cluster: FakeCluster, policies: list[Any], labels: dict[str, str], is_open: bool
) -> None:
    """Seen on a whole Kubeflow: nobody but profiles and Istio may speak to KFP's API server."""
    namespace = labels.get("kubernetes.io/metadata.name", NAMESPACE)
    cluster.answers[POLICIES] = (200, {"items": policies})
    cluster.answers[f"/api/v1/namespaces/{namespace}"] = (200, {"metadata": {"labels": labels}})
    lines: list[str] = []
    examine(Places(namespace=namespace), lines.append)
    (line,) = [line for line in lines if line.split()[1] == "policies"]
    assert line.startswith("ok" if is_open else "failed"), line
    assert is_open or "kubectl apply -f k8s/kubeflow/network-policy.yaml" in line


def test_a_step_that_may_not_read_policies_is_no_failure(cluster: FakeCluster) -> None:
    cluster.answers[POLICIES] = (403, {"message": "forbidden"})
    is_well, lines = run()
    assert is_well and lines["policies"].startswith("skipped may not read the network policies")


def test_a_token_that_has_ended(cluster: FakeCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_kubeconfig(tmp_path / "old", cluster.url, "old")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "old"))
    monkeypatch.delenv("KF_PIPELINES_SA_TOKEN_PATH")
    is_well, lines = run(kfp_host=f"{cluster.url}/kfp")
    assert not is_well and "renew the token" in lines["kubernetes"] and "STABN_KFP_TOKEN" in lines["kfp"]


def test_a_cluster_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_kubeconfig(tmp_path / "config", "http://127.0.0.1:9", TOKEN)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    is_well, lines = run()
    assert not is_well and "is the address right" in lines["kubernetes"] and "http://127.0.0.1:9" in lines["kubernetes"]


def test_a_kubeconfig_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    is_well, lines = run()
    assert not is_well and str(tmp_path / "none") in lines["kubernetes"]


def test_the_command_ends_with_1_when_something_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor", "--storage", str(tmp_path)])
    assert capsys.readouterr().out.startswith(f"ok       storage      {tmp_path}")
    with pytest.raises(SystemExit) as stopped:
        main(["doctor", "--storage", str(tmp_path), "--kfp", "http://127.0.0.1:9"])
    assert stopped.value.code == 1
    assert "failed   kfp" in capsys.readouterr().out
