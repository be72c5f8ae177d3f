"""Before a run: will it train, will it fit, how long will it take? Imports core to compare.

check, plan, findings           all that `check` and `plan` find; the whole plan; a finding
workspace                       path, packages, interpreter, dvc.lock, the disk's room before a run
rules, parse_errors             names a profile uses; keys that do not parse
consistency, library_settings   numbers against each other; libraries' own word
machine                         GPU, processes, packages, a vLLM server
model_shape, workload           sizes of the model and of the work
memory, advice                  peaks by phase and term; what would fit
step_time                       a roofline
"""
