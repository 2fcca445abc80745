"""Scenarios: clients that are really killed, and what must come of it.

`table`: folders below templates/scenarios: a table of cases, and what these need
`lab`: FreeSWITCH on a network of its own, and what else a scenario needs
`relay`: takes its side of the network away, in a container of the lab
`preload/`: makes FreeSWITCH believe in other CPUs, and tell what it allocates
`phone`: a client as a process, to be killed
`sipp`: SIPp as a process, to be killed
`verb`: what a step can say
`check`: what of a scenario can't be played
`player`: plays a case: the verbs of the tables
`judge`: what came of a step, compared with what had to
`outcome`: what a run came to: its images, and a result for each case and image
`record`: the results of a table on one image
`ensemble`: plays many cases side by side
`run`: plays a scenario on its images
"""
