"""What every step stands on, and what knows no step.

`engine`: the Docker engine, and the label of all that the toolkit makes there
`files`: the project's files
`git`: git, with settings of its own, and with the user's where a host is reached
`registry`: registries, through the engine
`terminal`: what the tasks show, and how quiet they are
"""
