"""A KFP server: connect with the usual credentials, upload a version, start a run once, follow it, schedule it.

Environment: KF_PIPELINES_ENDPOINT; credentials, one of STABN_KFP_AUDIENCE (in a GitHub job: its identity for this
audience), KF_PIPELINES_SA_TOKEN_PATH (file with a service account's token, read anew for each request),
STABN_KFP_TOKEN (a token), STABN_KFP_COOKIES (`name=value`); KF_PIPELINES_UI_ENDPOINT (the server as a browser sees
it), STABN_KFP_CA_CERT (file of the authority that signed the server's certificate).
"""

import contextlib
import hashlib
import io
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import kfp
import kfp_server_api
import urllib3
import yaml
from kfp.client.set_volume_credentials import ServiceAccountTokenVolumeCredentials

from pipelines.github_identity import ASK_URL, GitHubIdentity
from stabn.endpoint import without_user
from stabn.errors import RetryableError, StabnError

ENDPOINT, UI_ENDPOINT = "KF_PIPELINES_ENDPOINT", "KF_PIPELINES_UI_ENDPOINT"
TOKEN_PATH, TOKEN, COOKIES = "KF_PIPELINES_SA_TOKEN_PATH", "STABN_KFP_TOKEN", "STABN_KFP_COOKIES"
AUDIENCE, CA_CERT = "STABN_KFP_AUDIENCE", "STABN_KFP_CA_CERT"
PAST = ("FAILED", "CANCELED", "CANCELING", "SKIPPED")  # a run in one of these states does not count as done
ATTEMPTS, WAIT_SECONDS = 4, 2.0
TIMEOUT = (10, 60)  # seconds to connect, and for an answer
WEB_PAGE = 399  # stands for an answer that is none of the API's


class ServerError(StabnError):
    """The KFP server refused something."""


class _Client(kfp.Client):
    """KFP's client, whose constructor asks for the server's health once instead of for 25 seconds."""

    def get_kfp_healthz(self, sleep_duration: int = 5) -> Any:
        _limit(self._healthz_api.api_client)
        return self._healthz_api.healthz_service_get_healthz()


class Server:
    """A connection to a KFP server.

    Args:
        endpoint: its address; empty: KF_PIPELINES_ENDPOINT.
        namespace: the profile's namespace on a multi-user server; empty: none.

    Raises:
        ServerError: no endpoint, or the credentials are refused.
        RetryableError: it does not answer.
    """

    def __init__(self, endpoint: str = "", namespace: str = "") -> None:
        self.endpoint = (endpoint or os.environ.get(ENDPOINT, "")).rstrip("/")
        if not self.endpoint:
            raise ServerError(f"no KFP server: set {ENDPOINT}, such as http://localhost:8888, or give --endpoint")
        if not self.endpoint.startswith(("http://", "https://")):
            raise ServerError(f"{ENDPOINT} = {self.endpoint!r}: begin with http:// or https://")
        self.namespace = namespace or None
        self._has_workflows = True
        options: dict[str, Any] = {"host": self.endpoint, "ssl_ca_cert": os.environ.get(CA_CERT)}
        if audience := os.environ.get(AUDIENCE):
            if not os.environ.get(ASK_URL):
                raise ServerError(f"{AUDIENCE} = {audience!r}: only a GitHub job with id-token: write has one")
            options["credentials"] = GitHubIdentity(audience)
        elif path := os.environ.get(TOKEN_PATH):
            if not Path(path).is_file():
                raise ServerError(f"{TOKEN_PATH} = {path!r}: no such file")
            options["credentials"] = ServiceAccountTokenVolumeCredentials(path)
        elif token := os.environ.get(TOKEN):
            options["existing_token"] = token
        if cookies := os.environ.get(COOKIES):
            options["cookies"] = cookies
        if namespace:
            options["namespace"] = namespace
        self.client = self._call(lambda: _Client(**options))
        _limit(self.client._healthz_api.api_client)

    def link(self, run_id: str) -> str:
        """Return the address of a run's page."""
        return f"{without_user(os.environ.get(UI_ENDPOINT, self.endpoint)).rstrip('/')}/#/runs/details/{run_id}"

    def upload(self, package: Path, commit: str) -> tuple[str, str, str]:
        """Make a compiled pipeline a version of its pipeline, named by the commit and by the content; once.

        Returns:
            Ids of the pipeline and of the version, and the version's name.
        """
        text = package.read_bytes()
        info = next(yaml.safe_load_all(text))["pipelineInfo"]
        name = info["name"]
        version = f"{commit[:12] or 'uncommitted'}-{hashlib.sha256(text).hexdigest()[:8]}"
        pipeline_id = self._pipeline_id(name)
        if pipeline_id is None:
            description = info.get("description", "").split("\n")[0]
            made = self._call(
                lambda: self.client.upload_pipeline(str(package), name, description, self.namespace), on_conflict=True
            )
            pipeline_id = made.pipeline_id if made else self._pipeline_id(name)
        version_id = self._version_id(pipeline_id, version)
        if version_id is None:
            upload = self.client.upload_pipeline_version
            uploaded = self._call(
                lambda: upload(str(package), version, pipeline_id=pipeline_id, description=f"Commit {commit}"),
                on_conflict=True,
            )
            version_id = uploaded.pipeline_version_id if uploaded else self._version_id(pipeline_id, version)
        return pipeline_id, version_id, version

    def _pipeline_id(self, name: str) -> str | None:
        """Return the id of a pipeline; with several users, of the profile's own."""
        found = self._call(lambda: self.client.list_pipelines(filter=_named(name), namespace=self.namespace))
        return found.pipelines[0].pipeline_id if found.pipelines else None

    def _version_id(self, pipeline_id: str, name: str) -> str | None:
        found = self._call(lambda: self.client.list_pipeline_versions(pipeline_id, filter=_named(name)))
        return found.pipeline_versions[0].pipeline_version_id if found.pipeline_versions else None

    def experiment(self, name: str) -> str:
        """Return the id of an experiment, made if absent."""
        return self._call(lambda: self.client.create_experiment(name, namespace=self.namespace)).experiment_id

    def find_run(self, experiment_id: str, name: str) -> Any:
        """Return the run of this name that succeeded or is under way; None: there is none."""
        found = self._call(lambda: self.client.list_runs(experiment_id=experiment_id, filter=_named(name)))
        return next((run for run in found.runs or [] if run.state not in PAST), None)

    def start(
        self, experiment_id: str, name: str, version: tuple[str, str, str], parameters: Mapping[str, Any], account: str
    ) -> Any:
        """Start a run of a version.

        A request whose answer is lost may have made a run: before another try, a run of that name is looked for.
        """
        options = {
            "params": dict(parameters),
            "pipeline_id": version[0],
            "version_id": version[1],
            "service_account": account or None,
        }
        known = {run.run_id for run in self._runs(experiment_id, name)}

        def made_meanwhile() -> Any:
            return next((run for run in self._runs(experiment_id, name) if run.run_id not in known), None)

        return self._call(lambda: self.client.run_pipeline(experiment_id, name, **options), lost=made_meanwhile)

    def _runs(self, experiment_id: str, name: str) -> list[Any]:
        return self._call(lambda: self.client.list_runs(experiment_id=experiment_id, filter=_named(name))).runs or []

    def recent(self, run_id: str = "", number: int = 3) -> list[Any]:
        """Return the newest runs of all experiments, first the newest, or the one of this id."""
        if run_id:
            try:
                return [self.get_run(run_id)]
            except ServerError as error:
                if "not found" in str(error):
                    return []
                raise
        listed = self._call(
            lambda: self.client.list_runs(page_size=number, sort_by="created_at desc", namespace=self.namespace)
        )
        return listed.runs or []

    def get_run(self, run_id: str) -> Any:
        """Return a run with the states of its tasks."""
        return self._call(lambda: self.client.get_run(run_id))

    def workflow(self, run_id: str) -> dict[str, Any] | None:
        """Return the Argo workflow of a run with its status, from the server's older API; None: it is not given out."""
        if not self._has_workflows:
            return None
        api = self.client._run_api.api_client
        try:
            answer = self._call(
                lambda: api.call_api(
                    f"/apis/v1beta1/runs/{run_id}",
                    "GET",
                    header_params={"Accept": "application/json"},
                    auth_settings=["Bearer"],
                    response_type="object",
                    _return_http_data_only=True,
                )
            )
            text = ((answer or {}).get("pipeline_runtime") or {}).get("workflow_manifest")
            return json.loads(text) if text else None
        except (ServerError, ValueError):
            self._has_workflows = False
            return None

    def schedule(
        self,
        experiment_id: str,
        name: str,
        version: tuple[str, str, str],
        parameters: Mapping[str, Any],
        account: str,
        cron: str = "",
        hours: float = 0,
    ) -> str:
        """Make a recurring run; a former one of the same name is replaced once the new one is there.

        Args:
            cron: six fields, seconds first, such as `0 0 3 * * *`.
            hours: or, instead, the time between runs.
        """
        if bool(cron) == bool(hours):
            raise ServerError("give either --cron or --every-hours")
        if cron and len(cron.split()) != 6:
            raise ServerError(f"--cron {cron!r}: KFP wants six fields, seconds first, such as '0 0 3 * * *'")
        listed = self._call(
            lambda: self.client.list_recurring_runs(experiment_id=experiment_id, filter=_named(name), page_size=100)
        )
        made = self._call(
            lambda: self.client.create_recurring_run(
                experiment_id,
                name,
                cron_expression=cron or None,
                interval_second=round(hours * 3600) or None,
                no_catchup=True,
                max_concurrency=1,
                params=dict(parameters),
                pipeline_id=version[0],
                version_id=version[1],
                service_account=account or None,
            ),
            tries=1,  # a second try could make a second schedule
        )
        for former in listed.recurring_runs or []:
            self._call(lambda former=former: self.client.delete_recurring_run(former.recurring_run_id))
        return made.recurring_run_id

    def _call(
        self,
        action: Callable[[], Any],
        on_conflict: bool = False,
        lost: Callable[[], Any] | None = None,
        tries: int = ATTEMPTS,
    ) -> Any:
        """Ask the server, again after a failure that may pass.

        Args:
            on_conflict: whether the thing being made may exist; None is returned then.
            lost: looks for what a request made whose answer was lost.
        """
        for attempt in range(1, tries + 1):
            try:
                with _quiet():
                    return action()
            except kfp_server_api.ApiException as error:
                if error.status == 409 and on_conflict:
                    return None
                if error.status and error.status < 500 and error.status not in (408, 429):
                    raise self._refused(error) from None
                reason = f"it answered {error.status} {error.reason}" if error.status else str(error.reason)
            except (urllib3.exceptions.HTTPError, ConnectionError, TimeoutError) as error:
                reason = " ".join(str(error).split())[:200]
            if attempt < tries:
                time.sleep(WAIT_SECONDS * 2 ** (attempt - 1))
                if lost and (found := self._call(lost)):
                    return found
        raise RetryableError(f"KFP at {self.endpoint}: {reason}; check the address and that it runs")

    def _refused(self, error: kfp_server_api.ApiException) -> ServerError:
        if error.status == WEB_PAGE or 300 <= error.status < 400:
            place = (error.headers or {}).get("Location", "")
            what = f"points to {place[:200]}" if place else "answers with a web page"
            return ServerError(
                f"KFP at {self.endpoint} {what}, as a sign-in does: set {TOKEN_PATH}, {TOKEN} or {COOKIES}, or "
                f"{ENDPOINT} to the API's own address"
            )
        if error.status in (401, 403):
            used = next(
                (name for name in (AUDIENCE, TOKEN_PATH, TOKEN, COOKIES) if os.environ.get(name)), "no credentials"
            )
            return ServerError(
                f"KFP at {self.endpoint} refused access ({error.status}, with {used}): "
                f"set {TOKEN_PATH}, {TOKEN} or {COOKIES} to what is valid there, or give --namespace"
            )
        return ServerError(f"KFP at {self.endpoint} answered {error.status}: {_message(error)}")


def _limit(api_client: Any) -> None:
    """Give every request a time limit, which KFP's client has none of, and take no web page for an answer."""
    rest = api_client.rest_client
    if hasattr(rest, "unlimited"):
        return
    rest.unlimited = rest.request
    rest.pool_manager.connection_pool_kw["retries"] = urllib3.Retry(
        connect=0, read=0, redirect=0, status=0, other=0, raise_on_redirect=False
    )

    def request(*arguments: Any, _request_timeout: Any = None, **others: Any) -> Any:
        answer = rest.unlimited(*arguments, _request_timeout=_request_timeout or TIMEOUT, **others)
        if "html" in (answer.getheader("Content-Type") or ""):
            refused = kfp_server_api.ApiException(status=WEB_PAGE, reason="a web page")
            refused.body = b""  # the client decodes it
            raise refused
        return answer

    rest.request = request


def _named(name: str) -> str:
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": name}]})


def _message(error: kfp_server_api.ApiException) -> str:
    try:
        document = json.loads(error.body)
        return str(document.get("message") or document.get("error") or document)[:500]
    except (TypeError, ValueError, AttributeError):
        return str(error.body or error.reason)[:300]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what KFP's client prints, links without an address, from the output."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
