"""The checks of the gate: what each makes sure of, and what it looks at in a row.

`derive` computes columns of some rows at a time (prompt tokens, what repeats where, the verifier's
scores, …), on which the expectations of the checks are declared. In a derived column null means
"nothing wrong" or "already reported by another check": expectations skip nulls, so that one fault
is reported once.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from regrpo.core.answers.protocol import GOLDS, Verifier, gold_texts
from regrpo.core.conversation import Prompt
from regrpo.inputs.duplicates import CHAINS, SPELLINGS, spellings
from regrpo.inputs.formats import Canonical, stream_safe

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]


@dataclass(frozen=True)
class Check:
    """What a check makes sure of, and what to do if it fails."""

    name: str
    holds: str
    remedy: str


_OWN_ID = "Give every row its own id, or remove the id column."
_REPEATS = (
    "Remove the repeats from the source, or set prepare.drop_duplicates: true"
    " to keep the first of each."
)
_LEAKS = (
    "Remove them from one split's source, or set prepare.drop_duplicates: true"
    " to drop them from training."
)
_SELF_TEST = "Change the question or prompt template, or choose another prepare.verifier."

_ALL = (
    Check(
        "schema",
        "columns and types are the ones that the stages read",
        "Make data/prepared again: `dvc repro`.",
    ),
    Check(
        "row_count",
        "the split has enough rows",
        "Bring more data, or lower validate.min_rows.",
    ),
    Check(
        "id_present",
        "every row has an id",
        "Give every row an id, or none: prepare then numbers them.",
    ),
    Check("id_unique", "no id occurs twice in a split", _OWN_ID),
    Check("id_disjoint", "no id occurs in two splits", _OWN_ID),
    Check("not_empty", "no question or prompt is empty", "Fill in or remove the rows."),
    Check(
        "prompt_length",
        "every prompt fits: at least one token, at most the limit, "
        "as the base model's tokenizer counts",
        "Remove or shorten the rows, raise validate.max_prompt_tokens, "
        "or take a base model with a longer window.",
    ),
    Check("question_unique", "no question occurs twice in a split", _REPEATS),
    Check(
        "question_unique_normalised",
        "nor twice with other case, white space or Unicode forms",
        _REPEATS,
    ),
    Check(
        "class_unique",
        "dev and eval hold one question per canonical class: they are independent",
        _REPEATS,
    ),
    Check("disjoint", "no question occurs in two splits", _LEAKS),
    Check(
        "disjoint_normalised",
        "nor in two with other case, white space or Unicode forms",
        _LEAKS,
    ),
    Check(
        "disjoint_canonical",
        "nor in two as variants: questions of one canonical form",
        _LEAKS,
    ),
    Check(
        "valid_unicode",
        "text is Unicode scalars without U+FFFD, which stands where a decoder failed",
        "Read the source again in its own encoding and save it as UTF-8.",
    ),
    Check(
        "nfc",
        "text is in Unicode's form NFC",
        "Save the source with unicodedata.normalize('NFC', text).",
    ),
    Check(
        "no_control_characters",
        "text holds no control characters but newline and tab",
        "Remove them (\\r\\n becomes \\n).",
    ),
    Check(
        "no_special_tokens",
        "no question, answer or solution holds a special token of the base's tokenizer",
        "Take them out of the text: they end or open turns, and are gone from what is decoded. "
        "Tags that answers need must be plain tokens of the tokenizer (special: false).",
    ),
    Check(
        "no_unknown_tokens",
        "the base's tokenizer can write every prompt, answer and solution",
        "Take a base whose tokenizer knows these characters, or remove the rows.",
    ),
    Check(
        "one_beginning",
        "a prompt has one beginning-of-sequence token at most, and does not end by itself",
        "Take such tokens out of prepare.prompt_template, or give the base another template "
        "(base_model.chat_template).",
    ),
    Check(
        "template_keeps",
        "the chat template writes every word of a prompt and a solution, and opens no reasoning",
        "Give the base a template that does (base_model.chat_template), or set "
        "prepare.prompt_style: text.",
    ),
    Check(
        "answer_survives",
        "an answer that scores 1 does so after encoding and decoding, as the reward sees it",
        "Make the tags of the answer plain tokens of the base's tokenizer (special: false, and no "
        "normaliser that changes them), or take another base.",
    ),
    Check(
        "text_survives",
        "prompts, answers and solutions come back from the tokenizer as they are written",
        "Write the rows as the tokenizer does, or accept what it changes "
        "(validate.allow_lossy_tokenizer: true).",
    ),
    Check(
        "turn_ends",
        "what sft trains ends with a token at which generation stops",
        "Give the base a template that ends an assistant's turn with its end-of-sequence token "
        "(base_model.chat_template), or name it in the base's generation_config.json.",
    ),
    Check(
        "answer_parses",
        "the verifier can read every gold answer",
        "Correct the answers, or the prepare.verifier.",
    ),
    Check("gold_scores_1", "self-test: the gold answer scores 1", _SELF_TEST),
    Check(
        "solution_scores_1",
        "self-test: the worked solution scores 1",
        "Correct the solution: it must end in the gold answer in the verifier's form, "
        "and state no other.",
    ),
    Check("wrong_scores_0", "self-test: a wrong answer scores 0", _SELF_TEST),
    Check("empty_scores_0", "self-test: an empty completion scores 0", _SELF_TEST),
    Check(
        "echo_scores_0",
        "self-test: an echo of the question or the prompt scores 0",
        _SELF_TEST,
    ),
    Check(
        "contradiction_scores_0",
        "self-test: two answers that contradict each other score 0",
        _SELF_TEST,
    ),
)
CHECKS = {check.name: check for check in _ALL}
SCORES = tuple(name for name in CHECKS if "_scores_" in name)
"""The verifier's self-test; each is also the derived column that holds the score."""
VERIFIED = ("answer_parses", *SCORES)
"""The checks that need a verifier."""

IDENTITY = ("row", "id", "source_row", "question", "answer")
REPEATS = tuple(f"{name}_{where}" for name in SPELLINGS for where in ("again", "elsewhere"))
FAULTS = ("empty", "invalid", "control", "not_nfc", "unparsed")
ON_ROUND_TRIP = {
    "no_special_tokens": "special",
    "no_unknown_tokens": "unknown",
    "one_beginning": "framing",
    "template_keeps": "template",
    "answer_survives": "lost",
    "text_survives": "changed",
    "turn_ends": "unended",
}
"""The checks on what regrpo.inputs.round_trip finds, each with its column."""
TRIPS = ("prompt_tokens", *ON_ROUND_TRIP.values())
DERIVED = (*IDENTITY, "given_id", *TRIPS, *FAULTS, *SCORES, *REPEATS)
"""The columns of a derived frame; IDENTITY's say which row it is."""


def derive(
    start: int,
    rows: list[Row],
    repeats: Mapping[int, Row],
    canonical: Canonical,
    verifier: Verifier | None,
    trips: Sequence[Row],
) -> pd.DataFrame:
    """Compute the columns DERIVED of a split's rows, which are numbered from `start`.

    `repeats` is what `Repeats.of` says of each row that repeats anything, `trips` what
    `RoundTrip.columns` says of each.
    """
    import pandas as pd

    spelled = spellings(canonical)
    derived = []
    for index, (given, trip) in enumerate(zip(rows, trips, strict=True), start):
        row = given | trip | _text_faults(given)
        row |= _repeated(given, repeats.get(index, {}), spelled)
        row["row"] = index
        if given["id"] and given["id"].strip():
            row["given_id"] = given["id"]
        if verifier:
            row |= _self_test(given, verifier)
        derived.append(row)
    # Nullable integers: beside a null, plain ones become floats, and 70 tokens read "70.0".
    return pd.DataFrame(derived, columns=DERIVED).astype({"prompt_tokens": "Int64"})


def prompt_text(prompt: Prompt | None) -> str:
    """A prompt's text; of chat messages the contents, a line each."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(message["content"] or "" for message in prompt or [])


def _repeated(row: Row, repeats: Row, spelled: Mapping[str, Canonical]) -> Row:
    """The columns REPEATS: `_again` as the text that the split holds twice."""
    found: Row = {}
    for column, chain in CHAINS.items():
        for name in chain:
            found[f"{name}_elsewhere"] = repeats.get(f"{name}_elsewhere")
            if repeats.get(f"{name}_again"):
                found[f"{name}_again"] = spelled[name](row[column])
    return found


# The last two code points of each of Unicode's 17 planes, and U+FDD0 to U+FDEF, are noncharacters.
_NONCHARACTERS = "".join(
    chr(plane * 0x10000 + last) for plane in range(17) for last in (0xFFFE, 0xFFFF)
)
_INVALID = re.compile(f"[\ufdd0-\ufdef\ufffd{_NONCHARACTERS}]")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def _text_faults(row: Row) -> Row:
    """What is wrong with the row's texts, by the name of the derived column."""
    # Null and empty are alike: not_empty reports both, and the other checks neither.
    texts = {name: row[name] or "" for name in ("id", "question", "answer", "solution")}
    texts["prompt"] = prompt_text(row["prompt"])
    faults = {
        "empty": [name for name in ("question", "prompt") if not texts[name].strip()],
        "invalid": _characters(_INVALID, texts),
        "control": _characters(_CONTROL, texts),
        "not_nfc": [name for name, text in texts.items() if not _is_nfc(text)],
    }
    return {fault: "; ".join(found) or None for fault, found in faults.items()}


def _is_nfc(text: str) -> bool:
    return text.isascii() or unicodedata.is_normalized("NFC", stream_safe(text))


def _characters(pattern: re.Pattern[str], texts: Mapping[str, str]) -> list[str]:
    """Which texts hold characters of a pattern, as `question holds U+FFFD`."""
    found = []
    for name, text in texts.items():
        if text.isascii() and text.isprintable():  # as most are
            continue
        characters = sorted(set(pattern.findall(text)))
        if characters:
            codes = ", ".join(f"U+{ord(character):04X}" for character in characters)
            found.append(f"{name} holds {codes}")
    return found


def _self_test(row: Row, verifier: Verifier) -> Row:
    """The verifier's scores of completions whose score is known.

    Only `unparsed` if the verifier cannot read the gold answer.
    """
    gold = row["answer"]
    if not verifier.can_parse(gold, row):
        return {"unparsed": _unparsed(gold_texts(gold, row))}
    other = verifier.wrong(gold, row)
    right, wrong = verifier.render(gold), verifier.render(other)

    def most(*completions: str) -> float:
        return max(verifier.score(one, gold, row) for one in dict.fromkeys(completions))

    # A model finds whatever pays: repeating the question, plain or as its answer, or stating two.
    echoes = (row["question"] or "", prompt_text(row["prompt"]))
    scores = {
        "gold_scores_1": min(map(most, map(verifier.render, gold_texts(gold, row)))),
        # In either order: a comparison that is not symmetrical judges by who is asked first.
        "wrong_scores_0": max(most(wrong), verifier.score(right, other, row | {GOLDS: None})),
        "empty_scores_0": most(""),
        "echo_scores_0": most(*echoes, *map(verifier.render, echoes)),
        "contradiction_scores_0": most(
            f"{right}\n{wrong}", f"{wrong}\n{right}", verifier.render(f"{gold} or {other}")
        ),
    }
    if row["solution"] is not None:
        scores["solution_scores_1"] = most(row["solution"])
    return scores


def _unparsed(golds: Sequence[str]) -> str:
    """The gold answers of a row that cannot be parsed."""
    return ", ".join(map(repr, golds)) or "null"
