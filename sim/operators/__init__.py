"""One operator, or a table of them, on a machine of any kind: `opcycle unit operator`."""
