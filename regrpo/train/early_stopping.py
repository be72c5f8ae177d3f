"""When a GRPO run ends before its last step: a rule over the logged history, and nothing but that.

Being a function of the history alone, it says the same in a resumed run as in one that was never
killed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from pydantic import Field, model_validator

from regrpo.core.settings import Problem, Section, invalid


class EarlyStopping(Section):
    """`reward_patience`.

    Logged steps without a new best mean of the last `smoothing` logged rewards.

    `kl_ceiling`: the largest KL divergence from the reference model, as TRL logs it (in nats per
    token).
    """

    reward_patience: int | None = Field(default=None, gt=0)
    smoothing: int = Field(default=10, gt=0)
    kl_ceiling: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _watches_something(self) -> Self:
        if self.reward_patience is None and self.kl_ceiling is None:
            raise invalid(Problem("", "set `reward_patience`, `kl_ceiling` or both"))
        return self

    def verdict(self, rows: Sequence[Mapping[str, float]]) -> dict[str, Any] | None:
        """{reason, step} of the first logged step at which the run has to end.

        None where it may go on.
        """
        rewards: list[float] = []
        best, best_at = float("-inf"), 0
        for row in rows:
            step = int(row["step"])
            if self.kl_ceiling is not None and row.get("kl", 0.0) > self.kl_ceiling:
                return {
                    "reason": f"KL divergence {row['kl']:.4g} above the ceiling {self.kl_ceiling:g}",
                    "step": step,
                }
            if "reward" not in row:
                continue
            rewards.append(row["reward"])
            if self.reward_patience is None or len(rewards) < self.smoothing:
                continue
            smoothed = sum(rewards[-self.smoothing :]) / self.smoothing
            if smoothed > best:
                best, best_at = smoothed, len(rewards)
            elif len(rewards) - best_at >= self.reward_patience:
                told = f"no reward (mean of {self.smoothing}) above {best:.4g} for {self.reward_patience} logged steps"
                return {"reason": told, "step": step}
        return None
