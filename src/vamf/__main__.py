"""`python -m vamf`."""

from vamf.cli import main

main()
