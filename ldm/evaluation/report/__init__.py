"""What a run learnt and lost, for people to look at: report.html and report.png."""

from ldm.evaluation.report.write import write_report

__all__ = ["write_report"]
