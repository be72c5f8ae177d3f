"""A fault campaign: trial after trial a fault in a miniature pipeline, and `make repro` after it.

    python -m tests.support.campaign --seed 1 --count 60 --log docs/fault_campaign.jsonl

Trial n's kind, stage and moment follow from the seed and n. Each begins with a copy of a finished
pipeline from which the drawn stage and all after it are taken away; in `dvc repro` of it the fault
is made, and what `make repro` does follows at once. Then every output must have the clean run's
SHA-256, MLflow every step once, and no process of the trial may live. A line of JSON a trial goes
to the log; trials that stand there are not made again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from regrpo.core import files
from regrpo.core.dvc import declared_outputs, path_of
from regrpo.core.profiles import STAGES
from tests.support.faults import FAULTS, LONGEST, MARK, ROOMY, Victim, marked
from tests.support.mlflow_rows import problems_in_mlflow
from tests.support.projects import RESUMABLE, ROOT, environment, make_project, run
from tests.support.proxy import Proxy
from tests.support.results import outputs
from tests.support.servers import Server, answers_http, free_port

SHORTER = {
    "sft": {"max_steps": 30},
    "grpo": {"max_steps": 8},
    "evaluate": {"tasks": ["heldout"]},
}
SECTIONS = {name: values | SHORTER.get(name, {}) for name, values in RESUMABLE.items()}
WEIGHTS = {"sft": 2, "grpo": 6, "evaluate": 3}
"""How often a stage is drawn; the others once."""
NEXT = (
    ("check", ["python", "-m", "regrpo.cli", "check"]),
    ("repro", ["dvc", "repro"]),
    ("sync", ["python", "-m", "regrpo.cli", "sync"]),
    ("report", ["python", "-m", "regrpo.cli", "report"]),
)
"""What `make repro` does."""
COMPILED = {"PYTHONDONTWRITEBYTECODE": ""}
"""Half of a command's time would be compiling."""
PATIENCE = 60.0
"""Seconds in which the trial's processes must have ended by themselves."""


# --- the clean run --------------------------------------------------------------------------------


def reference(work: Path) -> Path:
    """A pipeline that was never disturbed, made once in a work folder."""
    folder = work / "reference"
    if not (work / "seconds.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        make_project(folder, SECTIONS)
        run(folder, "dvc", "repro", **COMPILED)
        run(folder, "python", "-m", "regrpo.cli", "sync")
        seconds = {}
        for stage in STAGES:
            [record] = files.read_json(folder / f"reports/{stage}/run.json")
            seconds[stage] = record["seconds"]
        _empty_database(folder, work / "empty.db")
        files.write_text(work / "revision", run(ROOT, "git", "rev-parse", "--short", "HEAD").stdout)
        files.write_json(work / "seconds.json", seconds)
    return folder


def _empty_database(folder: Path, database: Path) -> None:
    """MLflow's tables without a run: making them takes seconds."""
    code = "from regrpo.tracking.passes import open_store; open_store()"
    extra = {
        "MLFLOW_TRACKING_URI": f"sqlite:///{database}",
        "MLFLOW_EXPERIMENT_NAME": "unused",
    }
    run(folder, "python", "-c", code, **extra)


def begin(work: Path, folder: Path, stage: str) -> None:
    """A copy of the clean run without the results of a stage and of those after it."""
    shutil.copytree(work / "reference", folder, symlinks=True)
    yaml = YAML(typ="safe")
    declared = yaml.load(folder / "dvc.yaml")["stages"]
    lock = yaml.load(folder / "dvc.lock")
    for name in STAGES[STAGES.index(stage) :]:
        del lock["stages"][name]
        for out in declared_outputs(declared[name]):
            files.remove(folder / path_of(out))
    files.remove(folder / "dvc.lock")
    if lock["stages"]:
        yaml.dump(lock, folder / "dvc.lock")
    for path in (".dvc/cache/runs", ".regrpo", "mlartifacts"):
        files.remove(folder / path)
    shutil.copyfile(work / "empty.db", folder / "mlflow.db")


# --- a trial --------------------------------------------------------------------------------------


@contextmanager
def place(trial: Path, kind: str) -> Iterator[bool]:
    """The folder of a trial, on a file system of its own where the disk is to become full.

    Yields whether it is one: it takes the right to mount.
    """
    trial.mkdir(parents=True)
    mounted = False
    if kind == "disk full":
        command = ["mount", "-t", "tmpfs", "-o", f"size={ROOMY}", "tmpfs", str(trial)]
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(trial)], check=True)


@contextmanager
def server(work: Path, kind: str) -> Iterator[Proxy | None]:
    """MLflow's server behind a proxy, for faults of the network."""
    if kind != "network cut":
        yield None
        return
    database = work / f"server-{uuid.uuid4().hex}.db"
    shutil.copyfile(work / "empty.db", database)
    port = free_port()
    command = [str(Path(sys.executable).parent / "mlflow"), "server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{database}"]
    command += ["--artifacts-destination", str(database.with_suffix(".artifacts"))]
    log = database.with_suffix(".log")
    variables = {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    one = Server(command, log, answers_http(f"http://127.0.0.1:{port}/health"), **variables)
    one.start()
    proxy = Proxy(port)
    proxy.database = database
    try:
        yield proxy
    finally:
        proxy.close()
        one.stop()


def draw(seed: int, number: int) -> tuple[str, str, float, random.Random]:
    """(kind, stage, moment in shares of the stage's time, the fault's own generator) of a trial."""
    generator = random.Random(f"{seed}-{number}")
    weights = [WEIGHTS.get(stage, 1) for stage in STAGES]
    (stage,) = generator.choices(STAGES, weights)
    kind = list(FAULTS)[number % len(FAULTS)]
    return kind, stage, generator.uniform(0, 1.2), generator


def make_trial(seed: int, number: int, work: Path) -> dict[str, Any]:
    """Make one trial; returns the line for the log."""
    reference(work)
    expected = outputs(work / "reference")
    seconds = files.read_json(work / "seconds.json")
    kind, stage, share, generator = draw(seed, number)
    started = time.monotonic()
    for attempt in range(4):
        moment = share * seconds[stage] * 0.6**attempt
        trial = work / f"trial-{number}-{attempt}"
        shutil.rmtree(trial, ignore_errors=True)
        with place(trial, kind) as mounted, server(work, kind) as proxy:
            begin(work, trial / "project", stage)
            line = _attempt(trial, kind, stage, moment, generator, proxy, mounted, expected)
            if mounted and line["problems"]:  # it goes with its file system
                shutil.copytree(trial, work / f"kept-{number}", symlinks=True, dirs_exist_ok=True)
        if not line["fault"].get("missed"):
            break
        shutil.rmtree(trial)
    else:
        line["problems"].append("the fault was never made")
    if not line["problems"]:
        shutil.rmtree(trial)
    revision = (work / "revision").read_text().strip()
    head = {"revision": revision, "trial": number, "seed": seed, "kind": kind, "stage": stage}
    return head | line | {"seconds": round(time.monotonic() - started)}


def _attempt(
    trial: Path,
    kind: str,
    stage: str,
    moment: float,
    generator: random.Random,
    proxy: Proxy | None,
    mounted: bool,
    expected: dict[str, str],
) -> dict[str, Any]:
    folder, mark = trial / "project", uuid.uuid4().hex
    extra = COMPILED | {MARK: mark, "DVC_SITE_CACHE_DIR": str(trial / "site")}
    if proxy:
        extra |= {"MLFLOW_TRACKING_URI": proxy.url, "MLFLOW_EXPERIMENT_NAME": trial.name}
    with (trial / "log").open("wb") as log:
        dvc = subprocess.Popen(
            ["dvc", "repro"],
            cwd=folder,
            env=environment(**extra),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    victim = Victim(folder, mark, dvc, proxy, mounted)
    try:
        begun = victim.wait_for_stage(stage)
        ended = _ends_within(dvc, moment)
        if begun is None or ended:
            return {"fault": {"missed": True}, "problems": []}
        fault = FAULTS[kind](victim, generator)
        if fault.get("missed"):
            return {"fault": fault, "problems": []}
        line = {"moment": round(moment, 1), "fault": fault}
        return line | after(victim, extra, expected, trial)
    finally:
        for process in marked(mark):
            process.kill()
        dvc.wait()


def _ends_within(dvc: subprocess.Popen[bytes], seconds: float) -> bool:
    try:
        dvc.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def after(
    victim: Victim, extra: dict[str, str], expected: dict[str, str], trial: Path
) -> dict[str, Any]:
    """What `make repro` ends with, and all that is wrong afterwards."""
    problems, codes = [], {}
    said = (trial / "log").read_text(errors="replace")
    for name, command in NEXT:
        with (trial / f"next-{name}.log").open("wb") as log:
            done = subprocess.run(
                command,
                cwd=victim.folder,
                env=environment(**extra),
                stdout=log,
                stderr=log,
                timeout=2 * LONGEST,
                check=False,
            )
        codes[name] = done.returncode
        said += (trial / f"next-{name}.log").read_text(errors="replace")
        if done.returncode:
            problems.append(f"{name} ended with {done.returncode}")
            break
    if count := said.count("Traceback (most recent call last)"):
        first = said[said.index("Traceback (most recent call last)") :]
        problems.append(f"{count} tracebacks, of which the first: {first[:3000]}")
    problems += _differences(expected, outputs(victim.folder))
    if not problems:
        database = victim.proxy.database if victim.proxy else victim.folder / "mlflow.db"
        problems += problems_in_mlflow(
            database, trial.name if victim.proxy else "regrpo", victim.folder
        )
    if list(victim.folder.glob(".checkpoints/*/checkpoint-*")):
        problems.append("checkpoints are left")
    problems += _left(victim)
    return {"next": codes, "problems": problems, "ok": not problems}


def _differences(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    found.pop("reports/index.html", None)
    names = expected.keys() | found.keys()
    return [f"{name} differs" for name in sorted(names) if expected.get(name) != found.get(name)]


def _left(victim: Victim) -> list[str]:
    """The processes that have not ended by themselves."""
    until = time.monotonic() + PATIENCE
    while victim.processes() and time.monotonic() < until:
        time.sleep(0.2)
    return [f"left: {' '.join(one.cmdline())[:200]}" for one in victim.processes()]


# --- the log --------------------------------------------------------------------------------------


def made(log: Path, seed: int) -> set[int]:
    """The numbers of the trials that stand in the log."""
    if not log.exists():
        return set()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return {line["trial"] for line in lines if line["seed"] == seed}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--count", type=int, required=True, help="trials in all")
    parser.add_argument("--first", type=int, default=0, help="the number of the first trial")
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="a folder for the pipelines")
    parser.add_argument("--kind", choices=list(FAULTS), help="make trials of this kind only")
    arguments = parser.parse_args()
    os.environ.pop("DVC_ROOT", None)
    failed = 0
    for number in range(arguments.first, arguments.count):
        kind = draw(arguments.seed, number)[0]
        if number in made(arguments.log, arguments.seed) or arguments.kind not in (None, kind):
            continue
        line = make_trial(arguments.seed, number, arguments.work)
        with arguments.log.open("a") as log:
            log.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)
        failed += bool(line["problems"])
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
