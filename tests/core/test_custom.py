"""Code of the user's: imported by name, alone where it must be, guarded, asked in a process."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from regrpo.core.answers.protocol import Verifier
from regrpo.core.custom import loading, probe
from regrpo.core.errors import CannotCheck, Refused
from regrpo.core.verifiers import get_verifier
from tests.support.custom_code import BROKEN

Write = Callable[..., None]
HEAD = """from regrpo.core.answers.protocol import NO_ROW, Verifier
class Own(Verifier):
    def parse(self, text, row=NO_ROW): return text or None
    def wrong(self, answer, row=NO_ROW): return answer + "x"
"""
"""A verifier whose faults a test writes behind it."""


def own(**settings: Any) -> Verifier:
    found = get_verifier("custom.verifiers:Own", settings)
    assert found
    return found


# --- what stands alone ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("from custom import rewards", "custom.rewards"),
        ("import custom.rewards as mine", "custom.rewards"),
        ("from custom.formats import clock", "custom.formats.clock"),
        ("from . import rewards", "..rewards"),
        ("from .rewards import short_thought", ".rewards.short_thought"),
        ("from regrpo.train import rewards", "regrpo.train.rewards"),
        ("from regrpo import train", "regrpo.train"),
        ("import regrpo", "regrpo"),
        ("import stages.prepare", "stages.prepare"),
        ("import helper", "helper"),
        ("from package.inner import name", "package.inner.name"),
        ("def later():\n    import custom.rewards", "custom.rewards"),
    ],
)
def test_what_stands_alone_imports_nothing_of_the_repository(
    custom: Write, line: str, name: str
) -> None:
    Path("helper.py").touch()
    Path("package").mkdir()
    Path("package/__init__.py").touch()
    custom(f"{HEAD}{line}\n", "verifiers")
    number = 5 + line.count("\n")
    said = rf"custom/verifiers\.py, line {number}: expected no import .* but regrpo\.core, .*"
    with pytest.raises(Refused, match=said + re.escape(f"found an import of {name}.")):
        own()
    with pytest.raises(Refused, match=said):
        loading.require_all_alone()


def test_packages_and_core_may_be_imported_and_the_folders_init_is_not_run(custom: Write) -> None:
    lines = "import re, pandas\nfrom regrpo.core import files\nimport regrpo.core.text as text\n"
    custom(f"{lines}{HEAD}", "verifiers")
    Path("custom/__init__.py").write_text("1 / 0")
    assert own().score("<answer>a</answer>", "a") == 1
    assert get_verifier("custom.verifiers:Own").__class__.__module__ == "custom.verifiers"
    loading.require_all_alone()


def test_a_file_of_an_older_clone_that_is_not_there_is_told_with_the_remedy(custom: Write) -> None:
    Path("custom/formats.py").unlink()
    with pytest.raises(CannotCheck, match=r"formats\.py: .*nothing there.*`touch custom/formats"):
        loading.require_all_alone()
    Path("custom/formats.py").touch()
    loading.require_all_alone()
    custom("def (", "formats")
    with pytest.raises(Refused, match=r"custom/formats\.py: expected Python; found invalid syntax"):
        loading.require_all_alone()


# --- classes that are no verifier -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("", "expected a class Own in custom.verifiers; found AttributeError: module 'custom.ver"),
        ("Own = 3", "expected a class Own in custom.verifiers; found int 3. Name a class."),
        ("def Own(text): return text", "found <function Own at 0x"),
        ("class Own: pass", "found <class 'custom.verifiers.Own'>, which is no subclass of Verif"),
        (f"{HEAD.partition('class')[0]}Own = Verifier", "found a class without parse and wrong"),
        (HEAD.rpartition("    def wrong")[0], "found a class without wrong"),
        (f"{HEAD}    columns = 'tests'", "found columns = 'tests' instead of a tuple of names"),
        (f"{HEAD}    form = '<answer>'", "found form = '<answer>' instead of a Form"),
        (f"{HEAD}    class Settings: pass", "found Settings that is no subclass of"),
        (f"{HEAD}1 / 0", "found custom/verifiers.py, line 5: ZeroDivisionError: division by zero"),
        (f"{HEAD}import sys; sys.exit(2)", "custom/verifiers.py, line 5: SystemExit: 2"),
        (f"{HEAD}    def __init__(self, settings): self.no", "line 5: AttributeError: 'Own' obj"),
    ],
)
def test_what_is_no_verifier_is_refused_by_name(custom: Write, source: str, said: str) -> None:
    custom(source, "verifiers")
    with pytest.raises(Refused) as caught:
        own()
    assert str(caught.value).startswith("prepare.verifier: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_verifier_lies_in_verifiers_py_and_its_settings_are_its_own(custom: Write) -> None:
    custom(HEAD, "mine")
    with pytest.raises(
        Refused, match=r"expected custom\.verifiers:<class>; found custom\.mine:Own"
    ):
        get_verifier("custom.mine:Own")
    with pytest.raises(Refused, match=r"verifier_settings: .*`within`: .* less than 60; found 90"):
        get_verifier("custom.verifiers:TimeOfDay", {"within": 90})
    with pytest.raises(Refused, match=r"`withn`: unknown key \(would do: within\)"):
        get_verifier("custom.verifiers:TimeOfDay", {"withn": 5})


# --- faults while it is used ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "call", "said"),
    [
        (
            "parse(self, text, row=NO_ROW): return {'a': 1}[text]",
            lambda one, row: one.score("<answer>b</answer>", "a", row),
            "expected extract to give a value, or None; "
            "found custom/verifiers.py, line 5: KeyError: 'b' for '<answer>b</answer>'. Mend",
        ),
        (
            "equal(self, gold, found): raise SystemExit(1)",
            lambda one, row: one.score("<answer>b</answer>", "a", row),
            "expected score to give 1 or 0 for any completion; found custom/verifiers.py, line 5: "
            "SystemExit: 1 for '<answer>b</answer>' for 'a'",
        ),
        (
            "score(self, completion, answer, row=NO_ROW): return 0.5",
            lambda one, row: one.score("b", "a", row),
            "found TypeError: it returned 0.5 for 'b'",
        ),
        (
            "is_formatted(self, completion, row=NO_ROW): return row['no_such']",
            lambda one, row: one.is_formatted("b", row),
            "expected is_formatted to give true or false; found custom/verifiers.py, line 5: "
            "KeyError: 'no_such'",
        ),
        (
            "render(self, answer): return None",
            lambda one, row: one.render("a"),
            "found TypeError: it returned None for 'a'",
        ),
        (
            "wrong(self, answer, row=NO_ROW): return 5",
            lambda one, row: one.wrong("a", row),
            "expected wrong to give another answer, as text; found TypeError: it returned 5",
        ),
        (
            "wrong(self, answer, row=NO_ROW): return ''",
            lambda one, row: one.wrong("a", row),
            "expected wrong to give an answer that scores 1 where it is the gold one; "
            "found '', which scores 0",
        ),
    ],
)
def test_a_fault_is_one_line_with_the_verifier_and_the_row(
    custom: Write, method: str, call: Callable[[Verifier, Any], object], said: str
) -> None:
    custom(f"{HEAD}    def {method}\n", "verifiers")
    with pytest.raises(Refused) as caught:
        call(own(), {"id": "train-7"})
    row = "" if method.startswith("render") else ", row train-7"
    assert str(caught.value).startswith(f"prepare.verifier: custom.verifiers:Own{row}: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise ValueError('no unit')", "custom/verifiers.py, line 5: ValueError: no unit"),
        ("return row['no_such']", "custom/verifiers.py, line 5: KeyError: 'no_such'"),
        ("return None", "TypeError: cannot unpack non-iterable NoneType object"),
        ("return 5, {}", "TypeError: it returned 5"),
    ],
)
def test_what_a_verifier_cannot_bring_of_a_row_is_a_value_error(
    custom: Write, body: str, said: str
) -> None:
    custom(f"{HEAD}    def bring(self, row, answer): {body}\n", "verifiers")
    with pytest.raises(ValueError, match=re.escape(f"{said} (bring of custom.verifiers:Own)")):
        own().bring({}, "a")


# --- the example that ships -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "gold", "within", "score"),
    [
        *[("14:30", "14:30", 0, 1), ("2:30 pm", "14:30", 0, 1), ("2.30 P.M.", "14:30", 0, 1)],
        *[("2:30pm", "14.30", 0, 1), ("12:05 am", "0:05", 0, 1), ("12:05 pm", "12:05", 0, 1)],
        *[("02:30", "2:30 am", 0, 1), ("2:30", "14:30", 0, 0), ("14:31", "14:30", 0, 0)],
        *[("14:30 pm", "14:30", 0, 0), ("24:00", "0:00", 0, 0), ("9:60", "10:00", 0, 0)],
        *[("half past two", "14:30", 0, 0), ("", "14:30", 0, 0), ("14:30 or 14:31", "14:30", 0, 0)],
        *[("14:35", "14:30", 5, 1), ("14:36", "14:30", 5, 0), ("23:58", "0:02", 5, 1)],
    ],
)
def test_the_example_of_a_verifier(
    custom: Write, text: str, gold: str, within: int, score: int
) -> None:
    one = get_verifier("custom.verifiers:TimeOfDay", {"within": within})
    assert one
    assert one.score(f"<answer>{text}</answer>", gold) == score
    assert one.score(one.render(one.wrong(gold)), gold) == 0
    assert one.description == (
        "the time of day between <answer> and </answer>, after optional reasoning in "
        "<think> … </think>"
    )


# --- in a child process ---------------------------------------------------------------------------


def test_a_child_process_says_what_a_verifier_is(custom: Write) -> None:
    found = probe.probe_verifier("custom.verifiers:TimeOfDay", {"within": 5})
    assert found == {"columns": []}
    refused = probe.probe_verifier("custom.verifiers:TimeOfDay", {"within": -1})
    assert refused["where"] == "prepare.verifier_settings"
    assert "`within`: input should be greater than or equal to 0" in refused["error"]
    absent = probe.probe_verifier("custom.verifiers:None", {})["error"]
    assert absent == "AttributeError: module 'custom.verifiers' has no attribute 'None'"
    assert "custom.verifiers" not in sys.modules


def test_a_child_process_imports_and_says_the_same(custom: Callable[[str], None]) -> None:
    custom(
        "print('loading')\ndef judged(completions, level, hint=None, **rest):\n    return rest['a']"
    )
    Path("custom/gone.py").write_text("import os\nos._exit(7)")
    (broken, said), *_ = BROKEN.items()
    Path("custom/broken.py").write_text(broken)
    found = probe.probe(["custom.broken:f", "custom.judge:judged", "custom.gone:f"])
    assert found["custom.broken:f"] == {"error": f"custom/broken.py, {said}"}
    assert found["custom.judge:judged"] == {
        "needs": ["completions", "level"],
        "reads": ["hint", "a"],
        "takes": None,
    }
    assert found["custom.gone:f"] == {"error": "its import ends the process (exit code 7)"}
    assert "custom.judge" not in sys.modules


def test_an_import_that_does_not_end_is_ended(
    custom: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "SECONDS", 1.0)
    custom("import time\ntime.sleep(60)")
    error = probe.probe(["custom.judge:judged"])["custom.judge:judged"]["error"]
    assert error.startswith("its import takes more than 1 s")
