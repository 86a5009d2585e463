"""Every command that is not a Lightning one, a file each: its arguments and one call.

`tslm.__main__` lists them; arguments.py holds what their parsers have in common with that of `tslm.cli`.
"""
