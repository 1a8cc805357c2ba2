"""What pytest was started with: for processes that a test starts as a user would."""

import os
import sys

BEGAN_IN = dict(os.environ)
"""Variables, without those that libraries and tests have set since."""
PYTHON = BEGAN_IN.get("FEWSTEP_PYTHON", sys.executable)
"""Starts a script, in less time where pytest runs behind `python -m fewstep.preload`."""
