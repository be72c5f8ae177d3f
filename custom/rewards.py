"""An example reward of your own. Name it in a profile, with its weight:

`grpo.reward_funcs: {exact_answer: 1.0, "custom.rewards:short_thought": 0.1}`.

TRL calls a reward with the completions of a batch and the data's columns (question, answer, …, and
those of prepare.keep) and wants one number a completion; None means "not applicable to this one".
docs/rewards.md has the rest.
"""

import re


def short_thought(completions, **columns):
    """1 for a thought of at most four characters, falling to 0 at twenty.

    None if there is no thought.
    """

    def score(text):
        thought = re.search(r"<think>(.*?)</think>", text, re.DOTALL)
        return None if thought is None else max(0.0, min(1.0, (20 - len(thought.group(1))) / 16))

    return [score(one if isinstance(one, str) else one[-1]["content"]) for one in completions]
