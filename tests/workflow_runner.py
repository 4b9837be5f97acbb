"""Run a job of a GitHub workflow as a runner does: its `run:` blocks in order, by bash, with what `env:` and `if:` say.

What an action does is not run; a test prepares what it would. Programs that do not work here are replaced by recorders.
"""

import os
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

RECORDER = """#!/bin/bash
{ printf '%s' "${0##*/}"; printf ' %q' "$@"; echo; } >> "$RECORDED"
"""
PREPARED = ("actions/checkout", "actions/setup-python")  # a working tree in the workspace, Python on the path


@dataclass
class Runner:
    """A machine with a workspace.

    Attributes:
        workspace: folder that the blocks run in.
        home: folder for everything else.
        context: `vars`, `secrets`, `inputs`, `github`, `matrix` as dicts, of which expressions read.
        variables: of the machine itself, such as GITHUB_SHA; PATH among them.
    """

    workspace: Path
    home: Path
    context: dict[str, Any]
    variables: dict[str, str]
    names: list[str] = field(default_factory=list)  # of the steps that ran, or that were an action

    def __post_init__(self) -> None:
        (self.home / "tools").mkdir(parents=True)

    @property
    def recorded(self) -> list[str]:
        """Return the command lines that recorders saw, quoted as bash would."""
        path = self.home / "recorded"
        return path.read_text().splitlines() if path.exists() else []

    def record(self, name: str, then: str = "") -> None:
        """Put a recorder in a program's place, with what it does after that, in bash."""
        path = self.home / "tools" / name
        path.write_text(RECORDER + then)
        path.chmod(0o755)

    def run(self, workflow: Path, job: str) -> str:
        """Run a job to its end; return what was printed.

        Raises:
            AssertionError: a block ends with another status than 0; with what was printed.
        """
        document = yaml.safe_load(workflow.read_text())
        steps = document["jobs"][job]["steps"]
        self.context["steps"], added, output = {}, dict[str, str](), ""
        failure = ""
        for number, step in enumerate(steps):
            condition = step.get("if", "")
            if failure and "always()" not in condition:
                continue
            if condition and condition != "always()" and not self._value(condition):
                continue
            name = step.get("name") or step.get("run") or step["uses"].split("@")[0]
            self.names.append(name)
            if "uses" in step:
                assert name in PREPARED, f"{name}: not prepared"
                continue
            files = {key: self.home / f"{key}-{number}" for key in ("env", "output")}
            for path in files.values():
                path.write_text("")
            environment = {
                **self.variables, "PATH": f"{self.home / 'tools'}:{self.variables['PATH']}", "HOME": str(self.home),
                "RECORDED": str(self.home / "recorded"), "RUNNER_TEMP": str(self.home),
                "GITHUB_ENV": str(files["env"]), "GITHUB_OUTPUT": str(files["output"]),
                "GITHUB_STEP_SUMMARY": str(self.home / "summary.md"),
                **{key: self._text(value) for key, value in document.get("env", {}).items()}, **added,
                **{key: self._text(value) for key, value in step.get("env", {}).items()},
            }  # fmt: skip
            script = self.home / f"block-{number}.sh"
            script.write_text(self._text(step["run"]))
            done = subprocess.run(
                ["bash", "-e", script], cwd=self.workspace, env=environment, text=True, check=False,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120,
            )  # fmt: skip
            output += done.stdout
            if done.returncode:
                failure = failure or f"{name}: exit {done.returncode}"
            added |= _pairs(files["env"])
            self.context["steps"][step.get("id", str(number))] = {"outputs": _pairs(files["output"])}
        assert not failure, f"{failure}\n{output}"
        return output

    def _text(self, text: Any) -> str:
        return re.sub(r"\$\{\{(.*?)\}\}", lambda match: _as_text(self._value(match[1])), str(text))

    def _value(self, expression: str) -> Any:
        """Return the value of an expression of names, texts, `||`, `&&` and `!=`."""
        for sign in ("||", "&&", "!="):
            left, found, right = expression.partition(sign)
            if found:
                first = self._value(left)
                if sign == "!=":
                    return _as_text(first) != _as_text(self._value(right))
                return self._value(right) if bool(first) is (sign == "&&") else first
        expression = expression.strip()
        if expression.startswith("'"):
            return expression.strip("'")
        value: Any = self.context
        for name in expression.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        return value


def _as_text(value: Any) -> str:
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _pairs(path: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in path.read_text().splitlines())


def machine(**more: str) -> dict[str, str]:
    """Return the variables of a machine that has this one's programs and nothing else of it."""
    kept = {name: os.environ[name] for name in ("LANG", "OMP_NUM_THREADS", "LD_LIBRARY_PATH") if name in os.environ}
    return {**kept, "PATH": os.environ["PATH"], "no_proxy": "127.0.0.1", **more}
