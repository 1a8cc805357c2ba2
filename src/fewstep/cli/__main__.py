"""`python -m fewstep.cli`."""

from fewstep.cli import main

main()
