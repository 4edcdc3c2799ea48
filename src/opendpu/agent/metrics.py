"""Prometheus metrics. They are the process's own; served on a loopback address only (see config)."""

from collections.abc import Mapping

from prometheus_client import Counter, Gauge, Histogram, start_http_server

RPCS = Counter("opendpu_agent_rpcs", "Calls answered", ["method", "code"])
RECONCILE_SECONDS = Histogram("opendpu_agent_reconcile_seconds", "One reconciliation step", ["kind"])
STAGE_SECONDS = Histogram(
    "opendpu_agent_stage_seconds",
    "From a call that was accepted to a stage on the way to READY",
    ["kind", "stage"],
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
RESOURCES = Gauge("opendpu_agent_resources", "Resources by state", ["kind", "state"])
HEALTHY = Gauge("opendpu_agent_healthy", "1 if card, storage and network are well")
LEAKS = Counter("opendpu_agent_leaks_healed", "Devices that the host had and nobody wanted", ["kind"])


def stage(kind: str, name: str, stages: Mapping[str, float]) -> None:
    """Record a stage if the resource was accepted in this life of the agent."""
    if "accepted" in stages:
        STAGE_SECONDS.labels(kind, name).observe(max(0.0, stages[name] - stages["accepted"]))


def serve(address: str, port: int) -> None:
    """Answer /metrics from a thread of its own."""
    start_http_server(port, address)
