"""The process beside each stage, by itself."""

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from flows import guard

CHILD = """
import time
from pathlib import Path
try:
    Path("begun").touch()
    time.sleep(3600)
except KeyboardInterrupt:
    Path("saved").touch()
"""


@pytest.mark.parametrize("inherited", [signal.SIG_DFL, signal.SIG_IGN], ids=["default", "ignored"])
def test_what_it_guards_hears_sigint_whatever_was_inherited(
    inherited: signal.Handlers, tmp_path: Path
) -> None:
    heard, held = os.pipe()
    guarding = subprocess.Popen(
        [sys.executable, guard.__file__, str(heard), "", sys.executable, "-c", CHILD],
        cwd=tmp_path,
        pass_fds=(heard,),
        start_new_session=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, inherited),
    )
    os.close(heard)
    while not (tmp_path / "begun").exists():
        assert guarding.poll() is None
    os.close(held)
    assert guarding.wait(600) == 0
    assert (tmp_path / "saved").exists()
