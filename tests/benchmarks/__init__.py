"""Speed and memory beside the programs that people would otherwise use: `python -m tests.benchmarks.tokenizer`."""
