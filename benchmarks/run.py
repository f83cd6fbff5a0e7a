"""Every benchmark, one after the other: `make bench`. Figures land in `results/`; `README.md` says what they mean."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPTS = ("speed.py", "planner.py", "traces.py", "distserve.py", "emulate.py", "gateway.py")


def main() -> None:
    """Run them all; what one of them cannot do does not keep the others from running."""
    folder = Path(__file__).resolve().parent
    failed = [name for name in SCRIPTS if subprocess.run([sys.executable, str(folder / name)], check=False).returncode]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
