"""Change one thing: a feed-forward layer of one's own against the model's, on the same windows.

With `fit`, the same layer is `--model.ffn change_one_thing.SquaredReLU`.
"""

import numpy as np
import torch

import tslm
from tslm.model import Linear


class SquaredReLU(torch.nn.Module):
    """W₂ max(0, W₁x)², the feed-forward layer of Primer (So et al. 2021)."""

    def __init__(self, d_model, d_ff):
        super().__init__()
        self.w1, self.w2 = Linear(d_model, d_ff), Linear(d_ff, d_model)

    def forward(self, x):
        return self.w2(torch.clamp(self.w1(x), min=0) ** 2)


def final_loss(**change):
    torch.manual_seed(0)
    sizes = {"vocab_size": 256, "context_length": 32, "d_model": 32, "num_layers": 2, "num_heads": 2, "d_ff": 96}
    model = tslm.TransformerLM(tslm.TransformerConfig(**(sizes | change)))
    optimizer = tslm.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.01)
    windows, total = torch.Generator().manual_seed(1), 0.0
    for step in range(60):
        inputs, targets = tslm.get_batch(ids, batch_size=8, context_length=32, device="cpu", generator=windows)
        loss = tslm.cross_entropy(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item() / 10 if step >= 50 else 0
    return total


ids = np.fromfile("stories.txt", np.uint8)  # the bytes themselves, without a tokenizer
print(f"SwiGLU {final_loss():.3f}")
print(f"squared ReLU, as many weights {final_loss(ffn=f'{__name__}.SquaredReLU', d_ff=144):.3f}")
