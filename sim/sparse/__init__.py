"""Sparse accelerators: what zeros in weights and activations save, after everything that the saving costs.

`schema` says what a machine may have, `pattern` draws or reads masks, `storage` counts the bits of sparse formats, one
module a family of engines turns masks into cycles, `cost` adds bandwidth, metadata and vector work, and `unit` is the
command `unit sparse`.
"""
