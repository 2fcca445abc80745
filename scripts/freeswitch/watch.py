"""`inv watch`: the reports of a running FreeSWITCH, printed as they come."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import sys
from collections.abc import Coroutine
from datetime import datetime
from types import FrameType
from typing import Any

from rich import get_console
from rich.console import Console
from rich.table import Table

from scripts.errors import Terminated, ToolkitError
from scripts.freeswitch.events import (
    EXPIRE,
    REGISTER,
    UNREGISTER,
    Order,
    Subscriber,
    TpErrorReport,
    delay_ms,
    parse,
)
from scripts.machine.terminal import printable, silence

# Fixed widths: rows are printed one by one, as they come.
COLUMNS = (
    ("time", 12),
    ("user", 28),
    ("address", 21),
    ("transport", 9),
    ("cause", 14),
    ("error", 12),
    ("left", 7),
    ("delay ms", 9),
)


def watch(host: str, port: int, subclass: str, password: str = "", json_lines: bool = False) -> None:
    """Print each report as it arrives, until Ctrl-C; SIGTERM and the like raise what their handler raises.

    A user who has registered again by the time a report arrives is not called
    offline: what counts is the order of Event-Sequence.

    `subclass` is that of the reports. `password` defaults to the environment
    variable ESL_PASSWORD. The rows of a table, or with `json_lines` one JSON
    object per event that has all headers under their own names.

    Raises ToolkitError if there is no password, no connection, or if the
    connection is lost.
    """
    password = password or os.environ.get("ESL_PASSWORD", "")
    if not password:
        raise ToolkitError(f"no password for the event socket at {host}:{port}: pass --password or set ESL_PASSWORD")
    try:
        subclasses = [subclass, REGISTER, UNREGISTER, EXPIRE]
        ended = asyncio.run(_until_terminated(_watch(Subscriber(host, port, password, subclasses), json_lines)))
    except Terminated:
        raise
    except KeyboardInterrupt:
        return
    except BrokenPipeError:
        # The reader (`| head`, say) has enough.
        silence()
        return
    if ended:
        if not select.select([], [sys.stdout], [], 0)[1]:
            # Python would wait on its way out until somebody takes the rest of a row.
            silence()
        raise ended


def parse_port(text: str, name: str) -> int:
    """Return the port that the option or variable `name` gives as `text`; ToolkitError if it is none."""
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) < 65536):
        raise ToolkitError(f"{name}='{text}' is not a port: give a number from 1 to 65535")
    return int(text)


async def _until_terminated(work: Coroutine[Any, Any, None]) -> Terminated | None:
    """Run `work` in this task; cancel it on SIGTERM and the like, and return what their handler raises then.

    asyncio does so on SIGINT. A handler that raises does it in whatever task just
    runs, and leaves the others pending.
    """
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    ended: list[Terminated] = []

    def end(number: int, frame: FrameType | None) -> None:
        handler = handlers[signal.Signals(number)]
        assert callable(handler)
        try:
            handler(number, frame)
        except Terminated as error:
            ended.append(error)
            if asyncio.current_task(loop) is task:
                # It may be held up in what it prints, and no other task runs then.
                raise
            task.cancel()
            # Wakes the loop.
            loop.call_soon_threadsafe(lambda: None)

    for number, handler in handlers.items():
        if callable(handler):
            signal.signal(number, end)
    try:
        await work
    except (asyncio.CancelledError, Terminated):
        if not ended:
            raise
    finally:
        for number, handler in handlers.items():
            if signal.getsignal(number) is end:
                signal.signal(number, handler)
    return ended[0] if ended else None


async def _watch(subscriber: Subscriber, json_lines: bool) -> None:
    # One that prints with --quiet, too.
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else get_console().width)
    errors = Console(stderr=True, highlight=False, markup=False)
    async with subscriber:
        if not get_console().quiet:
            where = f"{subscriber.host}:{subscriber.port}"
            errors.print(f"watching {where} for {subscriber.subclasses[0]}, Ctrl-C ends", soft_wrap=True)
        if not json_lines:
            console.print(_row([name for name, _ in COLUMNS], "bold"), crop=False)
        order = Order()
        async for event in subscriber:
            later = order.later(event)
            if event.subclass != subscriber.subclasses[0]:
                continue
            if json_lines:
                print(json.dumps(dict(event.headers), ensure_ascii=False), flush=True)
                continue
            try:
                report = parse(event)
            except ToolkitError as error:
                errors.print(str(error), soft_wrap=True)
                continue
            console.print(_row(_cells(report, event.arrived_ns, later), ""), crop=False)


def _row(cells: list[str], style: str) -> Table:
    table = Table.grid(padding=(0, 1))
    for _, width in COLUMNS:
        table.add_column(width=width, overflow="fold", justify="left")
    table.add_row(*cells, style=style)
    return table


def _cells(report: TpErrorReport, arrived_ns: int, later: str = "") -> list[str]:
    state = "offline" if report.offline else f"{report.registrations_left} left"
    detected = datetime.fromtimestamp(report.detected_at_us / 1e6).astimezone()
    return [
        detected.strftime("%H:%M:%S.%f")[:-3],
        printable(f"{report.from_user}@{report.from_host}"),
        printable(f"{report.network_ip}:{report.network_port}"),
        report.transport,
        report.close_cause,
        printable(report.error_name) if report.error_code else "-",
        "back" if later == REGISTER else state,
        f"{delay_ms(report, arrived_ns):.1f}",
    ]
