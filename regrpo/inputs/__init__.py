"""What goes in, and the gate before anything trains.

Imports core.

sources, readers             rows of a source; of the files that people bring
formats, conversations       how a row is read, and chat turns in it
examples                     what rows become: questions, answers and prompts
splits                       sft, train, dev and eval by class; columns that are kept
base_models                  base weights: from scratch, local, GGUF, hub
model_folders, inspection    what a folder holds; one look at the model as it loads
selection                    which training questions go on to grpo, by their pass rates
gate                         every check on every split, and the verdict
checks, expectations         what a check makes sure of, by Great Expectations
round_trip                   texts there and back, by the base's template and tokenizer
duplicates, scratch_db       what repeats, in more rows than memory holds
"""
