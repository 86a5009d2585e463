"""Substitutes for single functions of the core: the same results, faster, on the machine at hand.

`door.py` decides; `agreement.py` compares a substitute with the function it replaces; `table.py` lists the
substitutes. `tokenizer/` holds numpy, `cpu/` C, `gpu/` Triton. Nothing here imports the core (`tslm.files` belongs to
all packages), and the core imports nothing but `replaceable`. Importing this package imports neither torch nor numpy.

The rest of the project works, more slowly, when this folder's substitutes are switched off: `TSLM_FAST=0`.
"""

from tslm.fast.door import DisagreementWarning, replaceable, shut

__all__ = ["DisagreementWarning", "replaceable", "shut"]
