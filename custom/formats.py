"""An example format of your own. Name it in a profile: `prepare.format: custom.formats:clock`.

A function gets a row of the source as a dict, and returns one of `question`, `answer` and
`solution`, as format question_answer reads them. DVC watches this file alone for prepare: it may
import packages and regrpo.core, and nothing else of this repository. docs/data.md has the rest.
"""


def clock(row):
    """`{"start": {"hour": 9, "minute": 50}, "add": 25, "end": "10:15"}`: when is 9:50 + 25 min?"""
    start = row["start"]
    minutes = start["minute"] + row["add"]
    return {
        "question": f"{start['hour']}:{start['minute']:02}+{row['add']}=",
        "answer": row["end"],
        # What sft shows: the reasoning, and the answer as the verifier wants it; None for none.
        "solution": f"<think>{minutes}</think><answer>{row['end']}</answer>",
        # A further column, for rewards and tasks: `prepare.keep: [new_hour]`.
        "new_hour": minutes >= 60,
    }
