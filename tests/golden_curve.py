"""The loss of twenty training steps, from raw text on: `python -m tests.golden_curve --write` regenerates the curve.

Everything that the project defines takes part: the corpus, BPE, windows, model, loss, AdamW, schedule and clipping, in
float32 on a CPU. Regenerate the curve only for a change that is meant to change it, and say so in CHANGELOG.md.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch

from tslm import AdamW, TransformerConfig, TransformerLM, clip_gradients, encode_files, lr_cosine_schedule, train_bpe
from tslm.data.toy import write_corpus
from tslm.data.windows import WindowStream
from tslm.objective import linear_cross_entropy
from tslm.tokenizer import Tokenizer

CURVE = Path(__file__).parent / "fixtures" / "golden_curve.json"
STEPS, BATCH_SIZE, CONTEXT, VOCAB_SIZE, LR = 20, 8, 64, 400, 1e-2


def golden_curve() -> list[float]:
    """Train a small model for twenty steps and return the loss of each."""
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "stories.txt"
        write_corpus(text, 300, seed=7)
        vocab, merges = train_bpe(text, VOCAB_SIZE, ["<|endoftext|>"])
        tokens = encode_files(Tokenizer(vocab, merges, ["<|endoftext|>"]), text, Path(folder) / "ids.bin")
        windows = WindowStream(tokens.ids.copy(), CONTEXT, seed=0)
    torch.manual_seed(0)
    model = TransformerLM(TransformerConfig(VOCAB_SIZE, CONTEXT, d_model=64, num_layers=2, num_heads=4, d_ff=176))
    optimizer = AdamW(model.parameters(), lr=LR)
    losses = []
    for step in range(STEPS):
        inputs, targets = windows.batch(step, BATCH_SIZE)
        optimizer.param_groups[0]["lr"] = lr_cosine_schedule(step, LR, 0.0, warmup_steps=4, cosine_steps=STEPS)
        optimizer.zero_grad()
        loss = linear_cross_entropy(model.hidden(inputs), model.lm_head.weight, targets)
        loss.backward()
        clip_gradients(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="replace the curve in the repository")
    curve = golden_curve()
    print(json.dumps(curve, indent=1))
    if parser.parse_args().write:
        CURVE.write_text(json.dumps(curve, indent=1) + "\n", encoding="utf-8")
