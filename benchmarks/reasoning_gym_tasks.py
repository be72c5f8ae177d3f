"""Which tasks of reasoning-gym the verifier `reasoning_gym` may use: the trial of every scorer.

Writes docs/reasoning_gym.md, and says where the trial and the tables in
regrpo/core/answers/reasoning_gym.py disagree.
Run it by hand: python benchmarks/reasoning_gym_tasks.py
"""

from __future__ import annotations

import builtins
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from textwrap import fill
from typing import Any
from unittest import mock

from regrpo.core import files
from regrpo.core.answers import reasoning_gym as gym
from regrpo.core.errors import Refused
from regrpo.inputs import checks
from regrpo.inputs.examples import Plan, read_part
from regrpo.inputs.formats import get_format
from regrpo.inputs.sources import ReasoningGym

PAGE = Path("docs/reasoning_gym.md")
ENTRIES = 20
SECONDS = 2.0
"""What one answer may take; the longest seen takes a tenth of it."""
OF_NO_TASK = (
    *("nan", "inf", "-inf", "NaN", "[NaN]", "None", "True", "False", "null", "[]", "{}", "no", "?"),
    *("0", "1", "-1", "5", "100", "1e9", "_", "x" * 100),
)
"""Answers that are right by chance alone."""
ENDLESS = ("1e999999999", "9**9**9**9", "(" * 1000, "[" * 1000, "9" * 1000, "1," * 500, "a " * 500)
"""Answers that take time, and the stack."""
UNTRIED = {
    "codeio": "the programs run where the questions are made",
    "coin_flip": "the trial would not end",
}
"""Refused tasks whose fault was read in their source."""


def rows(task: str, count: int) -> list[dict[str, Any]]:
    """Prepared rows of a task with its default configuration."""
    source = ReasoningGym(kind="reasoning_gym", task=task, size=count, license="Apache-2.0")
    plan = Plan(seed=7, format="reasoning_gym", dev=1, sft=0)
    read = list(read_part(source.rows(7), plan, get_format(plan.format), "train"))
    return [row | {gym.ENTRY: row["raw"][gym.ENTRY], "prompt": row["question"]} for row in read]


def digests() -> dict[str, str]:
    """SHA-256 of the first questions of every task that makes some."""
    from reasoning_gym.factory import DATASETS

    found = {}
    for task in sorted(DATASETS.keys() - {"composite"}):
        dataset = gym.create_dataset(task, seed=7, size=5, config={})
        with contextlib.redirect_stdout(sys.stderr):  # a task prints dots
            found[task] = files.sha256_json([dataset[index] for index in range(5)])
    return found


def unsteady() -> set[str]:
    """The tasks whose questions depend on how a process hashes texts, which differs each time."""
    found = []
    for seed in ("1", "2"):
        command = (sys.executable, __file__, "--digests")
        made = subprocess.run(  # noqa: S603  (a command of ours)
            command, env=os.environ | {"PYTHONHASHSEED": seed}, stdout=subprocess.PIPE, check=True
        )
        found.append(json.loads(made.stdout))
    return {task for task, digest in found[0].items() if found[1][task] != digest}


def trial(task: str, count: int = ENTRIES) -> list[str]:
    """What is wrong with a task's scorer; nothing if it holds."""
    try:
        given = rows(task, count)
    except Refused as error:
        return [f"no rows: {error.found}"]
    found: dict[str, None] = {}
    for row, neighbour in zip(given, given[1:] + given[:1], strict=True):
        with _nothing_run(found):
            found |= dict.fromkeys(_faults(row, neighbour["answer"] or ""))
    return list(found)


def _faults(row: dict[str, Any], neighbour: str) -> Iterator[str]:
    verifier = gym.ReasoningGym()
    scores = checks._self_test(row, verifier)
    if "unparsed" in scores:
        yield "a gold answer is none"
        return
    for name, score in scores.items():
        if score != float(name == "gold_scores_1"):
            yield name
    gold = row["answer"]

    def worth(answer: str) -> float:
        began = time.process_time()
        score = verifier.score(verifier.render(answer), gold, row)
        slow.append(time.process_time() - began)
        return score

    slow: list[float] = []
    mentions = (f"It is not {gold}", f"{gold} or {neighbour}", f"{neighbour}\nor\n{gold}")
    if any(map(worth, mentions)):
        yield "counts a mention"
    for other in (neighbour, *OF_NO_TASK, *ENDLESS):
        if worth(other) and not _same(other, gold):
            yield f"counts {other[:20]!r}"
    worth(gold * 4)
    if max(slow) > SECONDS:
        yield f"takes {max(slow):.0f} s"


def _same(one: str, other: str) -> bool:
    with contextlib.suppress(ValueError):
        return float(one) == float(other)
    return one.casefold() == other.casefold()


@contextlib.contextmanager
def _nothing_run(found: dict[str, None]) -> Iterator[None]:
    """Notes where text is run as code, whoever catches what that raises."""

    def note(*_: Any, **__: Any) -> None:
        found["runs text as code"] = None
        raise ValueError

    with mock.patch.multiple(builtins, eval=note, exec=note, compile=note):
        yield


@contextlib.contextmanager
def unlisted() -> Iterator[None]:
    """All tasks may be used: to try those that are refused."""
    from reasoning_gym.factory import DATASETS

    with mock.patch.object(gym, "PASSED", frozenset(DATASETS)):
        yield


def page(date: str) -> str:
    """docs/reasoning_gym.md, of the tables in the verifier's module."""
    refused = "\n".join(f"| `{task}` | {why} |" for task, why in sorted(gym.REFUSED.items()))
    return TEXT.format(
        version=metadata.version("reasoning-gym"),
        date=date,
        entries=ENTRIES,
        passed=fill(", ".join(sorted(gym.PASSED)), 100),
        many=len(gym.PASSED),
        refused=refused,
        few=len(gym.REFUSED),
    )


TEXT = """# reasoning-gym's tasks

```yaml
prepare:
  format: reasoning_gym          # its verifier is reasoning_gym
  source:
    kind: reasoning_gym
    task: gcd
    size: 5000
    config: {{min_value: 2, max_value: 100}}   # the fields of the task's own configuration
    license: Apache-2.0
  drop_duplicates: true
```

The answer is read from `<answer>…</answer>`, and the task's own scorer judges it, so that another
right answer than the gold one counts where the task has several. A score of 1 is right, or of
`verifier_settings.threshold` where it is set; an answer that makes the scorer raise is wrong. The
scorer gets the row's entry (task, configuration, question, answer, metadata), which stands as JSON
in the prepared column `entry`.

Of reasoning-gym {version} each task was tried on {entries} entries, on {date}, by
`python benchmarks/reasoning_gym_tasks.py`: the gold answer scores 1; another entry's answer,
nothing, an echo of the question, two answers that contradict each other, "It is not" and the
answer, `nan`, `1e999999999` and the like score 0; none of it takes long, no text is run as code,
and the questions are the same in another process. The gate asks of your rows what is the verifier's
self-test; it cannot know that a gold answer is wrong, as those of `basic_arithmetic` are where it
divides with `allow_parentheses: false`.

## {many} tasks that can be used

```
{passed}
```

## {few} tasks that are refused

| task | because |
|---|---|
{refused}

Their questions can be used with another verifier where one fits (`format: question_answer`).
"""


def main() -> int:
    """Try every task, write the page; 1 where the trial and the tables disagree."""
    from reasoning_gym.factory import DATASETS

    if sys.argv[1:] == ["--digests"]:
        print(json.dumps(digests()))
        return 0
    wrong, differing = 0, unsteady()
    with unlisted():
        for task in sorted(DATASETS.keys() - UNTRIED.keys()):
            faults = trial(task)
            if task in differing:
                faults.append("other questions in another process")
            print(f"{task}: {'; '.join(faults) or 'holds'}", flush=True)
            wrong += bool(faults) != (task in gym.REFUSED)
    files.write_text(PAGE, page(time.strftime("%Y-%m-%d")))
    print(f"{PAGE} is written; {wrong} tasks stand in the wrong table")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
