"""Runs against each other, and the promotion of one.

Imports core to audit.

compare, runs                     the comparison, and the runs it reads
relations                         what differs; which runs are seeds of one setting
questions, seeds, seed_tests      paired tests over questions and over seeds
sentences, blocks, render, page   what is said, and how it is shown
promote, promotion_rules          MLflow's registry, and who may be champion
"""
