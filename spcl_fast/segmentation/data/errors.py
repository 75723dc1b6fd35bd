"""The error that every reader of the user's files raises."""


class DataError(ValueError):
    """A problem with the user's files; the message is one sentence that names the file."""
