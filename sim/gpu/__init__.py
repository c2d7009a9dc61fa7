"""The GPU as a machine: thread blocks in waves over multiprocessors, L2, DRAM, launch costs, power and clocks."""
