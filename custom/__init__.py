"""Yours.

Reward functions, and lm-eval tasks in eval_tasks/. DVC watches this folder for grpo and evaluate.
"""
