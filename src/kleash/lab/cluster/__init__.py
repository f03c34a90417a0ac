"""What a step costs on many GPUs, by arithmetic: seconds of each phase, bytes on each GPU, and what does not fit.

Floats only. Times are floors under stated shares of a machine's peaks: no kernel is timed here, and nothing is
communicated. `docs/scaling.md` says where the figures come from and how far they are from what was measured.
"""

from kleash.lab.cluster.devices import DEVICES, Device
from kleash.lab.cluster.memory import Memory
from kleash.lab.cluster.plan import Plan, simulate
from kleash.lab.cluster.setting import Layout, Setting, Workload
from kleash.lab.cluster.shapes import SHAPES, Shape

__all__ = [
    "DEVICES",
    "SHAPES",
    "Device",
    "Layout",
    "Memory",
    "Plan",
    "Setting",
    "Shape",
    "Workload",
    "simulate",
]
