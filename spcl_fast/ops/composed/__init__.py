"""Compositions of ops: merging over sets of references, memory banks, pairs of equal index."""
