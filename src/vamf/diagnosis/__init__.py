"""Diagnosis of a run: the sources of its gradient noise, the best beta, and checks of its log.

measure.py     any average velocity and data -> Diagnosis
advice.py      Diagnosis -> findings in words, each with the setting to change
log_checks.py  the log of a run -> findings
quality.py     samples of a run -> a verdict, and whether jumps or velocity are behind it
run.py         all of these for a run's folder
"""

from vamf.diagnosis.advice import Finding, advise
from vamf.diagnosis.measure import diagnose
from vamf.diagnosis.results import BETAS, Diagnosis

__all__ = ["BETAS", "Diagnosis", "Finding", "advise", "diagnose"]
