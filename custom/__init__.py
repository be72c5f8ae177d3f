"""Yours.

Reward functions, and lm-eval tasks in eval_tasks/. DVC watches this folder for validate, grpo and
evaluate.
"""
