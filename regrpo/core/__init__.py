"""What every stage stands on.

Imports no other package of regrpo.

errors                        Refused and CannotCheck; a full disk, rights, memory in one line
files                         written whole or not at all; hashes; Parquet and JSON
git, dvc                      what git and DVC say of a repository
pipeline                      dvc.lock and records at a revision, and whether they fit
profiles, settings, library   profiles, their sections, and libraries' own keys
hub                           what users bring: data/raw/, models/raw/, a hub commit
verifiers, answers/           what a correct answer is, and the kinds of answers
custom/                       the user's own code: loaded, guarded, tried in a child process
conversation, rendering       how text is rendered, cut, encoded, decoded and stopped
tokenizers                    saved to the same bytes; the one of models from scratch
hardware, processes           device, threads, seeds; several processes, locks
text                          foreign text made safe, and the formats of numbers
"""
