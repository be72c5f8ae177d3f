"""MLflow: a view of the files, and the only package that imports mlflow.

Imports core to records.

follower, sync, passes, state       one process a repository, or `regrpo sync`
store, writer                       an experiment; a journal becomes a stage's run
rows, pipeline_rows                 what a stage's run and a row hold: parameters, metrics, tags
models, datasets, tables, notes     the rest of what people look at there
reader, lookup, registry, address   MLflow read only; names; models; where it is
"""
