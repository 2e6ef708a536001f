"""Why a file is left out of what is shared."""


class Unfit(ValueError):
    """The message is the reason, which follows the file's name."""
