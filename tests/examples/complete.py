"""Load the newest run, or one that you name, and let its model continue prompts."""

import tslm

run = tslm.load_run("best")  # or a run directory, or a checkpoint
print(f"step {run.step}, trained with a learning rate of {run.config['optimizer.lr']}")

for story in tslm.complete(run.model, run.tokenizer, ["Once upon a time", "One day"], max_new_tokens=60,
                           temperature=0.8, top_p=0.95, seed=0, stop=["\n"], prefix=run.prefix):  # fmt: skip
    print(f"{story.prompt}|{story.text} ({story.tokens} tokens, {story.stop_reason})")
