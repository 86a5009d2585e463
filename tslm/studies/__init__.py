"""The questions of Stanford CS336, assignment 1, answered by experiments: one file for each command `study NAME`.

Functions that measure return data; other functions print it. layout.py formats what the printed pages share.
"""
