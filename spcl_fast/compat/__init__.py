"""Drop-in replacements for the contrastive losses of other libraries, one module per library.

Each module has the class names, arguments and results of the library that it is named after, and
imports nothing from it, so only the import line changes. Each module lists what differs.
"""
