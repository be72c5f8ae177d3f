"""When a GRPO run ends before its last step: a rule over the logged history.

Being a function of nothing else, it says the same in a resumed run as in one never killed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from pydantic import Field, model_validator

from regrpo.core.settings import Problem, Section, invalid


class EarlyStopping(Section):
    """Ends a run whose reward no longer rises, or that drifts too far from its reference model.

    `reward_patience`: logged steps without a new best mean of the last `smoothing` logged rewards.
    `kl_ceiling`: the largest KL divergence from the reference model, in nats per token as TRL logs
    it.
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
        """{reason, step} of the first logged step at which the run has to end, if there is one."""
        rewards: list[float] = []
        best = float("-inf")
        best_at = 0
        for row in rows:
            step = int(row["step"])
            kl = row.get("kl", 0.0)
            if self.kl_ceiling is not None and kl > self.kl_ceiling:
                reason = f"KL divergence {kl:.4g} above the ceiling {self.kl_ceiling:g}"
                return {"reason": reason, "step": step}
            if "reward" not in row:
                continue
            rewards.append(row["reward"])
            if self.reward_patience is None or len(rewards) < self.smoothing:
                continue
            smoothed = sum(rewards[-self.smoothing :]) / self.smoothing
            if smoothed > best:
                best = smoothed
                best_at = len(rewards)
            elif len(rewards) - best_at >= self.reward_patience:
                reason = (
                    f"no reward (mean of {self.smoothing}) above {best:.4g} for "
                    f"{self.reward_patience} logged steps"
                )
                return {"reason": reason, "step": step}
        return None
