"""An example verifier of your own. Name it in a profile:

`prepare.verifier: custom.verifiers:TimeOfDay`, `verifier_settings: {within: 5}`.

A class says how an answer is read (`parse`), which two are the same (`equal`), and what is wrong
beside a right one (`wrong`, for the gate's self-test). DVC watches this file alone for prepare,
sft, select and model_card: it may import packages and regrpo.core, and nothing else of this
repository. docs/rewards.md has the rest.
"""

import re

from pydantic import Field

from regrpo.core.answers.protocol import NO_ROW, Verifier
from regrpo.core.settings import Section

DAY = 24 * 60
TIME = re.compile(r"([0-9]{1,2})[:.]([0-9]{2})(?: ?([ap])\.?m\.?)?", re.IGNORECASE)


class TimeOfDay(Verifier):
    """`14:30`, `2:30 pm` and `2.30 P.M.` are one time; it stands in the answer tag."""

    wants = "the time of day"
    kind = "a time of day"

    class Settings(Section):
        # Minutes by which an answer may be off.
        within: int = Field(default=0, ge=0, lt=60)

    def parse(self, text, row=NO_ROW):
        """Minutes since midnight; None for what is no time."""
        found = TIME.fullmatch(text.strip())
        if found is None:
            return None
        hour, minute = int(found[1]), int(found[2])
        if found[3]:
            if not 1 <= hour <= 12:
                return None
            hour = hour % 12 + (12 if found[3] in "pP" else 0)
        return 60 * hour + minute if hour < 24 and minute < 60 else None

    def equal(self, gold, found):
        """Symmetrical, and round the clock: 23:59 and 0:01 are two minutes apart."""
        apart = (gold - found) % DAY
        return min(apart, DAY - apart) <= self.settings.within

    def wrong(self, answer, row=NO_ROW):
        """The next time that is none of the gold ones."""
        golds = self.require_golds(answer, row)
        time = golds[0]
        while any(self.equal(gold, time) for gold in golds):
            time = (time + 1) % DAY
        return f"{time // 60}:{time % 60:02}"
