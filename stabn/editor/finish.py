"""A finished round starts the fine-tuning pipeline, once: through a signed webhook or as a KFP run.

A lease, taken by a conditional write, lets one server at a time try; `editor/finished.json` records that it succeeded,
and which revisions are learnt from. A server that dies between the two leaves a second attempt possible: the webhook's
delivery id and the KFP run's name are the same then, so that a receiver, and we ourselves, recognise it.
"""

import contextlib
import hashlib
import hmac
import json
import logging
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from stabn.attention.edits import FINISHED_FILE, read_edits, read_finished, summarize
from stabn.config import ConfigError, EditorConfig, parse_overrides
from stabn.editor.board import Board
from stabn.editor.exchange import now
from stabn.editor.http import ApiError
from stabn.editor.leases import LeaseHeld, Leases
from stabn.endpoint import basic_authorization, without_user
from stabn.errors import StabnError
from stabn.forms import parse_form
from stabn.masking import masked
from stabn.text import parse_json

log = logging.getLogger(__name__)

FINAL_STATES = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")  # of a KFP run
SECRET_VARIABLE = "STABN_WEBHOOK_SECRET"
TOKEN_VARIABLE = "STABN_KFP_TOKEN"
TOKEN_PATH_VARIABLE = "KF_PIPELINES_SA_TOKEN_PATH"
TIMEOUT_SECONDS = 15.0
ATTEMPT_SECONDS = 90.0


class FinishError(StabnError):
    """The settings of what follows a round are unusable."""


class Finish:
    """Finish a round and start what follows, at most once."""

    def __init__(self, board: Board, config: EditorConfig) -> None:
        self.board, self.config = board, config
        self.leases = Leases(board.storage.child("editor"), ATTEMPT_SECONDS)
        self.target = check_finish(config, board.round.uri)

    def record(self) -> dict[str, Any] | None:
        """Return who finished the round, when, and what was started; None: it is not finished."""
        return read_finished(self.board.storage)

    def state(self, record: dict[str, Any] | None) -> str:
        """Return the state of the run that finishing started, in KFP's words; "": there is none, or it isn't known."""
        if record is None or record.get("target") != "kfp" or not record.get("started") or self.target != "kfp":
            return ""
        run = urllib.parse.quote(str(record["started"]), safe="")
        try:
            found = _request("GET", f"{self._base}/runs/{run}", None, _authorization())
            state = str(found.get("state") or "").upper()
        except (OSError, ValueError) as error:
            log.warning("run %s: KFP does not say how it is (%s)", record["started"], _reason(error))
            return ""
        return state if re.fullmatch(r"[A-Z_]{1,40}", state) else ""

    def run(self, person: str, anyway: bool) -> dict[str, Any]:
        """Finish the round.

        Args:
            person: who does.
            anyway: even though some videos are not done.

        Raises:
            ApiError: 409 it is finished, being finished, or not ready; 502 the receiver refused.
        """
        holder = f"{person} {time.time_ns()}"  # not even the same person twice at once
        try:
            self.leases.take("finish", 1, holder)
        except LeaseHeld as error:
            other = error.lease.holder.rpartition(" ")[0]
            raise ApiError(409, "finishing", f"{other} is finishing the round now; look again in a minute") from None
        try:
            if done := self.record():
                raise ApiError(409, "finished", f"{done['by']} finished the round at {done['at']}", finished=done)
            edits = read_edits(self.board.round)
            summary = summarize(self.board.round, edits)
            if not summary.edited:
                raise ApiError(409, "nothing", f"no corrected video to learn from ({summary})")
            undone = len(summary.second_opinion) + len(summary.draft) + len(summary.missing)
            if undone and not anyway:
                raise ApiError(409, "undone", f"{undone} videos are not done ({summary})", undone=undone)
            content = {
                "event": "round.finished",
                "round_uri": self.board.round.uri,
                "round_id": self.board.round.round_id,
                "edits_fingerprint": summary.fingerprint,
                "counts": summary.counts(),
                "by": person,
                "at": now(),
                "target": self.target,
            }
            content["started"] = self._start(content)
            content["revisions"] = {video_id: edit.revision for video_id, edit in edits.items()}
            self.board.storage.write(FINISHED_FILE, json.dumps(content, indent=1).encode(), if_absent=True)
            shown = shown_finish(self.config, content) or {}
            what = f"; started {describe(self.config)}: {shown['link'] or shown['started']}" if shown["started"] else ""
            print(f"editor: {person} finished round {content['round_id']}{what}", flush=True)
            return content
        finally:
            self.leases.release("finish", 1, holder)

    def _start(self, content: dict[str, Any]) -> str:
        try:
            if self.target == "webhook":
                return self._webhook(content)
            return self._kfp_run(content) if self.target == "kfp" else ""
        except (OSError, ValueError, KeyError) as error:  # HTTP errors are OSErrors
            where = self.config.webhook_url or self.config.kfp_host
            raise ApiError(
                502, "receiver", f"{where} did not take it ({_reason(error)}); nothing was recorded, try again"
            ) from None

    def _webhook(self, content: dict[str, Any]) -> str:
        """Post the content with `X-Stabn-Signature: t=SECONDS,v1=HMAC-SHA256 of "SECONDS.BODY"`."""
        delivery = hashlib.sha256(f"{content['round_id']} {content['edits_fingerprint']}".encode()).hexdigest()[:32]
        body = json.dumps(content).encode()
        stamp = str(int(time.time()))
        key = os.environ[SECRET_VARIABLE].encode()
        signature = hmac.new(key, stamp.encode() + b"." + body, hashlib.sha256).hexdigest()
        headers = {"X-Stabn-Delivery": delivery, "X-Stabn-Signature": f"t={stamp},v1={signature}"}
        _request("POST", self.config.webhook_url, body, headers)
        return delivery

    @property
    def _base(self) -> str:
        return f"{self.config.kfp_host.rstrip('/')}/apis/v2beta1"

    def _kfp_run(self, content: dict[str, Any]) -> str:
        """Create the run unless one of the same name is there; return its id."""
        base, headers = self._base, _authorization()
        name = f"finetune {content['round_id']} {content['edits_fingerprint']}"
        experiment = self._kfp_experiment(base, headers)
        found = _request("GET", f"{base}/runs?{_named(name, **experiment)}", None, headers).get("runs")
        if found:
            return found[0]["run_id"]
        parameters = _kfp_parameters(self.config, self.board.round.uri)
        run = {
            "display_name": name,
            "description": f"Round {content['round_id']}, finished by {content['by']}",
            "pipeline_version_reference": {"pipeline_id": self._kfp_pipeline(base, headers)},
            "runtime_config": {"parameters": parameters},
            **experiment,
        }
        return _request("POST", f"{base}/runs", json.dumps(run).encode(), headers)["run_id"]

    def _kfp_pipeline(self, base: str, headers: dict[str, str]) -> str:
        """Return the id of the pipeline: the profile's own where there are profiles, else the one that all share."""
        name, namespace = self.config.kfp_pipeline, self.config.kfp_namespace
        for owner in ({"namespace": namespace}, {}) if namespace else ({},):
            found = _request("GET", f"{base}/pipelines?{_named(name, **owner)}", None, headers).get("pipelines")
            if found:
                return str(found[0]["pipeline_id"])
        raise ValueError(f"it has no pipeline {name!r}; upload it there")

    def _kfp_experiment(self, base: str, headers: dict[str, str]) -> dict[str, str]:
        """Return what names the run's experiment, which is made if it is not there; nothing: KFP's default."""
        name, namespace = self.config.kfp_experiment, self.config.kfp_namespace
        if not name:
            if namespace:
                raise ValueError("editor.kfp_namespace needs editor.kfp_experiment, an experiment in that profile")
            return {}
        owner = {"namespace": namespace} if namespace else {}
        found = _request("GET", f"{base}/experiments?{_named(name, **owner)}", None, headers).get("experiments")
        if not found:
            body = json.dumps({"display_name": name, **owner}).encode()
            found = [_request("POST", f"{base}/experiments", body, headers)]
        return {"experiment_id": found[0]["experiment_id"]}


def check_finish(config: EditorConfig, round_uri: str) -> str:
    """Check the settings of what follows a round, and return what that is: `webhook`, `kfp` or `none`.

    Raises:
        FinishError: they contradict each other, or something is missing.
        ConfigError: some stage of the pipeline could not use its parameters.
    """
    if config.webhook_url and config.kfp_host:
        raise FinishError("editor.webhook_url and editor.kfp_host are both set; one of them starts the pipeline")
    if config.webhook_url and len(os.environ.get(SECRET_VARIABLE, "")) < 16:
        raise FinishError(f"editor.webhook_url without {SECRET_VARIABLE}: set at least 16 random characters")
    for name, url in (("webhook_url", config.webhook_url), ("kfp_host", config.kfp_host)):
        if url and not url.startswith(("http://", "https://")):
            raise FinishError(f"editor.{name} = {url!r}: begin with http:// or https://")
    if "{{" in config.kfp_parameters:
        raise FinishError(
            f"editor.kfp_parameters = {config.kfp_parameters!r}: {{{{ is where Argo and KFP fill in values of "
            "their own; remove it"
        )
    if config.kfp_host:
        _kfp_parameters(config, round_uri)
    return "webhook" if config.webhook_url else "kfp" if config.kfp_host else "none"


def describe(config: EditorConfig) -> str:
    """Return what finishing a round starts, for the log."""
    if config.kfp_host:
        return f"pipeline {config.kfp_pipeline} at {without_user(config.kfp_host)}"
    return f"webhook {masked(config.webhook_url)}" if config.webhook_url else "nothing"


def shown_finish(config: EditorConfig, record: dict[str, Any] | None, state: str = "") -> dict[str, Any] | None:
    """Return what pages show of a record: who, when, what was started, where that is seen, and its state."""
    if record is None:
        return None
    started = str(record.get("started") or "")
    link = run_link(config, started) if record.get("target") == "kfp" else ""
    kept = {name: record.get(name) for name in ("by", "at", "target")}
    return {**kept, "started": started, "link": link, "state": state}


def run_link(config: EditorConfig, run_id: str) -> str:
    """Return where browsers see a run of KFP; empty: it has no id, or nobody said where KFP's page is."""
    if not run_id or not config.kfp_public_url:
        return ""
    page = without_user(config.kfp_public_url).rstrip("/")
    return f"{page}/#/runs/details/{urllib.parse.quote(run_id, safe='')}"


def _kfp_parameters(config: EditorConfig, round_uri: str) -> dict[str, Any]:
    """Return the run's parameters, checked as the pipeline's first step will check them."""
    storage_uri, _, _ = round_uri.rpartition("/rounds/")
    texts = {"data_round_uri": round_uri, **({"data_storage_uri": storage_uri} if storage_uri else {})}
    try:
        return parse_form("finetune", texts | parse_overrides(config.kfp_parameters))
    except ConfigError as error:
        raise ConfigError(f"editor.kfp_parameters: {error}") from None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any) -> None:
        return None


def _request(method: str, url: str, body: bytes | None, headers: dict[str, str]) -> dict[str, Any]:
    headers = {"Content-Type": "application/json", **basic_authorization(url), **headers}
    request = urllib.request.Request(without_user(url), body, headers, method=method)
    with urllib.request.build_opener(_NoRedirect).open(request, timeout=TIMEOUT_SECONDS) as response:
        text = response.read(1 << 20)
    if "/apis/v2beta1/" in url and text.lstrip()[:1] == b"<":
        raise ValueError("it answers with a web page, as a sign-in does; its token or address is not right")
    try:
        return parse_json(text)
    except ValueError:
        return {}


def _named(name: str, **others: str) -> str:
    predicate = {"operation": "EQUALS", "key": "display_name", "stringValue": name}
    return urllib.parse.urlencode({"filter": json.dumps({"predicates": [predicate]}), **others})


def _token() -> str:
    path = os.environ.get(TOKEN_PATH_VARIABLE, "")
    if path and Path(path).is_file():
        return Path(path).read_text().strip()
    return os.environ.get(TOKEN_VARIABLE, "")


def _authorization() -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"} if (token := _token()) else {}


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            return f"it answered {error.code}: {str(json.loads(error.read(10_000))['message'])[:200]}"
        return f"it answered {error.code}"
    return str(getattr(error, "reason", error))[:200]
