"""Drop-in replacements for the contrastive losses of other libraries, one module a library.

Each module has the class names, arguments and results of the library that it is named after, and
imports nothing of it: a user changes one import line. What differs is said in each module.
"""
