"""Text and numbers as people see them."""

from __future__ import annotations

import html
import io
import json
import logging
import os
import re
import sys
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from regrpo.core import text

HOSTILE = "a\x1b[31m\u202eb\x00"


def test_what_does_not_print_is_spelled_out() -> None:
    assert text.visible(HOSTILE) == text.one_line(HOSTILE) == "a\\x1b[31m\\u202eb\\x00"
    assert text.visible("a\n\tb") == "a\n    b"
    assert text.one_line("a\n\tb") == "a⏎⇥b"


@pytest.mark.parametrize("shown", [text.visible, text.one_line])
def test_long_text_is_cut_to_its_limit(shown: object) -> None:
    assert callable(shown)
    assert shown("x" * 50, 10) == "x" * 9 + "…"
    assert shown("x" * 10, 10) == "x" * 10
    assert len(shown("\x00" * 50, 10)) == 10


def test_no_text_opens_a_comment() -> None:
    assert "<!--" not in text.visible("<!-- varies from run to run: begin -->")
    assert "<!--" not in text.prose("<!-- begin -->")


@pytest.mark.parametrize(
    "shown", ["a|b", "`", "``a` ", "<think>", "a\nb", "\\", "", " x", "x" * 400, "<!-- c -->"]
)
def test_a_code_span_shows_its_text_in_a_table_cell(shown: str) -> None:
    table = f"| a | b |\n|---|---|\n| {text.code(shown)} | end |\n"
    page = MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(table)
    cells = re.findall(r"<td><code>(.*?)</code></td>\n<td>end</td>", page)
    assert [html.unescape(cell) for cell in cells] == [text.one_line(shown, 300)]


def test_prose_is_no_markup() -> None:
    shown = "# *a* [b](c) `d` <b>e</b> ~~f~~ $g$\nh"
    page = MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(text.prose(shown))
    assert html.unescape(page) == f"<p>{shown}</p>\n".replace("\n", " ", 1)


def test_a_fence_is_longer_than_any_in_its_text() -> None:
    assert text.fence("```\na", "text") == "````text\n```\na\n````"


def test_a_label_of_a_diagram_holds_no_grammar() -> None:
    assert text.mermaid('a"]--x') == "a#34;#93;--x"


def test_results_are_said_by_their_kind() -> None:
    assert text.score(0.28, "binary") == "28.0 %"
    assert text.score(0.28765, "continuous") == "0.2877"
    assert text.score(0.28765) == "0.288"
    assert text.estimate(0.28, (0.232, 0.333), "binary") == "28.0 % [23.2, 33.3]"
    assert text.change(0.687, (0.633, 0.74), "binary") == "+68.7 points [+63.3, +74.0]"
    assert text.change(-0.031, (-0.05, 0.01)) == "-0.031 [-0.050, +0.010]"
    assert text.size(None, "binary") == "not available"
    assert text.size(0.049, "binary") == "4.9 points"


def test_p_values_are_said_alike_in_tables_and_sentences() -> None:
    assert [text.p_value(p) for p in (0.0004, 0.0312, None)] == ["< 0.001", "0.031", "—"]
    assert [text.p_equals(p) for p in (0.0004, 0.0312)] == ["p < 0.001", "p = 0.031"]


def test_whether_a_difference_is_told_from_zero() -> None:
    assert text.distinguishable((-0.1, 0.2)) == "not distinguishable from zero"
    assert text.distinguishable((0.1, 0.2)) == "distinguishable from zero"


def test_numbers() -> None:
    shown = [text.number(value) for value in (1234567, 1234.5, 0.00123456, 0, None)]
    assert shown == ["1,234,567", "1,234.500", "0.00123", "0", "not available"]
    assert [text.count(n, "run") for n in (1, 1200)] == ["1 run", "1,200 runs"]
    assert [text.or_dash(value, ".2f") for value in (1.234, None)] == ["1.23", "—"]


def test_neighbouring_numbers_are_joined() -> None:
    assert text.ranges([9, 3, 4, 5]) == "3–5, 9"
    assert text.ranges([]) == ""
    assert text.ranges(range(0, 40, 2)) == "0, 2, 4, 6, 8, 10, …, 38"


# --- secrets --------------------------------------------------------------------------------------

SECRET = "S3cr3t-w0rd"
ADDRESSES = {
    "http://127.0.0.1:5000": "http://127.0.0.1:5000",
    f"http://bob:{SECRET}@127.0.0.1:5000": "http://127.0.0.1:5000",
    f"https://{SECRET}-of-a-token@example.org/team/repo.git": "https://example.org/team/repo.git",
    f"postgresql+psycopg2://u:{SECRET}@h:1/db": "postgresql+psycopg2://h:1/db",
    f"postgresql+psycopg2://u:{SECRET}#x@h:1/db": "postgresql+psycopg2://***",
    f"postgresql+psycopg2://u:x/{SECRET}@h:1/db": "postgresql+psycopg2://***",
    f"postgresql+psycopg2://u:x?{SECRET}@h:1/db": "postgresql+psycopg2://***",
    f"postgresql+psycopg2://u:{SECRET}@x@h:1/db": "postgresql+psycopg2://***",
    f"postgresql+psycopg2://u:x@{SECRET}@h:1/db": "postgresql+psycopg2://***",
    f"postgresql+psycopg2://u:a%40%2F{SECRET}@h:1/db": "postgresql+psycopg2://h:1/db",
    f"postgresql+psycopg2://u@h:1/db?password={SECRET}": "postgresql+psycopg2://h:1/db",
    f"postgresql+psycopg2://h:1/db?password=x@{SECRET}": "postgresql+psycopg2://***",
    f"postgresql+psycopg2://u:p@[::1]:1/db?password={SECRET}": "postgresql+psycopg2://[::1]:1/db",
    f"mysql://u:p@h/db#{SECRET}": "mysql://h/db",
    f"https://h/a?X-Amz-Signature={SECRET}#b": "https://h/a",
    f"s3://bucket/path?token={SECRET}": "s3://bucket/path",
    "sqlite:////home/a%20b/%23/mlflow.db?mode=ro": "sqlite:////home/a b/#/mlflow.db",
    "file:///home/me@work/mlruns": "file:///home/me@work/mlruns",
    "databricks": "databricks",
    "mlruns/here": "mlruns/here",
    f"u:{SECRET}@h:5432/db": "h:5432/db",
}


@pytest.mark.parametrize(("address", "shown"), ADDRESSES.items())
def test_an_address_is_shown_without_user_password_query_and_fragment(
    address: str, shown: str
) -> None:
    assert text.shown_address(address) == shown
    assert SECRET not in shown


def parts_as_read(address: str) -> set[str]:
    """What the databases' library takes an address for, as it would stand in its messages."""
    from sqlalchemy import make_url

    url = make_url(address)
    read = [url.password, url.host, url.database, *url.query.values()]
    return {str(part) for part in read if part}


@pytest.mark.parametrize("address", [one for one in ADDRESSES if SECRET in one and "://" in one])
def test_a_message_that_quotes_an_address_or_its_parts_holds_no_secret(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    said = [f"no way to {address}!", f"could not connect ({address})"]
    said += [f'could not translate host name "{part}"' for part in parts_as_read(address)]
    for message in said:
        assert SECRET not in text.without_secrets(message)


@pytest.mark.parametrize(
    "name",
    [
        "HF_TOKEN",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "MLFLOW_TRACKING_PASSWORD",
        "MLFLOW_TRACKING_TOKEN",
        "JUDGE_API_KEY",
    ],
)
def test_a_secret_of_the_environment_is_hidden_in_messages(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, SECRET)
    assert text.without_secrets(f"401: {SECRET}.") == "401: ***."
    assert text.without_secrets(f"a{SECRET}b") == f"a{SECRET}b"


def test_what_is_no_secret_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "disabled")
    monkeypatch.setenv("HF_TOKEN_PATH", "/home/me/.token")
    monkeypatch.setenv("MY_TOKEN", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://regrpo@127.0.0.1:1/db?sslmode=require")
    line = "regrpo: disabled, true, /home/me/.token, require, https://example.org/@user?q=1#a"
    assert text.without_secrets(line) == line


def test_a_user_in_any_uri_of_a_message_is_hidden() -> None:
    said = text.without_secrets(f"cannot reach https://me:{SECRET}@dvc.example.org/store")
    assert said == "cannot reach https://***@dvc.example.org/store"


# --- terminals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "character",
    [
        *map(chr, range(32)),
        *map(chr, range(0x7F, 0xA0)),
        *"\u200b\u200d\u202e\u2066\u2028\ufeff\u034f\u3164\ufe0f\U000e0041\U000e0101\udc80",
    ],
)
def test_a_character_that_acts_or_hides_is_spelled_out(character: str) -> None:
    shown = text.one_line(f"a{character}b")
    assert shown.isprintable()
    assert len(shown) > 2
    assert character not in shown


def test_whatever_is_printed_or_logged_hides_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    hostile = f"{HOSTILE}\r{SECRET}"
    with text.shown_output():
        print(hostile, "\rand", hostile)
        sys.stdout.writelines([hostile, "\n"])
        handler = logging.StreamHandler()
        logging.getLogger("hostile").addHandler(handler)
        logging.getLogger("hostile").error(hostile)
        try:
            raise ValueError(hostile)
        except ValueError:
            logging.getLogger("hostile").exception("raised")
    logging.getLogger("hostile").removeHandler(handler)
    said = capsys.readouterr()
    for stream in (said.out, said.err):
        assert stream.replace("\n", "").isprintable()
        assert "\\x1b[31m\\u202eb\\x00" in stream
        assert SECRET not in stream


def test_a_stage_keeps_its_progress_bars_and_nothing_else(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with text.shown_output(progress=True):
        print("\r 50 %\r\x1b[A", file=sys.stderr)
        print("\r", flush=True)
    said = capsys.readouterr()
    assert said.err == "\r 50 %\r\\x1b[A\n"
    assert said.out == "\\r\n"


def test_json_stays_json(capsys: pytest.CaptureFixture[str]) -> None:
    content = {"name": HOSTILE + "\x7f\x9b\n"}
    with text.shown_output():
        print(json.dumps(content))
    said = capsys.readouterr().out
    assert said.rstrip("\n").isprintable()
    assert json.loads(said) == content


def test_a_shown_stream_is_the_stream_in_everything_else() -> None:
    with Path(os.devnull).open("w", encoding="utf-8") as stream:
        shown = text.Shown(stream)
        assert shown.fileno() == stream.fileno()
        assert not shown.isatty()
        assert shown.write("abc") == 3
    assert text.Shown(io.StringIO()).write("\x1b") == 1


def test_an_at_sign_in_a_path_makes_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGE", "docker://ghcr.io/org/img@sha256:0123")
    monkeypatch.setenv("SOURCE", "git+https://github.com/org/repo@main")
    monkeypatch.setenv("DATABASE", "sqlite:////home/me/projects/user@corp/mlflow.db")
    for words in ("org img sha256", "repo main", "projects user corp"):
        assert text.without_secrets(words) == words


@pytest.mark.parametrize(
    "name", ["PGPASSWORD", "MYSQL_PWD", "SMTP_PASS", "KEY_PASSPHRASE", "DB_PASSWORD", "HF_TOKEN"]
)
def test_variables_named_like_secrets_are_hidden(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "correct-horse")
    assert text.without_secrets("it is correct-horse") == "it is ***"


def test_other_variables_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OLDPWD", "TOKENIZERS_PARALLELISM", "PASSENGERS", "COMPASS"):
        monkeypatch.setenv(name, "correct-horse")
    assert text.without_secrets("it is correct-horse") == "it is correct-horse"
