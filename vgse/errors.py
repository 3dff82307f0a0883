"""The one kind of error that is shown without a traceback."""


class UserError(ValueError):
    """A mistake in what a user gave: one line that names the file or field, and the remedy.

    Commands print it and exit with status 2. Every other exception is a bug and keeps its
    traceback.
    """
