"""The commands that are not LightningCLI's, one file each: arguments and one call.

Each has a function `main`, which gets the words after the command.

`tslm.__main__` lists the commands. arguments.py is the parser that these commands share with `tslm.cli`; explain.py
writes its sentences about mistakes; options.py reads command lines and configuration files as dotted keys; parsed.py
decides the values of LightningCLI's options.
"""
