"""Yours.

Reward functions, verifiers, formats, and lm-eval tasks in eval_tasks/. DVC watches the folder for
validate, grpo and evaluate, formats.py for prepare, verifiers.py for all but base_model.
"""
