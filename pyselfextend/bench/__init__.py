"""How fast is a model at depth: our build, extended and plain, against the stock build of the same source.

>>> from pyselfextend import bench
>>> plan = bench.make_plan("model.gguf", pairs=[(4, 1024)], depths=[0, 8192])
>>> records = list(bench.run(plan, bench.stock_lib()))
>>> for row in bench.summarize(records):
...     print(row.configuration, row.phase, row.depth, row.speed.median, row.ratio and row.ratio.median)

``Results(this_machine(), plan, tuple(records))`` keeps them: ``to_json``, ``from_json``, and ``save_plot``.
"""

from .machine import Machine, this_machine
from .plan import Configuration, Plan, Step, make_plan
from .plot import check_plot, save_plot
from .records import Change, Measurement, Memory, Opened, Record, Results
from .runner import Progress, run
from .stock import stock_lib
from .summary import ChangeRow, Row, Spread, busy_others, summarize, summarize_changes

__all__ = [
    "Change",
    "ChangeRow",
    "Configuration",
    "Machine",
    "Measurement",
    "Memory",
    "Opened",
    "Plan",
    "Progress",
    "Record",
    "Results",
    "Row",
    "Spread",
    "Step",
    "busy_others",
    "check_plot",
    "make_plan",
    "run",
    "save_plot",
    "stock_lib",
    "summarize",
    "summarize_changes",
    "this_machine",
]
