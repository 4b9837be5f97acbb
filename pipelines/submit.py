"""Submit a pipeline to a KFP server, or schedule it."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from pipelines.build import build, compile_pipeline
from pipelines.follow import RunFailed, follow
from pipelines.outcome import summary
from pipelines.resources import CompileSettings
from pipelines.server import Server
from pipelines.tasks import titles_of
from stabn.config import ConfigError, fingerprint
from stabn.errors import StabnError
from stabn.forms import parse_form
from stabn.masking import masked
from stabn.stages import FORMS
from stabn.storage import check_object_uri, open_storage
from stabn.tracking import git_commit

MAX_NAME = 120  # characters of a run's name


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to submit where: a pipeline with parameters as text, compile-time settings, and a folder to compile into."""

    pipeline: str
    parameters: dict[str, str]
    settings: CompileSettings
    folder: Path
    endpoint: str = ""
    namespace: str = ""
    experiment: str = "st-abn"
    service_account: str = ""


@dataclass(frozen=True)
class _Prepared:
    server: Server
    experiment_id: str
    version: tuple[str, str, str]
    parameters: dict[str, Any]
    titles: dict[str, str]


def submit(
    request: Request,
    name: str = "",
    once: bool = False,
    wait: bool = False,
    timeout_hours: float = 0.0,
    summary_path: Path | None = None,
) -> str:
    """Upload a version, start a run of it, and with `wait` follow it to its end.

    Args:
        request: what and where.
        name: the run's name; empty: made from the round and its corrections, the version and the parameters, so that
            the same name means the same work.
        once: start nothing if a run of this name succeeded or is under way; with `wait` that one is followed.
        wait: show the tasks' states until the run ends.
        timeout_hours: hours to wait at most; 0: no limit.
        summary_path: file that the outcome is appended to as Markdown.

    Returns:
        The run's id.

    Raises:
        RunFailed: it failed.
    """
    prepared = _prepare(request)
    server = prepared.server
    name = name or _run_name(request, prepared)
    run = server.find_run(prepared.experiment_id, name) if once else None
    if run:
        print(f"nothing new: {name} is {(run.state or 'PENDING').lower()} already")
    else:
        account = request.service_account
        run = server.start(prepared.experiment_id, name, prepared.version, prepared.parameters, account)
    link = server.link(run.run_id)
    print(f"{name}\n  version {prepared.version[2]}\n  run     {link}", flush=True)
    state = ""
    try:
        if wait:
            run = follow(server, run.run_id, timeout_hours, lambda line: print(line, flush=True), prepared.titles)
            state = run.state
    except RunFailed:
        state = "FAILED"
        raise
    finally:
        text = _outcome(run.run_id, link, state, request.settings.experiment)
        print(text)
        if summary_path:
            with summary_path.open("a") as file:
                file.write(masked(text) + "\n")
    return run.run_id


def schedule(request: Request, name: str = "", cron: str = "", hours: float = 0.0) -> str:
    """Upload a version and make a recurring run of it, in place of a former one of the same name.

    Returns:
        The recurring run's id.
    """
    prepared = _prepare(request)
    name = name or f"{request.pipeline} every {f'{hours:g} hours' if hours else cron}"
    made = prepared.server.schedule(
        prepared.experiment_id, name, prepared.version, prepared.parameters, request.service_account, cron, hours
    )
    print(f"{name}\n  version {prepared.version[2]}\n  recurring run {made}")
    return made


def _prepare(request: Request) -> _Prepared:
    """Check the parameters before anything is asked of the server, then upload."""
    settings = request.settings
    commit = settings.commit or git_commit()
    if commit and not settings.commit:
        settings = dataclasses.replace(settings, commit=commit)
    form = {item.form_name for item in FORMS[request.pipeline]}
    defaults = {name: str(value) for name, value in settings.parameters.items() if name in form}
    parameters = parse_form(request.pipeline, defaults | request.parameters)
    _check_places(request.pipeline, parameters)
    pipeline = build(request.pipeline, settings)
    package = request.folder / f"{request.pipeline}.yaml"
    compile_pipeline(pipeline, settings, package)
    server = Server(request.endpoint, request.namespace)
    version = server.upload(package, commit)
    spec = json_format.MessageToDict(pipeline.pipeline_spec)
    return _Prepared(server, server.experiment(request.experiment), version, parameters, titles_of(spec))


def _check_places(pipeline: str, parameters: dict[str, Any]) -> None:
    """Refuse folders of this machine: each step runs in a pod of its own, and what one leaves in a folder is lost."""
    for item in FORMS[pipeline]:
        place = parameters.get(item.form_name)
        if item.rule in (open_storage, check_object_uri) and place and not place.startswith("s3://"):
            raise ConfigError(
                f"{item.form_name} = {place!r}: the steps of a run on a server have no folders in common; give "
                "s3://bucket/prefix, or run it here with `python -m pipelines run`"
            )


def _run_name(request: Request, prepared: _Prepared) -> str:
    """Return a name that is the same for the same work: for a round, its corrections are part of it."""
    about = [request.pipeline]
    if round_uri := prepared.parameters.get("data_round_uri"):
        from stabn.attention.edits import read_learnt, summarize
        from stabn.attention.rounds import load_round

        item = load_round(round_uri)
        about += [item.round_id, summarize(item, read_learnt(item)).fingerprint]
    return " ".join([*about, prepared.version[2], fingerprint(prepared.parameters)[:8]])[:MAX_NAME]


def _outcome(run_id: str, link: str, state: str, experiment: str) -> str:
    """Return the summary; where MLflow cannot be read from here it says so, as the run itself is another matter."""
    try:
        return summary(run_id, link, state, experiment)
    except StabnError as error:
        return f"**Run {state.lower() or 'started'}**: {link}\n\nNo table: {error}\n"
