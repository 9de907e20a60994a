"""Which method keeps plasticity, on which protocol, with what certainty? Protocols (a frozen dataclass
each), the runner over methods and seeds, and the statistics that make a comparison honest.
"""

from supple.bench import methods, protocols, statistics
from supple.bench.board import Outcome, Progress
from supple.bench.cluster import run_list_on_ray
from supple.bench.jobs import with_engine
from supple.bench.loop import run
from supple.bench.rows import Scene, observe_scene
from supple.bench.runner import run_list
from supple.bench.spec import RunSpec, grid
from supple.bench.summary import Summary, collect

__all__ = [
    "Outcome",
    "Progress",
    "RunSpec",
    "Scene",
    "Summary",
    "collect",
    "grid",
    "methods",
    "observe_scene",
    "protocols",
    "run",
    "run_list",
    "run_list_on_ray",
    "statistics",
    "with_engine",
]
