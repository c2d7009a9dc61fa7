"""What the PIM part of a channel reads and writes: command numbers, columns of a job, and the layout of its two arrays.

Tables and state of PIM are one array of integers each, as functions with few arguments are called much faster than
those with many arrays; names below say what stands where. PIM commands are numbered apart from the ordinary ones, so
that the tables of those stay small; in a command log and in the checker they come after them.
"""

# PIM commands: announce a tile, load a vector, open rows, close them, one step of the dot products, read a result,
# several steps and the reading in one, write results back.
HEADER, GWRITE, G_ACT, PIM_PRE, COMP, READRES, COMPS_READRES, PWRITE = 0, 1, 2, 3, 4, 5, 6, 7
N_PIM = 8
# Commands of the ordinary row buffer that the PIM part asks for: numbers of `dram_tables` after this.
ORDINARY = 16

# Modes of a channel.
NO_PIM, BLOCKED, DUAL = 0, 1, 2

# Columns of a job. KERNEL: which template; LOADS: times its load steps are run first; TILES: rows visited one after
# another, in each GROUPS times the template's steps with DOTS column commands a result; tile i is in row ROW + i * STEP
# of bank set SIDE (-1: sets take turns, tile i in set i % sides and row ROW + i // sides * STEP); MOVES_OUT, MOVES_IN:
# read-outs and loads that go on beside all this; LOAD_BANK, LOAD_ROW: where the vector stands that a load reads.
KERNEL, LOADS, TILES, GROUPS, DOTS, ROW, STEP, SIDE, MOVES_OUT, MOVES_IN, LOAD_BANK, LOAD_ROW = range(12)
JOB_FIELDS = 12
# Of a job in a channel's ring: also its task and the tick from which it is seen.
JOB_TASK, JOB_VISIBLE = 12, 13
RING_FIELDS = 14

# Columns of a template step: command, how often (-1: as often as the job has dots), bank set (-1: the tile's), which
# row it needs open (the tile's plus OFFSET, row OFFSET, or none).
STEP_KIND, STEP_COUNT, STEP_SIDE, STEP_ROW, STEP_OFFSET = 0, 1, 2, 3, 4
STEP_FIELDS = 5
TILE_ROW, FIXED_ROW, NO_ROW = 0, 1, 2

# Columns of a unit: the banks that one command concerns, as first, end and distance.
UNIT_FIRST, UNIT_END, UNIT_STEP = 0, 1, 2
UNIT_FIELDS = 3

# Columns of a run of gaps: where it acts (on PIM commands, on ordinary ones by bank, or by bank group and above), the
# places as first, end and distance, the gap, and in its place a table by dots (-1: none).
RUN_WHERE, RUN_FIRST, RUN_END, RUN_STEP, RUN_GAP, RUN_DOTS = 0, 1, 2, 3, 4, 5
RUN_FIELDS = 6
ON_PIM, ON_READY, ON_NEAR = 0, 1, 2

# The tables of a memory (`DramTables.pim`). First how the channel is built and its units work; a memory without PIM has
# nothing but MODE. AHEAD: the rows of the next tile may be opened while this one computes. CLOSE_UNUSED: bank sets that
# the step under way does not use are closed. HEADERS: a tile begins with one. FROM_BANK: a load reads a bank.
MODE, TWO_BUFFERS, SIDES, AHEAD, CLOSE_UNUSED, HEADERS, FROM_BANK = 0, 1, 2, 3, 4, 5, 6
BANKS, RANKS, RANK_BANKS, GROUP_BANKS, FRONT_TICKS, TWO_BUSES, READ_TICKS, WRITE_TICKS = 7, 8, 9, 10, 11, 12, 13, 14
# Ticks: of a burst, of a load, and that ordinary bursts keep from read-outs of composite commands.
BURST_TICKS, LOAD_TICKS, READOUT_APART, READOUT_TO_WRITE, WRITE_TO_READOUT = 15, 16, 17, 18, 19
# DEADLINE: loads and tiles only begin if they end before the next refresh, which takes a tile FOR_TILE, FOR_PRECHARGE
# for each bank, and so on. LONGEST: what takes that long never fits and begins all the same.
DEADLINE, FOR_TILE, FOR_PRECHARGE, FOR_ACTIVATION, FOR_DOT, LEAST_DOTS, FOR_READOUT = 20, 21, 22, 23, 24, 25, 26
FOR_LOAD, FOR_LOAD_CLOSED, FOR_LOAD_CONFLICT, LONGEST = 27, 28, 29, 30
# Slack that ordinary commands need beside a tile: any, an activation (and it uses as much), a precharge, what it uses.
SLACK_ANY, SLACK_ACT, SLACK_PRE, SLACK_PRE_COST = 31, 32, 33, 34
# Then where tables begin: by command, where its units stand and its ticks on the command bus; templates (first load
# step, first tile step, end), steps, units, pointers to runs (after command k of unit u: k * banks + u), runs, ticks to
# the read-out by dots, gaps by dots and how many of them there are.
UNIT_BASE, COMMAND_TICKS = 35, 44
TEMPLATES, STEPS, UNITS, RUN_POINTERS, RUNS, READOUT_AT, DOTS_GAP, DOTS_WIDTH = 52, 53, 54, 55, 56, 57, 58, 59
# And where rows, earliest ticks and jobs begin in a channel's state.
ROWS_AT, EARLIEST_AT, JOBS_AT = 60, 61, 62
# SPREAD: the dots of a tile take turns over the bank sets, in each of which the tile has the same row.
SPREAD = 63
# Longest gap between an ordinary command, other than a refresh, and a PIM command.
REACH = 64
N_TABLE = 65

# The state of a channel (`ChannelState.pim`). What is under way: place in the ring, jobs in it, loads done, tile,
# group, step of the template, commands of the step issued, moves done; whether the tile's header was sent, whether it
# was admitted, whether no ordinary buffer has its row open, whether the rows of the step are known to be open; whether
# the refresh deadline holds PIM back; ticks that ordinary commands may still take; when the job's last result is there;
# its first tick (-1: none yet); ticks with a job under way; whether the next command is known, and it; rows open in the
# PIM buffer; the last read-out; up to when busy ticks are counted; size of the ring.
JOB, JOBS, LOADED, TILE, GROUP, STEP_NOW, DONE, OUT_DONE, IN_DONE = 0, 1, 2, 3, 4, 5, 6, 7, 8
HEADED, ADMITTED, FREED, OPENED, FROZEN, SLACK, END, BUSY_FROM, BUSY_TICKS = 9, 10, 11, 12, 13, 14, 15, 16, 17
PLANNED, NEXT_TICK, NEXT_COMMAND, NEXT_UNIT, OPEN_ROWS, LAST_READOUT, COUNTED, RING = 18, 19, 20, 21, 22, 23, 24, 25
# Counts by command (COMP: also the steps of composite ones), ticks of the last read-outs of composite commands; then
# the row open in each bank's PIM buffer (-1: none), the earliest tick of each command's units, and the ring of jobs.
COUNTS, READOUT = 26, 34
READOUTS = 4
# Tick from which on PIM may begin, as ordinary commands were jumped over.
NOT_BEFORE = 38
N_STATE = 39
