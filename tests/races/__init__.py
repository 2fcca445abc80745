"""Things that cross: many clients that do two things within a few milliseconds, and what came of it.

A repetition is a generator: it sends, closes and yields what it waits for. All
repetitions of a run play side by side in one thread, each with users of its
own, their steps in the order of their moments. What came is judged by events
in the order of their Event-Sequence and by the rows of the registrar, never by
time stamps.

`connection`: a connection that is never waited for
`steps`: what a repetition can wait for
`events`: the events of a FreeSWITCH, and the rows of its registrar
`repetition`: one client, or several, that do it once
`race`: what every race has in common
`unregister`, `two_connections`, `disconnect`: the races
`result`: what came of one
`runner`: plays the repetitions of one
`cases`: all of them, over all transports
`suite`: plays them against an image
`report`: lines and JSON
"""

from tests.races.cases import CASES, RaceCase
from tests.races.report import lines, write
from tests.races.result import RaceResult
from tests.races.suite import RaceSuite

__all__ = ["CASES", "RaceCase", "RaceResult", "RaceSuite", "lines", "write"]
