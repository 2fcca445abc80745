"""The exceptions that the toolkit shows to its user."""

import signal


class ToolkitError(Exception):
    """A failure that the user can mend: `what` failed and where, and the `remedy`, "" if `what` says it all.

    The message is the two on one line, with a colon between. `tasks.py` prints
    it without a traceback and exits with status 1.
    """

    # What the exception was made with stays its `args`: pickle makes it anew of them, in another process.
    def __init__(self, what: str, remedy: str = "") -> None:
        self.what = what
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.what}: {self.remedy}" if self.remedy else self.what


class Terminated(KeyboardInterrupt):
    """The signal `number`, SIGTERM or SIGHUP: what Ctrl-C cleans up is cleaned up then, too."""

    def __init__(self, number: int = signal.SIGTERM) -> None:
        super().__init__(number)
        self.number = number
