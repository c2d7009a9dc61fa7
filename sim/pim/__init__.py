"""Processing in memory: what a memory's `pim` section may say, its tables, jobs, checker and energy."""
