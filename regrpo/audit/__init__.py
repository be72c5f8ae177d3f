"""Is a run what its records say, and can it be made again? Imports core to report.

audit                          the rules of a stage and of the whole, and the result
evidence, findings             what rules look at, and what they say
lock_rules                     run.json, dvc.lock, dvc.yaml, profile
byte_rules, input_rules        outputs, cache, remote; inputs
origin_rules, mlflow_rules     code, hub, environment; MLflow (its rules are `Tracker`'s)
reproduce, worktree, verdict   making a run again, and judging it
file_differences               where two outputs depart
"""
