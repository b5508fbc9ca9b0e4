"""Where the metrics of a training run go: a table in the run folder, and the experiment trackers people use.

    with build_trackers(config.tracking, config, folder) as trackers:
        trackers.log({"train/loss": 0.7, "validation/t2va/R1": 31.0}, step=100)

Each backend is a class in a file of its own, named in `tracking.backends` and imported only when it is used.
"""

from eao.training.tracking.run import Status, TrackedRun, Tracker
from eao.training.tracking.trackers import Trackers, build_trackers

__all__ = ["Status", "TrackedRun", "Tracker", "Trackers", "build_trackers"]
