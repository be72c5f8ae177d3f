"""Around TRL's trainers: rewards, callbacks, checkpoints, several processes, the doctor.

Imports core and inputs.
"""
