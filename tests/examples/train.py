"""Train a model with a loop of one's own, and save it; Lightning is not needed."""

import tslm

vocab, merges = tslm.train_bpe("stories.txt", vocab_size=400, special_tokens=["<|endoftext|>"])
tokenizer = tslm.Tokenizer(vocab, merges, ["<|endoftext|>"])
ids = tslm.encode_files(tokenizer, "stories.txt", "ids.bin").ids

steps, config = 60, tslm.TransformerConfig(vocab_size=tokenizer.vocab_size, context_length=64, d_model=64,
                                           num_layers=2, num_heads=4, d_ff=192)  # fmt: skip
model = tslm.TransformerLM(config)
optimizer = tslm.AdamW(model.parameters(), lr=0.0, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.01)
for step in range(1, steps + 1):
    optimizer.param_groups[0]["lr"] = tslm.lr_cosine_schedule(step, 5e-3, 0.0, warmup_steps=5, cosine_steps=steps)
    inputs, targets = tslm.get_batch(ids, batch_size=16, context_length=64, device="cpu")
    loss = tslm.cross_entropy(model(inputs), targets)
    optimizer.zero_grad()
    loss.backward()
    tslm.clip_gradients(model.parameters(), max_norm=1.0)
    optimizer.step()
    if step % 20 == 0:
        print(f"step {step}: loss {loss.item():.2f}")
tslm.save_checkpoint(model, optimizer, steps, "model.pt")
(story,) = tslm.complete(model, tokenizer, ["Once upon a time"], max_new_tokens=20)
print(story.prompt + story.text)
