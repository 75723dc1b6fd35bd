"""Semi-supervised training: the terms added to the supervised loss, one per file.

    L = L_sup + sum over terms of weight x term(batch)

``loss`` adds them up; ``term`` defines the interface.
"""
