"""Substitutes in numpy for the tokenizer's functions: counting, training and encoding, a block of text at a time."""
