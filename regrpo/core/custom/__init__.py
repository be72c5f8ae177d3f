"""The user's own code in custom/.

loading   imported by name, and what it raises in one line; what stands alone
guard     a verifier of theirs: its faults are refusals by name and row
probe     imported in a child process, which may end or hang without harm
"""
