"""A run as a folder to hand on, and whether such a folder is whole. Imports core to plan.

release             a run's files, card, provenance and hashes, written whole or not at all
layout              what lies where in a released folder
handover            the card, the licence and the notice as a released folder has them
crate               the provenance as an RO-Crate
signature           OpenSSF model signatures
hub                 the hub's names, and one commit of a folder there
publish             a released folder, verified and put onto the hub
verify              whether a released folder is whole; Python's own library is enough
"""
