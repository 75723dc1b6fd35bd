"""Semi-supervised training: what is added to the supervised loss, one term a file.

    L = L_sup + sum over terms of weight x term(batch)

``loss`` puts them together; ``term`` says what a term is.
"""
