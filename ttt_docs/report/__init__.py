"""What a memory shows of its reading: one page to look at, or the loss curve alone."""

from ttt_docs.report.charts import save_plot
from ttt_docs.report.findings import Findings, examine
from ttt_docs.report.page import html_page

__all__ = ["Findings", "examine", "html_page", "save_plot"]
