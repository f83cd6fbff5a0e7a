"""Tables and plots of docs/accuracy.md: ``python -m fit.accuracy DATA_DIR`` (``make accuracy``).

DATA_DIR holds ``serving.csv.gz``, ``ops_gemm.csv.gz`` for the power law, and recorded runs in ``requests/``. Writes
docs/accuracy-tables.md and docs/img/accuracy-*.png; a few minutes on two cores. Nothing shipped is changed: what is
fitted here is fitted anew without the rows it is judged on.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path

from fit import published
from fit.measure import Sample, measured
from fit.plots import draw
from fit.study import studied
from fit.tables import page
from headway.accuracy import Replay, Row, read_rows, replay_requests
from headway.errors import BadInput

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "accuracy-tables.md"
IMAGES = ROOT / "docs" / "img"
TENTH = 10


def main() -> None:
    """Simulate, fit, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--cores", type=int, default=2)
    asked = parser.parse_args()
    table = asked.data / "serving.csv.gz"
    if not table.is_file():
        parser.error(f"{table}: no such file, so nothing is done; measurements elsewhere: make accuracy DATA=FOLDER")
    begin = time.monotonic()

    def told(what: str) -> None:
        print(f"{time.monotonic() - begin:6.0f} s  {what}", flush=True)

    rows = read_rows(table)
    with ProcessPoolExecutor(asked.cores) as pool:
        samples = simulated(rows, pool)
        told(f"{len(rows):,} rows simulated")
        study = studied(rows, samples, pool, asked.data)
    told("fitted and predicted")
    replay = recorded(asked.data / "requests")
    told("recorded runs replayed")
    pairs = published.studied(published.grouped(published.read(table, asked.cores)), asked.cores)
    told("pairs predicted by their other rows")
    PAGE.write_text(page(study, replay) + published.section(pairs), encoding="utf-8")
    made = [PAGE, *draw(study, IMAGES)]
    told(", ".join(f"{path.relative_to(ROOT)} {path.stat().st_size:,} bytes" for path in made))


def simulated(rows: Sequence[Row], pool: Executor) -> list[Sample]:
    """Return every row's sample, telling each tenth."""
    samples = []
    for sample in pool.map(measured, rows, chunksize=20):
        samples.append(sample)
        if len(samples) % (len(rows) // TENTH + 1) == 0:
            print(f"  {100 * len(samples) // len(rows)} % of the rows", flush=True)
    return samples


def recorded(folder: Path) -> Replay | None:
    """Return the replay of the recorded runs, None where there are none."""
    try:
        return replay_requests(folder)
    except BadInput as error:
        print(f"  {error}; left out")
        return None


if __name__ == "__main__":
    main()
