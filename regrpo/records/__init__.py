"""What a run leaves behind, and how it is found again.

Imports core to evaluate.

Observers, as stage_run and journal call themselves: no other output of a stage depends on them,
and a test runs the pipeline without them.

stage_run                   the frame around a stage, and its run.json
record                      run.json as a checked model
journal, follower_process   what a stage tells the tracker, and starting it
journal_files               what a journal's files must hold
watcher, output_lock        a stage ends with its dvc, and is its outputs' only writer
lock_copy                   dvc.lock that a kill cut off is put back
find                        the one resolver of names of runs
graph                       which run made what from what
hashing                     bytes hashed: workspace, git, cache, remote
"""
