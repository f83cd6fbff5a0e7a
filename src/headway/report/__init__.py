"""Reports: a `Result` or a `Plan` as a terminal table or one self-contained HTML page. Computes no number.

Lives here: sentences (`words.py`), summaries (`text.py`), charts; pages, as HTML (`page.py`) or text (`page_text.py`).
May import accuracy, metrics, plan, sim; altair, jinja2, vl-convert and rich only inside the functions that need them.
Start reading in `text.py`; nothing here prints: the command line does.
"""

from headway.report.accuracy_text import accuracy_text, replay_text
from headway.report.calibration_text import calibration_text
from headway.report.capacity_text import capacity_html, capacity_text
from headway.report.compare_text import comparison_text
from headway.report.page import check_html
from headway.report.plan_page import plan_html
from headway.report.result_page import result_html
from headway.report.text import plan_text, result_text
from headway.report.whatif_text import whatif_text

__all__ = [
    "accuracy_text",
    "calibration_text",
    "capacity_html",
    "capacity_text",
    "check_html",
    "comparison_text",
    "plan_html",
    "plan_text",
    "replay_text",
    "result_html",
    "result_text",
    "whatif_text",
]
