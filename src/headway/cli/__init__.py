"""The command line: `headway plan`, `headway simulate`, `headway list`.

Lives here: options, messages, progress, exit codes. Only this room prints, exits, reads the environment.
May import every room, and does so inside the commands: `headway --help` loads neither numpy nor rich.
Start reading in `app.py`, then `simulate.py`; `options.py` names every option once.
"""

from headway.cli.app import main

__all__ = ["main"]
