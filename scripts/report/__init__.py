"""The outcome of a run, for people and programs.

`write`: the table on the terminal, JUnit XML, JSON, and the page
`page`: one HTML page that needs nothing else
`ladder`: packets, actions and events of a case in the order of time
`latency`: plots
"""
