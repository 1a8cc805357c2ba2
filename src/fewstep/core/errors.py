"""The one error a user is meant to read."""


class UserError(Exception):
    """Something outside the code is wrong; the message names the file or key and the way out.

    Stage scripts and the command line print it without a traceback.
    """
