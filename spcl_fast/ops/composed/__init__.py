"""What is made of ops: several sets of references, a memory bank, pairs of one index."""
