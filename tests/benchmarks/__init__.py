"""Benchmarks of speed and memory beside other programs; README.md lists the commands and the results."""
