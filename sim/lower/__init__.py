"""Trace and machine in, Program out: where tensors live, how operators are tiled, what waits for what.

`homes` decides what stays on chip, `block` walks the operators, `matmul`, `attention` and `moves` cut them into tiles,
`buffers` and `builder` turn tiles into tasks and waits, `link` joins everything into the executor's arrays.
"""

from sim.lower.lowering import Lowered, align_bytes, lower_pass, scratchpad_bytes, units, write_units

__all__ = ["Lowered", "align_bytes", "lower_pass", "scratchpad_bytes", "units", "write_units"]
