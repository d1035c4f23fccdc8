"""The one base of every error that a user can mend."""


class BakeoffError(ValueError):
    """Bad input or a missing file: the command line prints the message and no traceback."""
