"""An example reward of your own. Name it in a profile, with its weight:

`grpo.reward_funcs: {exact_answer: 1.0, "custom.rewards:short_thought": 0.1}`.

TRL calls a reward with the completions of a batch and the data's columns (question, answer, …, and
those of prepare.keep) and wants one number a completion; None means "not applicable to this one".
docs/rewards.md has the rest.
"""


def short_thought(completions, **columns):
    """1 for a thought of at most four characters, falling to 0 at twenty.

    None if there is no thought.
    """

    def score(text):
        # Not by a regular expression: <think>(.*?)</think> takes hours for a megabyte of <think>.
        _, _, rest = text.partition("<think>")
        thought, closed, _ = rest.partition("</think>")
        return max(0.0, min(1.0, (20 - len(thought)) / 16)) if closed else None

    return [score(one if isinstance(one, str) else one[-1]["content"]) for one in completions]
