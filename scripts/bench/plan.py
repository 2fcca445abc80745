"""How much of everything the benchmark measures."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """The plan of a benchmark: how much of everything; runs count without the warm-up."""

    storm: int
    storm_runs: int
    sizes: tuple[int, ...]
    size_runs: int
    registrations: int
    refreshes: int
    registrar_runs: int
    calls: int
    call_runs: int
    footprint: int
    footprint_runs: int
    fins: int
    fin_runs: int
    idle: float
    idle_runs: int
    slow_consumer: int
    flood: int
    offenders: int
    offender_seconds: float
    offender_idles: int


QUICK = Plan(
    storm=1000, storm_runs=2, sizes=(500, 2000), size_runs=1, registrations=200, refreshes=1, registrar_runs=3,
    calls=100, call_runs=3, footprint=500, footprint_runs=1, fins=100, fin_runs=1, idle=10, idle_runs=1,
    slow_consumer=300, flood=0, offenders=20, offender_seconds=0.5, offender_idles=3,
)  # fmt: skip
FULL = Plan(
    storm=4000, storm_runs=5, sizes=(1000, 2000, 4000, 8000, 16000), size_runs=2, registrations=700, refreshes=1,
    registrar_runs=15, calls=300, call_runs=9, footprint=2000, footprint_runs=4, fins=500, fin_runs=3, idle=10,
    idle_runs=3, slow_consumer=2000, flood=110_000, offenders=100, offender_seconds=2.5, offender_idles=8,
)  # fmt: skip
