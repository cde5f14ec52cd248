"""What a metric is called, in OpenTelemetry's words and in Prometheus'."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

_UNITS = {"s": "seconds", "By": "bytes"}


@dataclass(frozen=True)
class Shown:
    """A metric of which one look gives all the values, or one that is counted as things happen.
    `kind`: a counter only ever grows. `labels`: its attributes.
    """

    name: str
    unit: str
    description: str
    kind: Literal["gauge", "counter", "histogram"] = "gauge"
    labels: tuple[str, ...] = ()

    @property
    def prometheus(self) -> str:
        """The name that Prometheus has for it, of a histogram the one before _bucket, _sum and
        _count.

        >>> Shown("vmdriver.loop.lag", "s", "", "histogram").prometheus
        'vmdriver_loop_lag_seconds'
        >>> Shown("vmdriver.events", "{event}", "", "counter").prometheus
        'vmdriver_events_total'
        """
        words = [self.name.replace(".", "_")]
        words += [_UNITS[self.unit]] if self.unit in _UNITS else []
        words += ["total"] if self.kind == "counter" else []
        return "_".join(words)
