"""The course's questions, answered by trying it on this machine: one file for each command `study NAME`.

In each, functions that measure and return data stand apart from those that print it; layout.py holds what the printed
pages have in common. The questions are those of Stanford CS336, assignment 1.
"""
