"""Text to token ids on disk: byte-level BPE, trained, applied and stored. Nothing here needs torch.

In reading order: `plain` (the method in 40 lines), `pretokenize` (text to words), `corpus`, `cuts` and `jsonl` (files
to blocks), `stretches`, `lexicon` and `tables` (blocks to numbered words), `count`, `merging` and `train` (words to
merges), `pieces` and `blocks` (merges to ids), `bpe` (the `Tokenizer`), `files`, `encode` and `tokenfile`; `report`
measures a training, `tail` holds a part of a text out.
"""

from tslm.tokenizer.bpe import END_OF_TEXT, Tokenizer
from tslm.tokenizer.corpus import Span
from tslm.tokenizer.count import count_pretokens
from tslm.tokenizer.encode import encode_files
from tslm.tokenizer.files import tokenizer_from_texts, tokenizer_texts
from tslm.tokenizer.plain import encode_plainly, merge_pretokens_plainly
from tslm.tokenizer.tail import split_tail
from tslm.tokenizer.tokenfile import TokenFile, TokenFileWriter
from tslm.tokenizer.train import merge_pretokens, train_bpe

__all__ = [
    "END_OF_TEXT",
    "Span",
    "TokenFile",
    "TokenFileWriter",
    "Tokenizer",
    "count_pretokens",
    "encode_files",
    "encode_plainly",
    "merge_pretokens",
    "merge_pretokens_plainly",
    "split_tail",
    "tokenizer_from_texts",
    "tokenizer_texts",
    "train_bpe",
]
