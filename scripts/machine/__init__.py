"""What every step stands on, and what knows no step.

`engine`: the Docker engine, and the label of all that the toolkit makes there
`files`: the project's files
`registry`: registries, through the engine
`terminal`: what the tasks show, and how quiet they are
"""
