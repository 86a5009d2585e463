"""From token ids on disk to batches of windows.

- windows.py draws windows from an array of token ids; documents.py starts them at document boundaries.
- texts.py finds the texts: toy.py samples a corpus, tinystories.py downloads one, holdout.py holds documents out.
- prepare.py trains the tokenizer and encodes the texts, once, and cache.py keeps the results.
- batches.py and datamodule.py serve the windows to the trainer; device_windows.py draws them on a GPU.
- ngram.py is a baseline that counts.
"""
