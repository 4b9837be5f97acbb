"""How a step becomes a KFP component: its interface is the stage's declaration, its body calls one function.

KFP takes a component's source text into the pipeline and runs that text alone. So the text is made here, the same three
lines for every step: import the function from the image, and call it.
"""

import contextlib
import json
import linecache
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from kfp import dsl

from components.mounted import read_mounted
from components.patience import patiently
from components.placement import Placement
from stabn.config import RunConfig
from stabn.errors import Interrupted
from stabn.failures import as_error
from stabn.masking import hide_secrets, masked
from stabn.presets import resolve
from stabn.signals import exit_on_signals
from stabn.stages import STAGES, Stage


class Step(SimpleNamespace):
    """What a step was given, by the names of its declaration: KFP's artifacts and plain values."""

    @property
    def config(self) -> RunConfig:
        """The preset with the step's settings in place."""
        own = {
            item.setting.replace(".", "__"): getattr(self, item.name) for item in self.declared.takes if item.setting
        }
        return resolve(self.preset, self.overrides, **own)

    @property
    def by_form(self) -> dict[str, Any]:
        """Its parameters by the names that the pipelines' forms have for them."""
        return {item.form_name: getattr(self, item.name) for item in self.declared.takes}

    @property
    def placement(self) -> Placement:
        """Where the step's work runs."""
        return Placement(self.num_nodes, self.procs_per_node, self.accelerator)


STATUS = "status"  # of the run, for the step at its end
TERMINATION_LOG = Path("/dev/termination-log")
MAX_REASON = 500  # characters, in a workflow that Argo keeps below 1 MB


def component(stage: str, run: Callable[[Step], Any], image: str, at_end: bool = False) -> Any:
    """Make the KFP component of a stage.

    Args:
        stage: name of its declaration in stabn.stages.
        run: does the work, in the image; the first line of its docstring is the component's description.
        image: of the step.
        at_end: whether it is the exit task of a pipeline, to which KFP gives the run's final `status`.
    """
    if not hasattr(dsl, "component"):  # inside a step KFP leaves out what makes components
        return None
    declared, name = STAGES[stage], stage.replace("-", "_")
    given = _inputs(declared) + _outputs(declared)
    given += [f"{STATUS}: dsl.PipelineTaskFinalStatus"] if at_end else []
    source = (
        f"def {name}({', '.join(given)}){_returns(declared)}:\n"
        f"    from components.component import run_step\n"
        f"    from {run.__module__} import {run.__name__} as run\n"
        f"    return run_step({stage!r}, run, locals())\n"
    )
    place = f"<component {stage}>"
    linecache.cache[place] = (len(source), None, source.splitlines(keepends=True), place)  # where KFP reads it
    names: dict[str, Any] = {"dsl": dsl, "NamedTuple": NamedTuple}
    exec(compile(source, place, "exec"), names)
    function = names[name]
    function.__doc__ = f"{(run.__doc__ or '').splitlines()[0]}\n\nArgs:\n" + "\n".join(_descriptions(declared))
    function.__module__ = run.__module__
    return dsl.component(function, base_image=image, install_kfp_package=False)


def run_step(stage: str, run: Callable[[Step], Any], given: Mapping[str, Any]) -> Any:
    """Run a step in its pod: check what it was given, then let the function work, again after failures that may pass.

    The component's text calls it.
    """
    hide_secrets()
    declared = STAGES[stage]
    logging.getLogger("botocore.credentials").setLevel(logging.WARNING)  # says at every start that it found some
    with exit_on_signals(for_good=True), ending_with_one_line(stage):
        read_mounted()
        for item in declared.takes:
            item.check(given[item.name])
        names = [item.name for item in (*declared.reads, *declared.takes, *declared.writes)]
        names += [STATUS] if STATUS in given else []
        return patiently(lambda: run(Step(declared=declared, **{name: given[name] for name in names})), stage)


@contextlib.contextmanager
def ending_with_one_line(name: str) -> Iterator[None]:
    """End the process of a step as the command line does: one line of reason, and 75 if another try may help."""
    try:
        yield
    except Exception as error:
        known = as_error(error)
        if known is None:
            _leave_reason(f"{name}: {type(error).__name__}: {error}")
            raise
        _leave_reason(f"{name}: {known}")
        print(f"{name}: {known}", file=sys.stderr, flush=True)
        sys.exit(known.exit_code)
    except KeyboardInterrupt:
        print(f"{name}: interrupted; run it again to go on", file=sys.stderr, flush=True)
        sys.exit(Interrupted.exit_code)


def _leave_reason(text: str) -> None:
    """Give Kubernetes the reason of a failure: Argo and KFP show it behind the exit code, and `submit --wait` too."""
    if TERMINATION_LOG.is_file():  # in a pod
        with contextlib.suppress(OSError):
            TERMINATION_LOG.write_text(masked(" ".join(text.split()))[:MAX_REASON])


def write_metrics(artifact: dsl.Metrics, metrics: Mapping[str, float]) -> None:
    """Show numbers in KFP, and leave a file: KFP's cache takes an output without one for a lost one."""
    for name, value in metrics.items():
        artifact.log_metric(name, value)
    with open(artifact.path, "w") as file:
        json.dump(metrics, file)


def _inputs(stage: Stage) -> list[str]:
    files = [f"{item.name}: dsl.Input[dsl.{item.kind}]" for item in stage.reads]
    return files + [f"{item.name}: {'list[str]' if item.kind is tuple else item.kind.__name__}" for item in stage.takes]


def _outputs(stage: Stage) -> list[str]:
    return [f"{item.name}: dsl.Output[dsl.{item.kind}]" for item in stage.writes]


def _returns(stage: Stage) -> str:
    if not stage.returns:
        return ""
    if "" in stage.returns:
        kind = stage.returns[""]
        return f" -> {kind.__name__ if isinstance(kind, type) else kind}"
    fields = ", ".join(f"({name!r}, {kind.__name__})" for name, kind in stage.returns.items())
    return f' -> NamedTuple("Outputs", [{fields}])'


def _descriptions(stage: Stage) -> list[str]:
    return [f"    {item.name}: {as_sentence(item.help)}" for item in (*stage.reads, *stage.takes, *stage.writes)]


def as_sentence(text: str) -> str:
    """Return a declaration's phrase as KFP shows it."""
    return f"{text[0].upper()}{text[1:]}."
