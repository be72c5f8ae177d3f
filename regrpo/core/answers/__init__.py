"""Kinds of answers that can be checked.

protocol      a verifier, and how an answer stands in a completion
integers      exact_int and final_number
number        decimals, fractions, percent, units; with a tolerance
choice        one of the row's options
exact_text    text, normalised
reasoning_gym what the scorer of a reasoning-gym task says
expression    mathematics in LaTeX
latex         \\boxed{…}, and how large an expression is
algebra       expressions read and compared (math-verify, SymPy)
"""
