"""The error that says why a file is not shared."""


class Unfit(ValueError):
    """A file cannot be shared. The message is the reason, which is shown after the file's name."""
