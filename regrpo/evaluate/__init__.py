"""Measuring.

Imports core, inputs and train.

results          the one schema of metrics.json, answers.json and samples.parquet
tasks, harness   finding lm-eval's tasks by name (ours, controls too: stages/eval_tasks/), and
                 asking a model
stats            estimates, paired comparisons, detectable effects
summary          metrics.json and answers.json from every model's answers
text_overlap     ROUGE-L and chrF
picture          comparison.png
"""
