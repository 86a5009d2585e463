"""Train a tokenizer on a text file, save it, and encode the file for training."""

import tslm

vocab, merges = tslm.train_bpe("stories.txt", vocab_size=1000, special_tokens=["<|endoftext|>"])
tokenizer = tslm.Tokenizer(vocab, merges, ["<|endoftext|>"])
tokenizer.save("tokenizer")

ids = tokenizer.encode("Once upon a time there was a fox.")
print([tokenizer.decode([id_]) for id_ in ids])

tokens = tslm.encode_files(tokenizer, "stories.txt", "stories.bin")
print(f"{len(tokens):,} tokens, {tokens.source_bytes / len(tokens):.2f} bytes each")
