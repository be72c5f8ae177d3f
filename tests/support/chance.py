"""What hypothesis draws for the tests by chance: texts that attack, values of any kind, bytes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from regrpo.core.errors import RegrpoError

BY_CHANCE = settings(
    max_examples=50,
    deadline=None,
    derandomize=True,  # the same examples everywhere: a failure is everybody's
    database=None,
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

PIECES = (
    *(
        "<think>",
        "</think>",
        "<answer>",
        "</answer>",
        "####",
        "<|im_end|>",
        "{question}",
        "{{7*7}}",
    ),
    *("12", "-0", "1,000", "١٢", "²", "9" * 5000, "1e400", "NaN", "null", "[{", "]}", "\\", '"'),
    *("\x00", "\x1b[31m", "\u202e", "\u200b", "\ud800", "\ufeff", "\r\n", "\n\n", "\t", " "),
    *("```", "~~~", "---", "|", "<!--", "-->", "<script>", "](javascript:x)", "&amp;", "$x$", "*"),
    *("=", "+", ".", ",", ";", "'", "#", "%41", "../", "/", ":", "&a", "*a", "!!python/object:x"),
)

texts = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=8)), max_size=8).map("".join)
"""Text, with the pieces that formats, YAML, Markdown and terminals read as something else."""

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.decimals(),
    texts,
    st.binary(max_size=8),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=8,
)
"""What a row's cell may hold."""

json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=8,
)


def damaged(whole: bytes) -> st.SearchStrategy[bytes]:
    """A file with a part of it cut off, left out, or overwritten by something else."""
    places = st.integers(0, len(whole))
    part = st.one_of(st.binary(max_size=12), texts.map(lambda t: t.encode(errors="replace")))
    return st.builds(
        lambda start, length, other: whole[:start] + other + whole[start + length :],
        places,
        st.one_of(st.just(0), st.integers(0, 20), st.just(len(whole))),
        part,
    )


@contextlib.contextmanager
def read_or_refused(*places: str) -> Iterator[None]:
    """Allow an error of ours that names one of the places; any other ends the test."""
    try:
        yield
    except RegrpoError as error:
        if not any(place in str(error) for place in places) or len(str(error)) > 20_000:
            raise AssertionError(f"no short error that names {places}") from error
