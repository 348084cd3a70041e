"""The exceptions that end a command; the command line prints each as a single line and knows its exit code."""


class InputError(Exception):
    """Wrong input (a file, a key, a value). The message names it and says what to do."""


class UnreadableFileError(InputError):
    """An image or label file is missing or damaged; `on_bad_image: skip` leaves its pair out of a training."""


class NonFiniteLossError(InputError):
    """A loss became NaN or infinite; the message names the loss and the step."""


class Stopped(Exception):
    """A signal asked the run to end, and it has saved what it needs to continue.

    Args:
        signum: The signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum
        self.continue_with = "the same command"
