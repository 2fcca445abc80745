"""Clients that hold up others if they can, for the tests: the table is the benchmark's, too."""

from __future__ import annotations

from scripts.bench.offenders import (
    BINARY,
    CASES,
    CLOSE,
    CONTEXT,
    CONTINUATION,
    KEY,
    PATIENCE,
    PING,
    PONG,
    SLACK,
    TEXT,
    UPGRADES,
    Case,
    End,
    Raw,
    cases,
    frame,
    options,
    pieces,
    upgrade,
)
from tests.lab import DOMAIN

__all__ = [
    "BINARY",
    "CASES",
    "CLOSE",
    "CONTEXT",
    "CONTINUATION",
    "DOMAIN",
    "KEY",
    "PATIENCE",
    "PING",
    "PONG",
    "SLACK",
    "TEXT",
    "UPGRADES",
    "Case",
    "End",
    "Raw",
    "cases",
    "frame",
    "options",
    "pieces",
    "upgrade",
]
