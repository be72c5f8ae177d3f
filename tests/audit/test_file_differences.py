"""file_differences on small files.

The first place where two outputs part, and when two evaluations are the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from regrpo.audit import file_differences
from regrpo.evaluate.results import Estimate, Evaluation, Task


def two(folder: Path, name: str, before: str | bytes, after: str | bytes) -> tuple[Path, Path]:
    """One file in two versions."""
    paths = []
    for side, content in (("original", before), ("found", after)):
        (folder / side).mkdir(exist_ok=True)
        path = folder / side / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        paths.append(path)
    return paths[0], paths[1]


def test_equal_files_differ_in_nothing(tmp_path: Path) -> None:
    assert file_differences.compare_file(*two(tmp_path, "a.json", "{}", "{}")) == {}


# --- tensors --------------------------------------------------------------------------------------


def tensors(
    folder: Path, before: dict[str, Any], after: dict[str, Any], **metadata: str
) -> dict[str, Any]:
    from safetensors.torch import save

    return file_differences.compare_file(
        *two(folder, "m.safetensors", save(before), save(after, metadata=metadata or None))
    )


def test_the_first_differing_tensor_is_named_with_count_and_largest_difference(
    tmp_path: Path,
) -> None:
    import torch

    same = {"a.same": torch.ones(3), "b.first": torch.zeros(2, 3), "c.second": torch.zeros(1)}
    changed = {name: tensor.clone() for name, tensor in same.items()}
    changed["b.first"][0, 1] = 0.25
    changed["b.first"][1, 2] = -0.5
    changed["c.second"][0] = 9
    found = tensors(tmp_path, same, changed)
    assert found["tensors"] == [
        {"name": "b.first", "what": "2 of 6 elements, by at most 0.5", "max_abs_difference": 0.5},
        {"name": "c.second", "what": "1 of 1 elements, by at most 9", "max_abs_difference": 9.0},
    ]
    assert found["what"] == "2 of 3 tensors differ, first b.first: 2 of 6 elements, by at most 0.5"


def test_one_bit_of_a_bfloat16_tensor_is_seen(tmp_path: Path) -> None:
    import torch

    before = torch.ones(4, dtype=torch.bfloat16)
    after = before.clone()
    after.view(torch.int16)[2] += 1
    assert tensors(tmp_path, {"w": before}, {"w": after})["what"].startswith(
        "1 of 1 tensors differ"
    )


def test_nan_in_the_same_place_is_equal_and_in_another_is_not(tmp_path: Path) -> None:
    import torch

    nan = torch.tensor([float("nan"), 1.0])
    assert (
        tensors(tmp_path, {"w": nan}, {"w": nan.clone()}, note="x")["what"]
        == "only the file's header differs"
    )
    entry = tensors(tmp_path, {"w": nan}, {"w": torch.tensor([0.0, 1.0])})["tensors"][0]
    assert entry["what"] == "1 of 2 elements, by NaN or infinity"
    assert entry["max_abs_difference"] is None


def test_another_shape_and_a_missing_tensor_are_told(tmp_path: Path) -> None:
    import torch

    before = {"a": torch.zeros(2), "b": torch.zeros(2)}
    found = tensors(tmp_path, before, {"a": torch.zeros(3)})
    assert {t["name"]: t["what"] for t in found["tensors"]} == {
        "a": "torch.float32 [2] → torch.float32 [3]",
        "b": "is not in the reproduction",
    }


# --- tables ---------------------------------------------------------------------------------------

HISTORY = "step,loss,learning_rate\n1,2.5,0.1\n2,2.25,0.1\n3,2.0,0.1\n"


def test_a_history_names_the_first_differing_training_step_and_its_columns(tmp_path: Path) -> None:
    found = file_differences.compare_file(
        *two(tmp_path, "history.csv", HISTORY, HISTORY.replace("2.25,0.1", "2.250001,0.2"))
    )
    what = "step 2: loss 2.25 → 2.250001, learning_rate 0.1 → 0.2"
    assert found == {"row": 1, "step": 2, "what": what}


def test_a_shorter_history_departs_at_the_step_it_lacks(tmp_path: Path) -> None:
    found = file_differences.compare_file(
        *two(tmp_path, "history.csv", HISTORY, HISTORY.replace("3,2.0,0.1\n", ""))
    )
    what = "step 3: step 3 → (absent), loss 2.0 → (absent), learning_rate 0.1 → (absent)"
    assert found == {"row": 2, "step": 3, "what": what}


def test_other_columns_are_told_by_name(tmp_path: Path) -> None:
    found = file_differences.compare_file(
        *two(tmp_path, "history.csv", HISTORY, HISTORY.replace("loss", "entropy"))
    )
    assert found["what"] == "columns on one side only: entropy, loss"


def test_parquet_rows_are_compared_cell_by_cell(tmp_path: Path) -> None:
    from regrpo.core import files

    paths = []
    for side, value in (("original", 0.0), ("found", 1.0)):
        path = tmp_path / side / "samples.parquet"
        files.write_parquet(path, pd.DataFrame({"id": ["a", "b"], "value": [float("nan"), value]}))
        paths.append(path)
    found = file_differences.compare_file(paths[0], paths[1])
    assert found == {"row": 1, "what": "row 2: value 0.0 → 1.0"}


# --- everything else ------------------------------------------------------------------------------


def test_json_names_the_first_differing_key(tmp_path: Path) -> None:
    found = file_differences.compare_file(
        *two(tmp_path, "m.json", '{"a": [1, {"b": 2}]}', '{"a": [1, {"b": 3}]}')
    )
    assert found == {"key": "a[1].b", "what": "a[1].b: 2 → 3"}


def test_a_text_names_its_line_and_anything_else_its_sizes(tmp_path: Path) -> None:
    found = file_differences.compare_file(*two(tmp_path, "card.md", "a\nb\n", "a\nc\n"))
    assert found["what"] == "line 2: b → c"
    found = file_differences.compare_file(*two(tmp_path, "card.md", "a\n", "a\nc\n"))
    assert found["what"] == "line 2: (end) → c"
    found = file_differences.compare_file(*two(tmp_path, "x.png", b"\x89abc", b"\x89abd!"))
    assert found == {"what": "other bytes (4 → 5 of them)"}


def test_the_block_of_a_card_that_varies_does_not_count(tmp_path: Path) -> None:
    begin, end = (f"<!-- varies from run to run: {word} -->\n" for word in ("begin", "end"))
    cards = [f"# card\n{begin}{time}\n{end}the same\n" for time in ("12:00", "13:00")]
    assert file_differences.compare_file(*two(tmp_path, "README.md", *cards)) == {}


def test_a_file_that_is_not_what_its_name_says_is_compared_as_bytes(tmp_path: Path) -> None:
    found = file_differences.compare_file(
        *two(tmp_path, "m.safetensors", b"not a tensor", b"not b tensor")
    )
    assert found == {"what": "other bytes (12 → 12 of them)"}


# --- evaluations ----------------------------------------------------------------------------------


def evaluation(*values: list[float], task: str = "heldout") -> tuple[Evaluation, pd.DataFrame]:
    """metrics and samples of an evaluation whose n-th model gave these answers."""
    models = {f"model{index}": answers for index, answers in enumerate(values)}
    results = {}
    for model, answers in models.items():
        value = sum(answers) / len(answers)
        stderr = (value * (1 - value) / len(answers)) ** 0.5
        results[model] = Estimate(value=value, stderr=stderr, ci95=(0.0, 1.0))
    found = Task(
        metric="accuracy",
        kind="binary",
        n=len(values[0]),
        role="headline",
        description="questions",
        models=results,
        pairs={},
    )
    metrics = Evaluation(headline=task, tasks={task: found})
    rows = [
        {"task": task, "model": m, "id": f"q{number}", "value": value, "prompt": "?", "answer": "1"}
        for m, answers in models.items()
        for number, value in enumerate(answers)
    ]
    return metrics, pd.DataFrame(rows)


def judged(
    before: tuple[Evaluation, pd.DataFrame], after: tuple[Evaluation, pd.DataFrame]
) -> dict[str, Any]:
    return file_differences.compare_evaluations(
        before[0], after[0], (before[1], after[1]), tolerance=0.02, resamples=500
    )


def flipped(answers: list[float], *places: int) -> list[float]:
    return [1 - value if index in places else value for index, value in enumerate(answers)]


ANSWERS = [1.0, 0.0] * 150


def test_answers_that_differ_by_chance_within_the_tolerance_are_equivalent() -> None:
    found = judged(evaluation(ANSWERS), evaluation(flipped(ANSWERS, 0, 1, 2, 3, 4, 6)))
    assert found["equivalent"], found["problems"]
    assert (found["values"][0]["gained"], found["values"][0]["lost"]) == (2, 4)


def test_values_that_differ_by_less_than_chance_explains_are_equivalent() -> None:
    """Another processor's weights answer a tenth of the questions otherwise, to no end."""
    gained, lost = range(1, 61, 2), range(0, 46, 2)
    found = judged(evaluation(ANSWERS), evaluation(flipped(ANSWERS, *gained, *lost)))
    assert found["largest_difference"] == pytest.approx(7 / 300), "beyond the tolerance"
    assert found["equivalent"], found["problems"]
    assert 0.03 < found["values"][0]["detectable"] < 0.1


def test_a_value_further_off_than_chance_and_tolerance_is_not_equivalent() -> None:
    """Among four models, of which Holm's correction lets none be a difference."""
    few = [1.0, 0.0] * 12
    other = flipped(few, *range(0, 12, 2))
    found = judged(evaluation(*[few] * 4), evaluation(other, few, few, few))
    assert not found["values"][0]["found_difference"]
    assert not found["equivalent"]
    [problem] = found["problems"]
    assert problem.startswith("heldout of model0: 0.500 → 0.250, more than 0.02 beyond chance (95 ")


def test_without_answers_the_counts_are_judged_as_if_the_questions_were_others() -> None:
    many = [1.0, 0.0] * 1000
    lower = evaluation(flipped(many, *range(0, 60, 2)))[0]
    lowest = evaluation(flipped(many, *range(0, 200, 2)))[0]
    before = evaluation(many)[0]
    unpaired = [
        file_differences.compare_evaluations(before, after, None, tolerance=0.02)
        for after in (before, lower, lowest)
    ]
    assert [found["test"] for found in unpaired] == ["unpaired"] * 3
    # The paired test finds the second: see the test after this.
    assert [found["equivalent"] for found in unpaired] == [True, True, False]
    [problem] = unpaired[2]["problems"]
    assert "of model0: the unpaired test finds a difference (p = 0.002 after Holm" in problem


def test_a_value_within_tolerance_is_not_equivalent_if_the_paired_test_finds_a_difference() -> None:
    many = [1.0, 0.0] * 1000
    found = judged(evaluation(many), evaluation(flipped(many, *range(0, 60, 2))))
    assert [value["within"] for value in found["values"]] == [True]
    assert found["test"] == "paired"
    assert not found["equivalent"]
    assert "0 gained, 30 lost, McNemar p" in found["problems"][0]


def test_one_low_p_of_many_is_no_difference_after_holms_correction() -> None:
    many = [1.0, 0.0] * 400
    once = flipped(many, *range(0, 14, 2), 1)  # 1 gained, 7 lost: p 0.07; 0 gained, 6 lost: p 0.03
    lower = flipped(many, *range(0, 12, 2))
    alone = judged(evaluation(many), evaluation(lower))
    among = judged(evaluation(*[many] * 4), evaluation(lower, once, once, once))
    assert alone["values"][0]["p"] < 0.05
    assert not alone["equivalent"]
    assert among["equivalent"], among["problems"]


def test_a_continuous_metric_is_judged_by_the_paired_bootstrap() -> None:
    before = [0.1 * (index % 7) for index in range(200)]
    shifted, shaken = (
        [value + 0.01 for value in before],
        [value + 0.01 * (-1) ** i for i, value in enumerate(before)],
    )
    assert not judged(evaluation(before), evaluation(shifted))["equivalent"]
    assert judged(evaluation(before), evaluation(shaken))["equivalent"]


def test_a_task_on_one_side_only_is_not_equivalent() -> None:
    whole = evaluation(ANSWERS)
    more = {"more": whole[0].tasks["heldout"]}
    other = whole[0].model_copy(update={"tasks": whole[0].tasks | more}), whole[1]
    for sides in ((whole, other), (other, whole)):
        found = judged(*sides)
        assert found["problems"] == ["more of model0 is on one side only"]
        assert not found["equivalent"]
