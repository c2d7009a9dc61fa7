
import numpy as np
from sim.kernels import pim_tables as at
def instructions(memory, jobs):
    return jobs[:, at.LOADS] + jobs[:, at.TILES] * (1 + 8 + jobs[:, at.GROUPS] * (1 + jobs[:, at.DOTS]))
def job_ticks(memory, jobs):
    return jobs[:, at.LOADS] * 110 + jobs[:, at.TILES] * (32 + 90 + 14 + 18 * jobs[:, at.GROUPS])
