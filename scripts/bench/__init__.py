"""The benchmark: stock and patched FreeSWITCH side by side, on this machine.

`suite`: runs it
`parts`: what is measured of which servers
`metrics`: what is taken of the results, and the targets
`plan`: how much of everything
`measure`: one measurement at one server
`box`: the containers of FreeSWITCH
`kamailio`: Kamailio beside it, for comparison
`load`: the processes that make the load
`stream`: the process that stamps the events
`offenders`: clients that could hold up others
`crowd`: the processes of many of them, and of the others
`figures`: statistics and targets
`plot`: the curves
`page`: what is left for the reader
"""
