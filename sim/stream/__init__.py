"""Streaming dataflow: graphs of pipelined nodes joined by bounded channels, their exact times, values and deadlocks."""
