"""What goes in, and the gate before anything trains.

Imports core.

sources, formats, examples   rows of a source, and the examples they become
splits                       sft, train, dev and eval by class of question
base_models                  base weights: from scratch, local, GGUF, hub
gate                         every check on every split, and the verdict
checks, expectations         what a check makes sure of, by Great Expectations
duplicates, scratch_db       what repeats, in more rows than memory holds
"""
