"""Remote stores, for real: DVC's remote on S3, MLflow on PostgreSQL and S3.

What each refuses, and what goes away.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from regrpo.core import files
from regrpo.core.profiles import STAGES
from tests.support import servers
from tests.support.projects import MINIATURE, commit, environment, make_project, run
from tests.support.results import outputs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(servers.missing() is not None, reason=str(servers.missing())),
]
SECTIONS = MINIATURE | {
    "sft": MINIATURE["sft"] | {"max_steps": 10},
    "grpo": MINIATURE["grpo"]
    | {"reward_funcs": {"exact_answer": 1.0, "length_penalty": 0.5}},  # so that it moves
}
WEIGHTS = "models/grpo/model.safetensors"


@dataclass
class Stores:
    """The servers, and what a client has to know of them."""

    postgres: servers.Postgres
    s3: servers.S3
    mlflow: servers.Mlflow

    @property
    def variables(self) -> dict[str, str]:
        return servers.AWS | {"MLFLOW_TRACKING_URI": self.mlflow.url}

    def run(
        self, folder: Path, *command: str, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        return run(folder, *command, check=check, **self.variables)

    def regrpo(
        self, folder: Path, *words: str, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        return self.run(folder, "python", "-m", "regrpo.cli", *words, check=check)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    logs = tmp_path_factory.mktemp("servers")
    postgres, s3 = servers.Postgres(logs / "postgres.log"), servers.S3(logs / "s3.log")
    mlflow = servers.Mlflow(postgres, s3, "mlflow", logs / "mlflow.log")
    try:
        postgres.start()
        s3.start()
        for bucket in ("dvc", "mlflow"):
            s3.make_bucket(bucket)
        mlflow.start()
        yield Stores(postgres, s3, mlflow)
    finally:
        mlflow.stop()
        s3.stop()
        postgres.remove()


@pytest.fixture(scope="module")
def finished(stores: Stores, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline, run with MLflow on the server, its results committed and pushed."""
    folder = make_project(tmp_path_factory.mktemp("remotes") / "first", SECTIONS)
    run(folder, "dvc", "remote", "add", "-q", "-d", "store", "s3://dvc/store")
    run(folder, "dvc", "remote", "modify", "store", "endpointurl", stores.s3.url)
    run(folder, "dvc", "remote", "modify", "store", "verify", "true")
    commit(folder, "remote")
    stores.run(folder, "dvc", "repro")
    stores.regrpo(folder, "sync")
    commit(folder, "results")
    stores.run(folder, "dvc", "push")
    return folder


@pytest.fixture
def clone(finished: Path, tmp_path: Path) -> Path:
    run(finished, "git", "clone", "-q", str(finished), str(tmp_path / "clone"))
    return tmp_path / "clone"


def key_of(stores: Stores, folder: Path, path: str) -> str:
    """The key in the bucket under which DVC keeps a file."""
    md5 = run(folder, "md5sum", path).stdout.split()[0]
    return f"store/files/md5/{md5[:2]}/{md5[2:]}"


def test_a_fresh_clone_pulls_from_s3_and_is_audited_with_the_server(
    stores: Stores, finished: Path, clone: Path
) -> None:
    said = stores.regrpo(clone, "audit", "--remote")
    # The weights lie on the remote alone.
    assert not (clone / WEIGHTS).exists()
    assert "hashes in mlflow, remote, workspace; faults: 0, unchecked: 0" in said.stdout
    stores.run(clone, "dvc", "pull")
    assert outputs(clone) == outputs(finished)
    said = stores.regrpo(clone, "audit", "--remote")
    assert "in cache, mlflow, remote, workspace; faults: 0, unchecked: 0" in said.stdout
    keys = {
        one["Key"].split("/")[0]
        for one in stores.s3.client().list_objects_v2(Bucket="mlflow")["Contents"]
    }
    assert keys == {"artifacts"}
    assert not (finished / "mlflow.db").exists()
    assert not (finished / "mlartifacts").exists()


def test_an_object_overwritten_on_s3_is_pulled_by_nobody_and_named_by_the_audit(
    stores: Stores, finished: Path, clone: Path
) -> None:
    key, s3 = key_of(stores, finished, WEIGHTS), stores.s3.client()
    good = (finished / WEIGHTS).read_bytes()
    s3.put_object(Bucket="dvc", Key=key, Body=good[:-1] + bytes([good[-1] ^ 1]))
    try:
        done = stores.run(clone, "dvc", "pull", check=False)
        assert done.returncode != 0
        assert not (clone / WEIGHTS).exists()
        done = stores.regrpo(finished, "audit", "--remote", "--no-mlflow", check=False)
    finally:
        s3.put_object(Bucket="dvc", Key=key, Body=good)
    assert done.returncode == 1
    faults = [line for line in done.stdout.splitlines() if line.startswith("FAULT")]
    assert {line.partition(WEIGHTS)[0] for line in faults} == {"FAULT remote: grpo: "}, faults
    stores.run(clone, "dvc", "pull")


def test_a_bucket_that_refuses_or_is_not_there_is_one_line_and_not_checkable(
    stores: Stores, finished: Path
) -> None:
    run(finished, "dvc", "remote", "add", "-q", "none", "s3://absent/store")
    run(finished, "dvc", "remote", "modify", "none", "endpointurl", stores.s3.url)
    try:
        with stores.s3.refusing():
            refused = stores.regrpo(finished, "audit", "--remote", "--no-mlflow", check=False)
        absent = stores.regrpo(finished, "audit", "--remote", "none", "--no-mlflow", check=False)
    finally:
        run(finished, "git", "checkout", "-q", ".dvc/config")
    for done, words in (
        (refused, "found PermissionError: Forbidden."),
        (absent, "expected the bucket absent; found"),
    ):
        assert (done.returncode, done.stderr) == (2, "")
        [line] = [line for line in done.stdout.splitlines() if line.startswith("UNCHECKED")]
        assert line.startswith("UNCHECKED remote: ")
        assert words in line


def test_artifacts_that_s3_refuses_are_kept_and_sent_later(
    stores: Stores, finished: Path, tmp_path: Path
) -> None:
    folder = copy(finished, tmp_path / "project")
    with stores.s3.refusing():
        stores.run(folder, "python", "-m", "stages.model_card")
        done = stores.regrpo(folder, "sync", check=False)
    assert (done.returncode, done.stdout) == (2, "")
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith(
        f"regrpo sync: {stores.mlflow.url}: expected MLflow to take everything; found "
    )
    assert "mlflow-artifacts" in line
    assert "The journals are kept" in line
    stores.regrpo(folder, "sync")
    assert not unsent(folder)


def test_a_postgresql_that_goes_away_stops_no_training_and_gets_everything_later(
    stores: Stores, finished: Path, tmp_path: Path
) -> None:
    folder = copy(finished, tmp_path / "project")
    steps = ["-S", "grpo.max_steps=40", "-S", "grpo.dev_every=0"]
    with (tmp_path / "said.txt").open("wb") as said:
        training = subprocess.Popen(
            ["dvc", "exp", "run", "-n", "cut", *steps],
            cwd=folder,
            env=environment(**stores.variables),
            stdout=said,
            stderr=said,
        )
    while not (lines := logged(folder)):
        assert training.poll() is None, (tmp_path / "said.txt").read_text()
        time.sleep(0.05)
    assert lines < 40
    stores.postgres.vanish()
    try:
        assert training.wait(300) == 0, (tmp_path / "said.txt").read_text()
        done = stores.regrpo(folder, "sync", check=False)
    finally:
        stores.postgres.start()
    assert (done.returncode, done.stdout) == (2, "")
    assert "expected an MLflow store; found MlflowException" in done.stderr
    assert "Traceback" not in done.stderr
    assert unsent(folder)
    stores.regrpo(folder, "sync")
    assert not unsent(folder)
    told = {one["data"]["tags"]["regrpo.stage"]: one for one in runs(stores, folder, "stage")}
    assert {one["info"]["status"] for one in told.values()} == {"FINISHED"}
    assert set(told) == {"grpo", "evaluate", "model_card"}
    assert history(stores, told["grpo"]["info"]["run_id"], "reward") == list(range(1, 41)), (
        "each step once"
    )
    assert "faults: 0, unchecked: 0" in stores.regrpo(folder, "audit").stdout


def copy(finished: Path, folder: Path) -> Path:
    """The project elsewhere, with no journals of its own."""
    shutil.copytree(finished, folder, symlinks=True, ignore=shutil.ignore_patterns(".regrpo"))
    return folder


def logged(folder: Path) -> int:
    """How many metrics the running grpo has journalled."""
    found = list(folder.glob(".regrpo/journal/*-grpo/metrics.jsonl"))
    return len(found[0].read_text().splitlines()) if found else 0


def unsent(folder: Path) -> list[str]:
    return [
        path.name for path in (folder / ".regrpo/journal").iterdir() if not (path / "sent").exists()
    ]


def runs(stores: Stores, folder: Path, kind: str) -> list[dict[str, dict[str, dict[str, str]]]]:
    """The server's runs of this folder's journals, by its REST interface."""
    import mlflow

    client = mlflow.MlflowClient(stores.mlflow.url)
    mine = {
        files.read_json(path / "open.json")["run"]
        for path in (folder / ".regrpo/journal").iterdir()
    }
    experiment = client.get_experiment_by_name("regrpo").experiment_id
    found = client.search_runs([experiment], f"tags.`regrpo.kind` = '{kind}'")
    assert {one.data.tags["regrpo.stage"] for one in found} == set(STAGES)
    return [one.to_dictionary() for one in found if one.data.tags["regrpo.run"] in mine]


def history(stores: Stores, run_id: str, metric: str) -> list[int]:
    """The steps of a run's metric, as the server has them."""
    import mlflow

    return sorted(
        one.step
        for one in mlflow.MlflowClient(stores.mlflow.url).get_metric_history(run_id, metric)
    )
