"""The command line: `headway plan`, `headway simulate`, `headway validate`, `headway list` and the others.

Lives here: options, messages, progress, exit codes. Only this room prints, exits, reads the environment.
May import every room, and does so inside the commands: `headway --help` loads neither numpy nor rich.
Start reading in `app.py`, then `simulate.py`; `options.py` names every option once.
"""

import sys

try:
    from headway.cli.app import main
except KeyboardInterrupt:
    print("interrupted", file=sys.stderr)
    sys.exit(130)  # as in `app.py`, which there was no time to load

__all__ = ["main"]
