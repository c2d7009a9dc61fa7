"""Binary heaps on plain arrays: of task numbers (lowest first) and of events ordered by (time, number).

The order of events is decided here and nowhere else: earlier time first, then the lower task number; a release and the
finish of one task at one time come release first, because the code of an event is 2 * task + (0 release, 1 finish).
"""

from sim.kernels.jit import kernel


@kernel
def push_number(heap, first, count, number):
    """Add `number` to the heap stored in heap[first:first+count]; the caller counts."""
    child = count
    while child > 0:
        parent = (child - 1) >> 1
        if heap[first + parent] <= number:
            break
        heap[first + child] = heap[first + parent]
        child = parent
    heap[first + child] = number


@kernel
def pop_number(heap, first, count):
    """Remove and return the lowest number of the heap in heap[first:first+count]; the caller counts."""
    top = heap[first]
    last = heap[first + count - 1]
    size = count - 1
    hole = 0
    while True:
        child = 2 * hole + 1
        if child >= size:
            break
        if child + 1 < size and heap[first + child + 1] < heap[first + child]:
            child += 1
        if heap[first + child] >= last:
            break
        heap[first + hole] = heap[first + child]
        hole = child
    heap[first + hole] = last
    return top


@kernel
def push_event(time, code, count, when, what):
    """Add event (when, what) to the heap in time[:count], code[:count]; the caller counts."""
    child = count
    while child > 0:
        parent = (child - 1) >> 1
        if time[parent] < when or (time[parent] == when and code[parent] <= what):
            break
        time[child] = time[parent]
        code[child] = code[parent]
        child = parent
    time[child] = when
    code[child] = what


@kernel
def drop_event(time, code, count):
    """Remove the earliest event, time[0] and code[0]; the caller counts."""
    when = time[count - 1]
    what = code[count - 1]
    size = count - 1
    hole = 0
    while True:
        child = 2 * hole + 1
        if child >= size:
            break
        if child + 1 < size and (
            time[child + 1] < time[child] or (time[child + 1] == time[child] and code[child + 1] < code[child])
        ):
            child += 1
        if time[child] > when or (time[child] == when and code[child] >= what):
            break
        time[hole] = time[child]
        code[hole] = code[child]
        hole = child
    time[hole] = when
    code[hole] = what
