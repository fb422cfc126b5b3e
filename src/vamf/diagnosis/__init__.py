"""The doctor: where a training's noise comes from, what beta should be, and what the log says.

measure.py     any average velocity and data -> Diagnosis
advice.py      Diagnosis -> findings in words, each with the setting to change
logbook.py     the log of a training -> findings
run.py         all of it on a run's folder
"""

from vamf.diagnosis.advice import Finding, advise
from vamf.diagnosis.measure import diagnose
from vamf.diagnosis.results import BETAS, Diagnosis

__all__ = ["BETAS", "Diagnosis", "Finding", "advise", "diagnose"]
