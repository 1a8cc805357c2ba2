"""The exception whose message is meant for the user."""


class UserError(Exception):
    """Something outside the code is wrong; the message names the file or key and what to do.

    Stage scripts and the command line print it without a traceback.
    """
