"""Score a text: how probable does a trained model find it, and what did it expect in place of its worst surprise?"""

import math

import tslm

run = tslm.load_run("best")
scores = tslm.score(run.model, run.tokenizer, "Once upon a time there was a purple fox.", prefix=run.prefix,
                    num_alternatives=3)  # fmt: skip
print(f"{scores.bits_per_byte:.2f} bits per byte, perplexity {scores.perplexity:.1f}")

worst = min(range(len(scores.ids)), key=scores.log_probs.__getitem__)
print(f"{run.tokenizer.decode([scores.ids[worst]])!r} has {-scores.log_probs[worst] / math.log(2):.1f} bits")
for id_, log_prob in scores.alternatives[worst]:
    print(f"  {run.tokenizer.decode([id_])!r} has a probability of {math.exp(log_prob):.1%}")
