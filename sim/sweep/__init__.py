"""Design spaces: a spec names axes over any key of a machine or a workload; its points are simulated, kept, searched.

`spec` reads the file, `space` turns it into points, `condition` decides which of them exist, `point` simulates one,
`store` and `cache` keep what is known, `local` and `cluster` spread the work, `run` ties them together.
"""
