"""`reasoning_gym`: what the scorer of a reasoning-gym task says of an answer.

The row's entry (task, configuration, question, answer, metadata) lies beside it as JSON. Scorers
are the library's; each was read and tried, and those that passed are used
(docs/reasoning_gym.md).
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
from typing import Any

from pydantic import Field

from regrpo.core.answers.protocol import LONGEST, NO_ROW, Row, Verifier
from regrpo.core.errors import Refused
from regrpo.core.settings import Section

ENTRY = "entry"
"""The column with a row's entry, as JSON."""
_WHERE = "prepare.source"

_PASSED = """
acre advanced_geometry aiw arc_1d base_conversion basic_arithmetic bf binary_alternation
caesar_cipher calendar_arithmetic chain_sum circuit_logic color_cube_rotation count_bits
count_primes course_schedule cryptarithm decimal_arithmetic decimal_chain_sum dice emoji_mystery
family_relationships figlet_font futoshiki game_of_life gcd group_anagrams jugs largest_island
lcm leg_counting letter_counting list_functions mahjong_puzzle manipulate_matrix maze
mini_sudoku modulo_grid needle_haystack number_filtering number_format number_sequence
palindrome_generation palindrome_partitioning path_star pool_matrix power_function
prime_factorization products rectangle_count rotate_matrix rotten_oranges self_reference
sentence_reordering shortest_path simple_equations simple_geometry string_manipulation
string_splitting string_synthesis sudoku syllogism tower_of_hanoi tsumego word_sequence_reversal
word_sorting zebra_puzzles
"""
PASSED = frozenset(_PASSED.split())
"""The tasks of reasoning-gym 0.1.25 whose scorers hold (benchmarks/reasoning_gym_tasks.py)."""

_RUNS_ANSWERS = "its scorer runs the answer as Python code"
_RUNS_DATA = "its scorer runs text of the data as Python code"
_NO_GOLD = "its questions come without an answer"
_MENTION = "its scorer counts an answer that other words surround, as in 'it is not 7'"
_UNSTEADY = "its questions differ from run to run: it walks through Python's sets"
_BOARD = "its scorer compares tuples, which a file cannot hold"
REFUSED = {
    "ab": "some of its answers are empty",
    "arc_agi": _BOARD,
    "binary_matrix": _RUNS_ANSWERS,
    "bitwise_arithmetic": _RUNS_DATA,
    "boxnet": _NO_GOLD,
    "codeio": "its generator runs programs that are data",
    "coin_flip": "its scorer computes 1e999999999 in full, which takes all time and memory",
    "complex_arithmetic": "its scorer counts nan",
    "composite": "it mixes other tasks: take them one by one",
    "countdown": _RUNS_ANSWERS,
    "fraction_simplification": _MENTION,
    "game_of_life_halting": "its scorer counts any answer",
    "graph_color": _NO_GOLD,
    "gsm_symbolic": _MENTION,
    "intermediate_integration": _RUNS_ANSWERS,
    "isomorphic_strings": _UNSTEADY,
    "kakurasu": _MENTION,
    "knight_swap": _UNSTEADY,
    "knights_knaves": _MENTION,
    "letter_jumble": "its scorer counts an answer with more words behind it",
    "n_queens": _RUNS_ANSWERS,
    "number_sorting": _RUNS_DATA,
    "polynomial_equations": "its scorer counts two answers that contradict each other",
    "polynomial_multiplication": _RUNS_ANSWERS,
    "propositional_logic": _NO_GOLD,
    "puzzle24": _RUNS_ANSWERS,
    "quantum_lock": _MENTION,
    "ransom_note": _UNSTEADY,
    "rearc": _BOARD,
    "rubiks_cube": _NO_GOLD,
    "rush_hour": _NO_GOLD,
    "simple_integration": _RUNS_ANSWERS,
    "sokoban": _MENTION,
    "spell_backward": "its scorer counts an answer with more letters behind it",
    "spiral_matrix": _RUNS_ANSWERS,
    "string_insertion": _RUNS_ANSWERS,
    "survo": _MENTION,
    "time_intervals": _MENTION,
    "word_ladder": _UNSTEADY,
}
"""The other tasks, and why not."""

_NO_ANSWER = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, RecursionError),
    *(TypeError, ValueError),
)
"""What a scorer raises on a text that is no answer of its kind: it follows from the text alone."""
_NEXT = str.maketrans(
    "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "1234567890bcdefghijklmnopqrstuvwxyzaBCDEFGHIJKLMNOPQRSTUVWXYZA",
)


class ReasoningGym(Verifier):
    """An answer that the task's own scorer gives the threshold or more.

    The gold answer is the entry's own; the scorer may know other right ones.
    """

    name = "reasoning_gym"
    wants = "the task's answer"
    kind = "the answer of the row's entry"
    columns = (ENTRY,)

    class Settings(Section):
        # The least score that counts as right; scorers give less for what is half right.
        threshold: float = Field(default=1.0, gt=0, le=1)

    def parse(self, text: str, row: Row = NO_ROW) -> str | None:
        """The text itself: what it means is the scorer's to say."""
        text = text.strip()
        if len(text) > LONGEST and len(text) > 4 * len(_own_answer(row)):
            return None
        return text or None

    def golds(self, answer: str | None, row: Row = NO_ROW) -> list[Any]:
        """The entry's answer; none for another one, and for several."""
        own = self.parse(_own_answer(row), row)
        return [own] if own and super().golds(answer, row) == [own] else []

    def score(self, completion: str, answer: str | None, row: Row = NO_ROW) -> float:
        found = self.extract(completion, row)
        if found is None or not self.golds(answer, row):
            return 0.0
        return float(_score(found, _entry(row)) >= self.settings.threshold)

    def wrong(self, answer: str, row: Row = NO_ROW) -> str:
        """The gold answer with the next letter or digit in the place of its first."""
        [gold] = self.require_golds(answer, row)
        found = re.search("[0-9A-Za-z]", gold)
        if found is None:
            return f"{gold}{gold}"
        place = found.start()
        return f"{gold[:place]}{found[0].translate(_NEXT)}{gold[place + 1 :]}"

    def bring(self, row: Row, answer: str | None) -> tuple[str | None, dict[str, Any]]:
        names = ("task", "config", "question", "answer", "metadata")
        if missing := [name for name in names if name not in row]:
            raise ValueError(
                f"no column {', '.join(missing)}: an entry of reasoning-gym has {', '.join(names)}"
            )
        scorer(row["task"], row["config"])
        return answer, {ENTRY: json.dumps({name: row[name] for name in names})}


def require_task(task: str) -> None:
    """Raise Refused for a task whose scorer does not hold, by its name and with the reason."""
    if task not in PASSED:
        raise Refused(
            f"{_WHERE}.task",
            expected="a task of reasoning-gym whose scorer passed the self-test",
            found=f"{task}: {REFUSED.get(task, 'it was never tried')}",
            remedy="Choose another task (docs/reasoning_gym.md lists them), or another verifier.",
        )


def create_dataset(task: str, seed: int, size: int, config: Row) -> Any:
    """The task's generator, which has its scorer. Raises Refused for a wrong name or setting."""
    import reasoning_gym

    try:
        return reasoning_gym.create_dataset(task, seed=seed, size=size, **config)
    except (ValueError, TypeError, AssertionError) as error:
        raise Refused(
            _WHERE,
            expected=f"a reasoning-gym task and its configuration (task {task!r})",
            found=str(error) or type(error).__name__,
            remedy="See reasoning_gym.factory.DATASETS for the tasks and their configurations.",
        ) from error


def scorer(task: str, config: Row) -> Any:
    """The dataset whose `score_answer` judges; made once for each configuration."""
    require_task(task)
    return _scorer(task, json.dumps(config, sort_keys=True))


@functools.cache
def _scorer(task: str, config: str) -> Any:
    return create_dataset(task, seed=0, size=1, config=json.loads(config))


def _entry(row: Row) -> dict[str, Any]:
    """A row's entry, made anew each time, as some scorers write into it; empty without one."""
    entry: dict[str, Any] = json.loads(row.get(ENTRY) or "{}")
    return entry


def _own_answer(row: Row) -> str:
    return str(_entry(row).get("answer") or "")


def _score(answer: str, entry: dict[str, Any]) -> float:
    dataset = scorer(entry["task"], entry["config"])
    with contextlib.redirect_stdout(None):  # some print what they were given
        try:
            return float(dataset.score_answer(answer, entry))
        except _NO_ANSWER:
            return 0.0
