"""The benchmark: stock and patched FreeSWITCH side by side, on this machine.

`suite` runs it; `load` and `stream` are the processes that make the load and
stamp the events, `box` the containers, `figures` statistics and targets,
`plot` and `paper` what is left for the reader. `offenders` are clients that
could hold up others, `crowd` the processes of many of them and of the others.
"""
