"""`launch:` without starting anything.

What is accepted, what it changes in the arithmetic, whose error is raised.
"""

from __future__ import annotations

import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from regrpo.core import files, processes, profiles
from regrpo.core.errors import CannotCheck, Refused
from regrpo.core.settings import LAUNCH_CONFIGS, Launch
from regrpo.train import checkpoints, launch, rewards, sharding, worker
from stages import grpo, sft
from tests.support.projects import ROOT, run

PROFILE = profiles.read_profile(ROOT / "params.yaml")
TWO = {"processes": 2, "backend": "gloo"}


def section(stage: str, **changes: Any) -> Any:
    model: Any = {"sft": sft.Params, "grpo": grpo.Params}[stage]
    return profiles.parse_section(model, {**PROFILE[stage], **changes}, stage)


@pytest.fixture
def one_of_two(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As if this were the first of two workers."""
    for name, value in ((processes.FOLDER, str(tmp_path)), ("RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("stage", "changes", "words"),
    [
        (
            "sft",
            {"launch": {"processes": 0, "backend": "gloo"}},
            "`launch.processes`: input should be greater than 0",
        ),
        ("sft", {"launch": {"processes": 2}}, "`launch.backend`: is missing"),
        (
            "sft",
            {"launch": {**TWO, "backend": "mpi"}},
            "`launch.backend`: input should be 'gloo' or 'nccl'",
        ),
        (
            "sft",
            {"launch": {**TWO, "nodes": 3}},
            r"nodes \(3\) must divide processes \(2, of all nodes\)",
        ),
        (
            "sft",
            {"launch": {**TWO, "backend": "nccl"}, "device": "cpu"},
            "nccl needs `device: cuda`",
        ),
        (
            "sft",
            {"launch": {**TWO, "config": "/etc/fsdp.yaml"}},
            "a file in profiles/launch/, which DVC watches",
        ),
        (
            "sft",
            {"launch": {**TWO, "config": "profiles/launch/../../x.yaml"}},
            "a file in profiles/launch/",
        ),
        ("sft", {"launch": {**TWO, "gpus": 2}}, "`launch.gpus`: unknown key"),
        ("sft", {"ddp_backend": "gloo"}, "it is `launch.backend`"),
        (
            "sft",
            {
                "launch": {**TWO, "config": "profiles/launch/fsdp2.yaml"},
                "lora": {"r": 4, "lora_alpha": 8},
            },
            "`lora`: its adapter cannot be merged out of shards",
        ),
        (
            "grpo",
            {"launch": {**TWO, "config": "profiles/launch/fsdp2.yaml"}},
            "`dev_every`: 0 under `launch.config`",
        ),
        (
            "grpo",
            {"launch": TWO, "per_device_train_batch_size": 4},
            r"must divide the completions generated at once, 8 "
            r"\(per_device_train_batch_size 4 × 2 processes × 1\)",
        ),
        (
            "grpo",
            {"launch": TWO, "per_device_train_batch_size": 16, "generation_batch_size": 48},
            r"`generation_batch_size`: \(48\) must be a multiple of 32 "
            r"\(per_device_train_batch_size 16 × 2 processes\)",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    stage: str, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(Refused, match=words):
        section(stage, **changes)


def test_groups_cycles_and_the_curriculum_count_all_processes() -> None:
    alone = section(
        "grpo",
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        generation_batch_size=64,
    )
    both = section(
        "grpo",
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        generation_batch_size=64,
        launch=TWO,
    )
    assert (alone.generation_steps, alone.cycle) == (8, 4)
    assert (both.generation_steps, both.cycle) == (4, 2), (
        "the same completions, used up twice as fast"
    )
    assert section("grpo", per_device_train_batch_size=8, launch=TWO).cycle == 1, (
        "a group of 16 lies on two processes"
    )
    sizes = {
        len(section("sft", launch=how).draw_order(100)) for how in (None, {**TWO, "processes": 1})
    }
    assert len(section("sft", launch=TWO).draw_order(100)) == 2 * sizes.pop()
    assert not sizes


def test_one_process_is_trained_here_with_the_settings_of_no_launch(tmp_path: Path) -> None:
    alone = section("grpo", launch={**TWO, "processes": 1})
    assert alone.trainer_settings("cpu") == section("grpo").trainer_settings("cpu")
    stage = SimpleNamespace(stage="grpo", params=alone)
    trained: list[Any] = []
    launch.run(trained.append, stage)
    assert trained == [stage]
    assert section("grpo", launch=TWO).trainer_settings("cpu")["ddp_backend"] == "gloo"


def test_a_machine_without_the_gpus_is_refused_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    nccl = Launch(processes=4, nodes=2, backend="nccl")
    with pytest.raises(
        Refused, match="expected Linux and 2 CUDA devices a node; found 1 CUDA devices"
    ):
        launch.require_devices("grpo", nccl, "cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: False)
    with pytest.raises(Refused, match=r"^grpo\.launch\.backend: expected NCCL in torch"):
        launch.require_devices("grpo", nccl, "cuda")
    with pytest.raises(Refused, match="found cpu on linux"):
        launch.require_devices("grpo", nccl, "cpu")
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(Refused, match="expected Linux; found cpu on darwin"):
        launch.require_devices("grpo", Launch(**TWO), "cpu")


@pytest.mark.parametrize("name", ["fsdp2", "zero3"])
def test_accelerate_takes_the_configurations_as_they_are_meant(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    monkeypatch.chdir(ROOT)
    config = LAUNCH_CONFIGS / f"{name}.yaml"
    command = [
        "--config_file",
        str(config),
        "--num_processes",
        "4",
        "--num_machines",
        "2",
        "--module",
        "stages.grpo",
    ]
    read, *_ = _validate_launch_command(launch_command_parser().parse_args(command))
    assert (read.num_processes, read.num_machines, read.mixed_precision) == (4, 2, "bf16")
    assert (read.use_fsdp, read.use_deepspeed) == (name == "fsdp2", name == "zero3")
    expected = {"fsdp2": "FSDP2", "zero3": "ZeRO-3"}[name]
    launched = Launch(processes=4, backend="nccl", config=str(config))
    assert sharding.requested(launched) == expected
    unknown = set(profiles.read_yaml(config).get("fsdp_config", {})) - set(vars(read))
    assert not unknown, "accelerate would pass over these"


def test_trl_takes_the_configuration_of_its_server() -> None:
    from trl import TrlParser
    from trl.scripts.vllm_serve import ScriptArguments

    config = ["--config", str(ROOT / "profiles/launch/vllm-server.yaml")]
    [read] = TrlParser(ScriptArguments).parse_args_and_config(config)
    assert (read.model, read.host, read.tensor_parallel_size) == ("models/sft", "127.0.0.1", 2)


def test_each_configuration_says_first_that_it_was_not_run() -> None:
    found = sorted((ROOT / LAUNCH_CONFIGS).iterdir())
    assert len(found) == 3
    assert all(path.read_text().startswith("# Not run here. ") for path in found)


def test_check_names_a_configuration_that_is_not_there_or_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mine = Launch(**TWO, config="profiles/launch/mine.yaml")
    with pytest.raises(
        CannotCheck, match=r"profiles/launch/mine.yaml: expected a YAML file; found no such file"
    ):
        sharding.requested(mine)
    files.write_text(Path("profiles/launch/mine.yaml"), "num_processes: 2\n")
    with pytest.raises(
        Refused, match=r"expected an accelerate configuration .* found no `distributed_type`"
    ):
        sharding.requested(mine)
    profile = profiles.read_profile(ROOT / "params.yaml")
    profile["sft"]["launch"] = {**TWO, "config": "profiles/launch/mine.yaml"}
    files.write_json(tmp_path / "profile.yaml", profile)
    done = run(
        ROOT,
        "python",
        "-m",
        "regrpo.cli",
        "check",
        "--quiet",
        "--profile",
        str(tmp_path / "profile.yaml"),
        check=False,
    )
    assert done.returncode == 2
    assert "- sft.launch.config: profiles/launch/mine.yaml: expected a YAML" in done.stderr


def error(rank: int, time: float, where: str | None = None) -> dict[str, Any]:
    left = {"rank": rank, "time": time, "traceback": f"Traceback of {rank}"}
    if where:
        left |= {"where": where, "expected": "a", "found": "b", "remedy": "c", "exit_code": 1}
    return left


@pytest.mark.parametrize(
    ("left", "kind", "words"),
    [
        # The first refusal stops the others, which then fail in ways of their own.
        (
            {"error-0": error(0, 1.0), "error-1": error(1, 2.0, "rewards")},
            Refused,
            "rewards: expected a; found b. c",
        ),
        (
            {"error-0": error(0, 2.0), "error-1": error(1, 1.0)},
            RuntimeError,
            "process 1 of 2 failed:\nTraceback of 1",
        ),
        (
            {
                "error-0": error(0, 1.0),
                "ended": {"found": "process 1 ended by SIGKILL", "killed": True},
            },
            CannotCheck,
            "found process 1 ended by SIGKILL",
        ),
        (
            {"ended": {"found": "process 0 ended by exit code 7", "killed": False}},
            CannotCheck,
            "exit code 7",
        ),
        ({}, CannotCheck, "the agent's exit code 3"),
    ],
)
def test_of_several_errors_the_cause_is_told(
    left: dict[str, Any], kind: Any, words: str, tmp_path: Path
) -> None:
    for name, content in left.items():
        files.write_json(tmp_path / f"{name}.json", content)
    with pytest.raises(kind, match=words):
        launch.require_success("grpo", Launch(**TWO), tmp_path, 3)


def test_what_the_system_refuses_a_worker_is_the_stages_error(
    one_of_two: None, tmp_path: Path
) -> None:
    worker._leave(OSError(errno.ENOSPC, "No space left on device", "checkpoint"), tmp_path)
    with pytest.raises(CannotCheck, match=r"^checkpoint: expected room on the disk; found No sp"):
        launch.require_success("grpo", Launch(**TWO), tmp_path, 2)


def test_agents_have_ended_before_the_stage_is_killed() -> None:
    assert launch.PATIENCE < processes.TIME_TO_END


def test_an_agent_that_ends_well_without_a_result_is_no_success(tmp_path: Path) -> None:
    with pytest.raises(CannotCheck, match="the agent's exit code 0"):
        launch.require_success("grpo", Launch(**TWO), tmp_path, 0)


def test_a_worker_of_another_world_is_refused(one_of_two: None) -> None:
    worker.require_world("grpo", section("grpo", launch=TWO))
    sharded = {"processes": 8, "backend": "gloo", "config": "profiles/launch/fsdp2.yaml"}
    with pytest.raises(
        Refused, match=r"expected 8 processes; found 2\. .* correct profiles/launch/fsdp2.yaml"
    ):
        worker.require_world("grpo", section("grpo", launch=sharded, dev_every=0))


def test_a_worker_takes_the_folder_and_the_checkpoint_that_its_stage_holds(
    one_of_two: None, tmp_path: Path
) -> None:
    (tmp_path / "key/checkpoint-2").mkdir(parents=True)
    with checkpoints.held(tmp_path / "key") as folder:
        assert not (tmp_path / "key.lock").exists()
        assert checkpoints.newest_complete(folder) == folder / "checkpoint-2", (
            "the stage has looked at it"
        )
    assert folder.exists(), "the stage removes it"


def test_samples_are_the_first_groups_of_the_whole_batch(
    one_of_two: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gathered(values: list[Any]) -> list[Any]:
        # Awaited rewards ended in another order there.
        others = sorted(values, key=lambda noted: noted[1], reverse=True)
        return values + [
            ({**row, "completion": "theirs"}, name, value + 10) for row, name, value in others
        ]

    monkeypatch.setattr(processes, "gathered", gathered)
    samples = rewards.Samples([1.0, 0.0], every=1, group=3)

    def length(completions: list[str], **_: Any) -> list[float]:
        return [float(len(one)) for one in completions]

    def one(completions: list[str], **_: Any) -> list[float]:
        return [1.0] * len(completions)

    for watched in samples.watching([length, one]):
        watched(
            id=list("abcd"),
            answer=list("1234"),
            prompts=["p"] * 4,
            completions=["a", "bb", "ccc", "dddd"],
            trainer_state=SimpleNamespace(global_step=1),
        )
    samples.settle()
    assert samples.frame()["one"].tolist() == [1.0] * 4 + [11.0] * 2
    assert samples.frame()["completion"].tolist() == ["a", "bb", "ccc", "dddd", "theirs", "theirs"]
    assert samples.frame()["reward"].tolist() == [1.0, 2.0, 3.0, 4.0, 11.0, 12.0]
    assert samples.prompts_seen == 8 // 3


def test_a_model_that_is_not_spread_is_one_process() -> None:
    import torch

    assert sharding.actual(torch.nn.Linear(1, 1)) == "one process"
    engine = torch.nn.Linear(1, 1)
    engine.zero_optimization_stage = lambda: 3  # as DeepSpeed's engine tells
    assert sharding.actual(engine) == "ZeRO-3"
