"""A machine of kind `stream`: transformer layers placed on a grid of compute and memory tiles, section by section.

`machine` is the description, `shapes` what an operator asks for, `rates` how fast tiles do it, `fabric` the graph of
one section with its budgets. `build` and `attend` put operators into it, `mapper` cuts a block into sections, `section`
runs one on the streaming kernel and the memory, `engine` joins sections into a pass.
"""
