"""The one exception that a user's mistake raises; the command line prints it as a single line and exits with 2."""


class InputError(Exception):
    """Wrong input (a file, a key, a value). The message names it and says what to do."""


class NonFiniteLossError(InputError):
    """A loss became NaN or infinite; the message names the loss and the step."""
