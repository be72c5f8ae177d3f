# ruff: noqa: E501  (tables)
r"""What people and models write for `math`, in \boxed{…} and in the tag, and what it is worth."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any

import pytest

pytest.importorskip("hypothesis", reason="of the extra dev")
pytest.importorskip("math_verify", reason="of the extra math")

from hypothesis import example, given
from hypothesis import strategies as st

from regrpo.core.answers import latex
from regrpo.core.errors import CannotCheck, Refused
from regrpo.core.verifiers import get_verifier, label
from tests.support.chance import BY_CHANCE, texts
from tests.support.projects import ROOT


def math(**settings: Any) -> Any:
    found = get_verifier("math", settings)
    assert found
    return found


MATH = math()
# (an answer, the gold, score); every one is asked the other way round as well.
EXPRESSIONS = [
    *[("5", "5", 1), ("5.", "5", 1), ("$5$", "5", 1), (r"\(5\)", "5", 1), (" 5\n", r"\boxed{5}", 1)],
    *[("-5", "5", 0), ("\u22125", "-5", 1), ("+5", "5", 1), ("007", "7", 1), ("5.0", "5", 1)],
    *[(r"\frac12", "0.5", 1), ("1/2", ".5", 1), (r"\dfrac{1}{2}", r"\frac{2}{4}", 1), ("2 1/2", "2.5", 1)],
    *[(r"2\frac{1}{2}", "5/2", 1), ("0.333333", "1/3", 0), ("3.14", r"\pi", 0), (r"\frac{\pi}{2}", r"\pi/2", 1)],
    *[(r"50\%", "0.5", 1), ("50%", r"50\%", 1), (r"50\%", "50", 1), (r"50\%", "5", 0), ("50", "0.5", 0)],
    *[("1,234", "1234", 1), ("1{,}234", "1234", 1), (r"1\,234", "1234", 1), ("1,234.5", "1234.5", 1)],
    *[(r"\$32", "32", 1), (r"10\text{ cm}", "10", 1), (r"10\text{ cm}^2", "10", 1), (r"90^\circ", "90", 1)],
    # numbers that are left to be worked out, or have no sign between them
    *[("3 + 5", "8", 0), ("4+5-7", "2", 0), (r"2\cdot 4", "8", 0), ("3 4", "7", 0), ("2(3)", "5", 0), ("2(3)", "6", 0)],
    *[("(2)(3)", "5", 0), (r"\frac{4}{2}(3)", "5", 0), ("[2][3]", "5", 0), (r"\frac{4}{2}\frac{1}{2}", "2.5", 0)],
    # powers, roots, functions
    *[("2^{10}", "1024", 1), (r"2\cdot 2^{2007}", "2^{2008}", 1), (r"1.5\times10^3", "1500", 1), ("2^{-3}", "1/8", 1)],
    *[(r"1.2\times10^{-20}", r"1.3\times10^{-20}", 0), (r"10^{-20}\pi", r"2\pi\cdot 10^{-20}", 0)],
    *[(r"\sqrt{12}", r"2\sqrt{3}", 1), (r"\frac{\sqrt2}{2}", r"\frac{1}{\sqrt{2}}", 1), (r"\sqrt[3]{8}", "2", 1)],
    *[(r"\sqrt{5+2\sqrt{6}}", r"\sqrt{2}+\sqrt{3}", 1), ("5!", "120", 1), (r"\binom{5}{2}", "10", 1)],
    *[(r"\log_2 8", "3", 1), (r"\log_{2}(8)", "3", 1), (r"\lfloor 3.5\rfloor", "3", 1), (r"\infty", r"-\infty", 0)],
    # letters
    *[("x^2+1", "1+x^2", 1), ("(x+1)^2", "x^2+2x+1", 1), ("(x+1)^2", "x^2+2x+2", 0), ("x", "y", 0)],
    *[(r"\frac{x^2-1}{x-1}", "x+1", 1), (r"\sin^2 x+\cos^2 x", "1", 1), (r"e^{-x^2}", r"\frac{1}{e^{x^2}}", 1)],
    *[("3+4i", "4i+3", 1), ("|x|", r"\sqrt{x^2}", 1), ("x_1", "x_{1}", 1), (r"\theta", "x", 0), ("n!", "n!", 1)],
    # equations and inequalities
    *[("x=5", "5", 1), ("5=x", "x=5", 1), ("x=5", "y=5", 0), ("y=2x+1", "2x+1", 1), ("y=2x+1", "2x-y+1=0", 1)],
    *[("2x+2y=6", "x=3-y", 1), ("2x+2y=6", "x+y=4", 0), ("f(x)=x^2", "x^2", 1), ("x^5+y^7=1", "x^5+y^7=2", 0)],
    *[("x>3", r"(3,\infty)", 1), ("3<x", "x>3", 1), ("1<x<3", "(1,3)", 1), (r"x\in[1,2]", "[1,2]", 1)],
    *[("x+y>3", "3<x+y", 1), ("x+y>3", "x+y<3", 0), (r"x \neq 3", r"(-\infty,3)\cup(3,\infty)", 1)],
    # tuples, sets, intervals, matrices
    *[("(1,2)", "(2,1)", 0), ("(1,2,3)", "(1,3,2)", 0), (r"\left(\frac12,3\right)", "(0.5,3)", 1), ("1,2", "(1,2)", 1)],
    *[("1,2", "2,1", 1), (r"\{1,2\}", "1,2", 1), ("1 and 2", "1,2", 1), (r"1\text{ or }2", r"\{2,1\}", 1), ("1,2", "1", 0)],
    *[(r"\pm 3", "3,-3", 1), ("x=1,y=2", "y=2,x=1", 1), ("x=1 or x=2", "1,2", 1), ("[1,2]", "[1,2)", 0)],
    *[(r"(-\infty,3]\cup[5,\infty)", r"[5,\infty)\cup(-\infty,3]", 1), (r"\varnothing", r"\emptyset", 1)],
    *[(r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{bmatrix}1&2\\3&4\end{bmatrix}", 1)],
    *[(r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&2\\3&5\end{pmatrix}", 0)],
    # words
    *[(r"\text{Monday}", "monday", 1), (r"\text{(A)}", "A", 1), (r"\text{no solution}", "no solution", 1)],
    *[("", "5", 0), (r"\frac{1}{0}", r"\infty", 0), ("5 or 6", "5", 0), ("?", "5", 0), ("{", "5", 0)],
]  # fmt: skip


@pytest.mark.parametrize(("text", "gold", "score"), EXPRESSIONS)
def test_what_an_expression_is_worth_in_either_order(text: str, gold: str, score: int) -> None:
    assert MATH.score(rf"\boxed{{{text}}}", gold) == score
    assert MATH.score(rf"\boxed{{{gold}}}", text) == score


# (a completion, its score for gold 8, whether it is in the asked format)
COMPLETIONS = [
    (r"\boxed{8}", 1, 1),
    (r"So $x=\boxed{8}$.", 1, 1),
    (r"\[ \boxed { 8 } \]", 1, 1),
    (r"\boxed{\text{8}}", 1, 1),
    (r"\boxed{\frac{16}{2}}", 1, 1),
    (r"\boxed{8} is it", 1, 0),
    (r"\boxed{8} or \boxed{8.0}", 1, 0),
    (r"\boxed{8} or \boxed{9}", 0, 0),
    (r"<think>\boxed{9}</think> \boxed{8}", 1, 1),
    (r"<think>\boxed{8}</think>", 0, 0),
    (r"Write \boxed{}. \boxed{8}", 1, 0),
    (r"\boxed{8} \boxed{9", 1, 0),
    (r"\boxed{8 \boxed{8}", 0, 0),
    (r"\boxed{\boxed{8}}", 1, 1),
    (r"\boxed{8", 0, 0),
    (r"\boxed 8", 0, 0),
    (r"boxed{8}", 0, 0),
    ("The answer is 8", 0, 0),
    ("8", 0, 0),
    (r"\boxed{9}", 0, 1),
    ("", 0, 0),
]


@pytest.mark.parametrize(("completion", "score", "is_formatted"), COMPLETIONS)
def test_the_answer_is_what_stands_in_the_box(
    completion: str, score: int, is_formatted: int
) -> None:
    found = MATH.score(completion, "8"), MATH.is_formatted(completion)
    assert found == (score, bool(is_formatted))


def test_the_answer_may_be_asked_for_in_the_tag() -> None:
    tagged = math(form="answer")
    assert tagged.score(r"<think>\boxed{9}</think><answer>\frac{16}{2}</answer>", "8") == 1
    assert tagged.score(r"<answer>\boxed{8}</answer>", "8") == 1
    assert tagged.score(r"\boxed{8}", "8") == 0
    assert tagged.render("8") == "<answer>8</answer>"
    assert MATH.render("8") == r"\boxed{8}"
    with pytest.raises(Refused, match=r"verifier_settings.*form"):
        math(form="tag")
    assert label({"verifier": "math", "verifier_settings": {"form": "answer"}}) == (
        "math (form: answer)"
    )


@pytest.mark.parametrize("gold", dict.fromkeys(gold for _, gold, _ in EXPRESSIONS))
def test_the_self_tests_wrong_answer_is_wrong_in_either_order(gold: str) -> None:
    assert MATH.can_parse(gold)
    wrong = MATH.wrong(gold)
    right = MATH.render(gold)
    assert MATH.can_parse(wrong)
    assert MATH.score(MATH.render(wrong), gold) == 0
    assert MATH.score(right, wrong) == 0
    for both in (right + MATH.render(wrong), MATH.render(f"{gold} or {wrong}")):
        assert MATH.score(both, gold) == 0
    assert MATH.score(right, gold) == 1


@pytest.mark.parametrize(
    "gold", ["", "3 + 5", r"\sum_{k=1}^n k", "9^{9^9}", r"\frac{1}{0}", "5}", "x" * 201]
)
def test_a_gold_that_cannot_be_read_is_none(gold: str) -> None:
    assert not MATH.can_parse(gold)
    with pytest.raises(ValueError, match="not an expression that can be read"):
        MATH.wrong(gold)


def test_any_of_several_gold_answers_counts() -> None:
    row = {"golds": [r"\frac12", "x"]}
    assert MATH.score(r"\boxed{x}", r"\frac12", row) == 1
    assert MATH.score(MATH.render(MATH.wrong(r"\frac12", row)), r"\frac12", row) == 0


HOSTILE = {
    "a tower": ("9^9^9^9", "1"),
    "a tower in braces": ("9^{9^{9^9}}", "1"),
    "braces": ("{" * 100_000 + "5" + "}" * 100_000, "5"),
    "a megabyte of braces": ("{" * 1_000_000, "5"),
    "boxes": (r"\boxed{" * 100_000, "5"),
    "fractions without an end": (r"\frac" * 100_000, "5"),
    "fractions in fractions": (r"\frac{1}{2+" * 6 + "1" + "}" * 6, "5"),
    "a factorial": ("99999999!", "5"),
    "factorials of factorials": ("9!!!", "5"),
    "powers of powers": ("((2^{99})^{99})^{99}", "2"),
    "a power of a quotient": (r"\frac{9^{999}}{1}^{999}", "1"),
    "a power between bars": ("|9^{999}|^{999}", "1"),
    "permutations": ("(10000000)_{5}", "1"),
    "a binomial": (r"\binom{99999999}{4999999}", "1"),
    "e to e to e": ("e^{e^{e^{e^{e}}}}", "1"),
    "many terms": ("(a+b+c+d)^{30}", "1"),
    "many terms of products": ("(a+b)(c+d)(f+g)(h+j)(k+l)(m+n)(o+p)(q+r)", "1"),
    "a high degree": (r"\frac{x^{999999}-1}{x-1}", "1"),
    "an interval of towers": ("(9^{9^9},1)", "1"),
    "a chain of equations": ("x=" * 90 + "1", "2"),
    "a hard equation": (r"x^5+y^7=\sin x", r"x^5+y^7=\cos x"),
    "a hard inequality": (r"\sin x<x^5-x+1", "(1,2)"),
    "a sum over an index": (r"\sum_{i=1}^{99999999} i", "1"),
    "an integral": (r"\int_0^1 e^{x^x} dx", "1"),
    "a determinant": (r"\begin{vmatrix}1&2\\3&4\end{vmatrix}", "-2"),
    "a large root": (r"\sqrt[99999]{x^{99999}+1}", "x"),
    "the sine of a large number": (r"\sin(10^{9999})", "1"),
    "bars": ("|" * 198, "1"),
    "signs": ("-" * 199 + "1", "1"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_would_take_long_is_no_answer(name: str) -> None:
    text, gold = HOSTILE[name]
    began = time.process_time()
    assert MATH.score(rf"\boxed{{{text}}}", gold) == 0
    assert MATH.score(text, gold) == 0
    MATH.is_formatted(text)
    assert time.process_time() - began < 3


SLOWEST = [
    (r"(\sin x)^{300}+(\cos x)^{300}", r"(\cos x)^{300}+(1-(\cos x)^2)^{150}"),
    (r"\frac{x^{900}-1}{x-1}", "x+1"),
    ("(a+b)^{150}", "(b+a)^{150}"),
    (r"\sqrt{2}+\sqrt{3}+\sqrt{5}+\sqrt{7}+\sqrt{11}", r"\sqrt{11}+\sqrt{7}+\sqrt{5}+\sqrt{3}+\sqrt{2}"),
    (",".join(f"x+{k}" for k in range(20)), ",".join(f"x+{k}" for k in range(20, 0, -1))),
    ("4000!", "3999!"),
]  # fmt: skip


def test_what_is_within_the_limits_ends_within_seconds() -> None:
    for text, gold in SLOWEST:
        began = time.process_time()
        assert MATH.can_parse(text)
        MATH.score(rf"\boxed{{{text}}}", gold)
        assert time.process_time() - began < 5, text


@pytest.mark.parametrize("piece", [r"\boxed{", r"\boxed{8}", r"\boxed ", "{", "}", "\\", "$", " "])
def test_reading_takes_time_linear_in_the_length(piece: str) -> None:
    for start in ("", r"\boxed{", "</think>"):
        completion = start + piece * 40_000
        began = time.process_time()
        MATH.score(completion, "8")
        MATH.is_formatted(completion)
        assert time.process_time() - began < 2, (start, piece)


PIECES = (
    *(r"\frac", r"\sqrt", r"\boxed{", r"\text{", r"\left(", r"\right)", r"\pm", r"\infty", r"\cup"),
    *(
        r"\in",
        r"\begin{pmatrix}",
        r"\end{pmatrix}",
        "{",
        "}",
        "(",
        ")",
        "[",
        "]",
        "|",
        "^",
        "_",
        "!",
    ),
    *(
        "+",
        "-",
        "=",
        "<",
        ",",
        ";",
        "&",
        "$",
        "%",
        "x",
        "i",
        "e",
        "1",
        "2",
        "10",
        "0.5",
        "1/2",
        " or ",
    ),
    *(r"\\", " ", "²", "π"),
)
expressions = st.lists(st.sampled_from(PIECES), max_size=9).map("".join)


@BY_CHANCE
@given(completion=st.one_of(texts, expressions), answer=st.one_of(st.none(), expressions, texts))
@example(completion=r"\boxed{²}", answer="²")
@example(completion=r"\boxed{\frac}", answer=r"\frac")
def test_nothing_breaks_it_and_no_completion_without_an_answer_scores(
    completion: str, answer: str | None
) -> None:
    assert isinstance(MATH.is_formatted(completion), bool)
    score = MATH.score(completion, answer)
    assert score in (0.0, 1.0)
    if score:
        assert r"\boxed" in completion
    assert MATH.score(completion.replace(r"\boxed", ""), "1") == 0


@BY_CHANCE
@given(answer=expressions)
def test_a_gold_that_is_parsed_passes_the_self_test(answer: str) -> None:
    if MATH.can_parse(answer):
        assert MATH.score(MATH.render(answer), answer) == 1
        assert MATH.score(MATH.render(MATH.wrong(answer)), answer) == 0


@BY_CHANCE
@given(first=expressions, second=expressions)
def test_equal_is_alike_in_either_order(first: str, second: str) -> None:
    one, other = MATH.parse(first), MATH.parse(second)
    if one is not None and other is not None:
        assert MATH.equal(one, other) == MATH.equal(other, one)
        assert MATH.equal(one, one)


def test_scores_are_the_same_under_another_hash_seed() -> None:
    asked = EXPRESSIONS[::4]
    program = (
        "import json, sys\nfrom regrpo.core.verifiers import VERIFIERS\nmath = VERIFIERS['math']\n"
        "print([math.score(math.render(a), b) for a, b, _ in json.load(sys.stdin)])"
    )
    said = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(asked),
        env=os.environ | {"PYTHONHASHSEED": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(said.stdout) == [score for _, _, score in asked]


def test_the_limits_count_what_is_worked_out() -> None:
    for text in ("x^{900}", "2^{2008}", "(x+1)^{100}", "4000!", r"\binom{2000}{1000}", "x^{2n+1}"):
        assert latex.is_small(text), text
    for text in ("x^{1100}", "(a+b+c)^{20}", "2^{99999}", "9999!", "x^{10^{10}}", r"\foo{x}", "(1"):
        assert not latex.is_small(text), text


def test_without_the_package_the_pip_command_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "regrpo.core.answers.algebra", raising=False)
    monkeypatch.delattr("regrpo.core.answers.algebra", raising=False)
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(CannotCheck, match=r"pip install 'regrpo\[math\]'"):
        get_verifier("math")


def test_importing_verifiers_loads_no_algebra() -> None:
    program = "import sys, regrpo.core.verifiers; print('sympy' in sys.modules)"
    said = subprocess.check_output([sys.executable, "-c", program], cwd=ROOT, text=True)
    assert said.strip() == "False"
