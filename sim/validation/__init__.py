"""Comparisons with measurements and with other simulators that ship: `opcycle validate`."""
