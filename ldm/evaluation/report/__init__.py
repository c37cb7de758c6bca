"""What a run learnt and lost, for people to look at: report.html and report.png."""

from ldm.evaluation.report.live import Status
from ldm.evaluation.report.write import is_report, write_live, write_report

__all__ = ["Status", "is_report", "write_live", "write_report"]
