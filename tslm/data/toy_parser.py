"""Parse a story: the probability that the grammar writes exactly this text, summed over all its derivations.

This is the inside probability. The parser shares the rules of the grammar with the sampler, and no other code. If the
inside probability equals the probability of the sampler's own choices, the story has a single derivation and p(story)
is exact.
"""

import math
from collections import defaultdict

from tslm.data.toy_grammar import Backreference, Draw, Grammar, Part, Rule, Word, load_grammar

Memory = tuple[Word | None, ...]
State = tuple[int, Memory]  # number of characters read, and the words in the slots


def story_log_prob(text: str) -> float:
    """Return log p(text) in nats under the story grammar, or -inf if the grammar cannot write the text.

    Example: `story_log_prob(story.text)` equals `story.log_prob` for every story of `sample_stories`.
    """
    grammar = load_grammar()
    ends = _Inside(text, grammar).ends(grammar.start, (0, (None,) * grammar.num_slots))
    inside = sum(prob for (position, _), prob in ends.items() if position == len(text))
    return math.log(inside) if inside > 0 else -math.inf


class _Inside:
    """A top-down parser with memoisation: each (rule, position, memory) is computed once."""

    def __init__(self, text: str, grammar: Grammar) -> None:
        self.text = text
        self.memo: dict[tuple[Rule, State], dict[State, float]] = {}

    def ends(self, rule: Rule, state: State) -> dict[State, float]:
        """Return each state in which `rule` can end if it starts in `state`, with its probability."""
        key = rule, state
        if key not in self.memo:
            total: dict[State, float] = defaultdict(float)
            for parts, log_prob in zip(rule.alternatives, rule.log_probs, strict=True):
                reached = {state: math.exp(log_prob)}
                for part in parts:
                    reached = self._after(part, reached)
                    if not reached:
                        break
                for end, prob in reached.items():
                    total[end] += prob
            self.memo[key] = total
        return self.memo[key]

    def _after(self, part: Part, reached: dict[State, float]) -> dict[State, float]:
        after: dict[State, float] = defaultdict(float)
        for state, prob in reached.items():
            if isinstance(part, Rule):
                for end, more in self.ends(part, state).items():
                    after[end] += prob * more
                continue
            position, memory = state
            if isinstance(part, Draw) and not (part.only_once and memory[part.slot]):
                for length in part.lengths:
                    index = part.by_text.get(self.text[position : position + length])
                    if index is not None:
                        updated = memory if part.slot < 0 else _store(memory, part.slot, part.words[index])
                        after[position + length, updated] += prob * math.exp(part.log_probs[index])
                continue
            expected = part if isinstance(part, str) else _stored(part, memory)
            if self.text.startswith(expected, position):
                after[position + len(expected), memory] += prob
        return after


def _store(memory: Memory, slot: int, word: Word) -> Memory:
    return (*memory[:slot], word, *memory[slot + 1 :])


def _stored(part: Backreference | Draw, memory: Memory) -> str:
    word = memory[part.slot]
    assert word is not None, "the grammar repeats a word before it draws one"
    return word.forms[part.form]
