"""Reports: a `Result` or a `Plan` as a terminal table or as one self-contained HTML page. Computes no number.

Lives here: the answer in one sentence (`words.py`), rich renderables (`text.py`), charts and the page (`html.py`).
May import metrics, plan, sim; altair, jinja2, vl-convert and rich only inside the functions that need them.
Start reading in `text.py`; nothing here prints: the command line does.
"""

from headway.report.html import check_html, result_html
from headway.report.text import result_text

__all__ = ["check_html", "result_html", "result_text"]
