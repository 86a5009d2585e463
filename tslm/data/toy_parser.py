"""Parse a story: the probability that the grammar writes exactly this text, or a text that begins with it.

The first is the inside probability, summed over all derivations. The parser shares the rules of the grammar with the
sampler, and no other code. If the inside probability equals the probability of the sampler's own choices, the story has
a single derivation and p(story) is exact.
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
    return boundary_log_probs(text)[-1]


def boundary_log_probs(text: str) -> list[float]:
    r"""Return log P_b in nats for each b from 0 to len(text).

    P_b is the probability that a story begins with text[:b] and that its unit ends there: white space, letters and
    digits, and other characters are three kinds, and a unit ends where the kind changes. At the end of the text the
    story must end. So exp(log P_b - log P_a) is the grammar's true probability of the unit text[a:b] after text[:a],
    " the" is another unit than the beginning of " there", and the units' logarithms sum to `story_log_prob(text)`.

    -inf stands where the grammar cannot write text[:b].
    """
    grammar = load_grammar()
    parser = _Inside(text, grammar)
    ends = parser.ends(grammar.start, (0, (None,) * grammar.num_slots))
    crossing = parser.crossing[grammar.start, (0, (None,) * grammar.num_slots)]
    inside = sum(prob for (position, _), prob in ends.items() if position == len(text))
    probs = [1.0, *(crossing[b] for b in range(1, len(text))), inside] if text else [inside]
    return [math.log(prob) if prob > 0 else -math.inf for prob in probs]


def kind(char: str) -> str:
    """Return the kind of a character: white space, a letter or digit, or another one; see `boundary_log_probs`."""
    return "space" if char.isspace() else "word" if char.isalnum() else "other"


class _Inside:
    """A top-down parser with memoisation: each (rule, position, memory) is computed once.

    `crossing` maps the same keys to the probability that the rule's derivation goes beyond each boundary, having
    written the text up to it, with a character of another kind than the last. A derivation goes beyond a boundary in
    one of its parts only, so these probabilities add up over the parts.
    """

    def __init__(self, text: str, grammar: Grammar) -> None:
        self.text = text
        self.memo: dict[tuple[Rule, State], dict[State, float]] = {}
        self.crossing: dict[tuple[Rule, State], dict[int, float]] = {}

    def ends(self, rule: Rule, state: State) -> dict[State, float]:
        """Return each state in which `rule` can end if it starts in `state`, with its probability."""
        key = rule, state
        if key not in self.memo:
            total: dict[State, float] = defaultdict(float)
            crossing = self.crossing[key] = defaultdict(float)
            for parts, log_prob in zip(rule.alternatives, rule.log_probs, strict=True):
                reached = {state: math.exp(log_prob)}
                for part in parts:
                    reached = self._after(part, reached, crossing)
                    if not reached:
                        break
                for end, prob in reached.items():
                    total[end] += prob
            self.memo[key] = total
        return self.memo[key]

    def _cross(self, written: str, position: int, prob: float, crossing: dict[int, float]) -> None:
        """Add the probability of `written` at a position to that of each boundary that it goes beyond."""
        for offset, char in enumerate(written):
            boundary = position + offset
            if 0 < boundary <= len(self.text) and kind(char) != kind(self.text[boundary - 1]):
                crossing[boundary] += prob
            if boundary >= len(self.text) or self.text[boundary] != char:
                return

    def _after(self, part: Part, reached: dict[State, float], crossing: dict[int, float]) -> dict[State, float]:
        after: dict[State, float] = defaultdict(float)
        for state, prob in reached.items():
            if isinstance(part, Rule):
                for end, more in self.ends(part, state).items():
                    after[end] += prob * more
                for boundary, more in self.crossing[part, state].items():
                    crossing[boundary] += prob * more
                continue
            position, memory = state
            if isinstance(part, Draw) and not (part.only_once and memory[part.slot]):
                for written, log_prob in zip(part.texts, part.log_probs, strict=True):
                    self._cross(written, position, prob * math.exp(log_prob), crossing)
                for length in part.lengths:
                    index = part.by_text.get(self.text[position : position + length])
                    if index is not None:
                        updated = memory if part.slot < 0 else _store(memory, part.slot, part.words[index])
                        after[position + length, updated] += prob * math.exp(part.log_probs[index])
                continue
            expected = part if isinstance(part, str) else _stored(part, memory)
            self._cross(expected, position, prob, crossing)
            if self.text.startswith(expected, position):
                after[position + len(expected), memory] += prob
        return after


def _store(memory: Memory, slot: int, word: Word) -> Memory:
    return (*memory[:slot], word, *memory[slot + 1 :])


def _stored(part: Backreference | Draw, memory: Memory) -> str:
    word = memory[part.slot]
    assert word is not None, "the grammar repeats a word before it draws one"
    return word.forms[part.form]
