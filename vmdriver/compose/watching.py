"""What a running composed driver shows of itself to those who watch over hosts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from vmdriver import __version__
from vmdriver.compose.config import ComposeConfig
from vmdriver.compose.registry import Registry
from vmdriver.compose.relay import Relay
from vmdriver.compose.store import Stage
from vmdriver.lifecycle.extending.notes import holds_of
from vmdriver.telemetry.composed import Look, of_composed
from vmdriver.telemetry.seen import Value
from vmdriver.telemetry.telemetry import Telemetry


@dataclass(frozen=True)
class Watching:
    """Looks at one."""

    registry: Registry
    relay: Relay
    extensions: Sequence[str]

    async def look(self) -> Sequence[Value]:
        """Everything there is to show now; an extension that holds nothing, and a stage that
        nothing is in, too.
        """
        sandboxes = self.registry.all()
        stages = Counter({stage.value: 0 for stage in Stage})
        held = Counter(dict.fromkeys(self.extensions, 0))
        for sandbox in sandboxes:
            stages[sandbox.record.stage.value] += 1
            held.update(hold.data["extension"] for hold in holds_of(sandbox.ledger))
        return of_composed(
            Look(
                connected=self.relay.connected.is_set(),
                base_sandboxes=len(self.relay.known()),
                stages=stages,
                troubled=sum(bool(sandbox.trouble) for sandbox in sandboxes),
                held=held,
                watchers=self.relay.watchers(),
            )
        )


def watched(config: ComposeConfig, registry: Registry, relay: Relay) -> Telemetry:
    """Begins with what was configured. ConfigError."""
    telemetry = Telemetry(
        listen=config.metrics_listen,
        otlp_endpoint=config.otlp_endpoint,
        service="vmdriver-compose",
        instance=str(config.state_dir),
        version=__version__,
    )
    telemetry.start(Watching(registry, relay, config.extensions).look)
    return telemetry
