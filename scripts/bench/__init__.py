"""The benchmark: stock and patched FreeSWITCH side by side, on this machine.

`suite`: runs it
`parts`: what is measured of which servers
`metrics`: what is taken of the results, and the targets
`plan`: how much of everything
`measure`: one measurement at one server
`container`: the containers of FreeSWITCH
`kamailio`: Kamailio beside it, for comparison
`load`: the processes that make the load
`stream`: the process that stamps the events
`offenders`: clients that could hold up others, and the frames they send
`interference`: the processes of many of them, and of bystanders
`soak`: connect, register, die, many thousand times: `inv soak`
`figures`: statistics and targets
`plot`: the curves
`page`: what is left for the reader
"""
