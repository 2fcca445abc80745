"""The exceptions that the toolkit shows to its user."""


class ToolkitError(Exception):
    """A failure that the user can mend.

    The message is one line that says what failed, where, and what to do.
    `tasks.py` prints it without a traceback and exits with status 1.
    """


class Terminated(KeyboardInterrupt):
    """SIGTERM: what Ctrl-C cleans up is cleaned up then, too."""
