"""`python -m headway.cli`: the same as the command `headway`."""

from headway.cli.app import main

main(prog_name="headway")
