"""From token ids on disk to batches of windows.

- windows.py draws windows from an array of token ids; documents.py starts them at document boundaries.
- prepare.py trains the tokenizer and encodes the text, once; tinystories.py downloads a corpus, toy.py samples one.
- batches.py and datamodule.py serve the windows to the trainer; device_windows.py draws them on a GPU.
- ngram.py is a baseline that counts.
"""
