"""Text to token ids on disk: byte-level BPE, trained, applied and stored. Nothing here needs torch.

In reading order: `bpe` (the method), `pretokenize` (text to pre-tokens), `train` (files to merges), `tokenizer` (the
class `Tokenizer`), `serialization` (its files; `tokenizer_json` and `tiktoken_file` have those of other programs),
`encode` and `token_file` (files to ids on disk). `sources` finds files and documents, `plain` unpacks files,
`surrogates` joins halves of characters, `corpus`, `blocks`, `jsonl` and `chunking` read text in blocks, `joining` joins
the tokens of blocks that overlap, `workers` distributes blocks over processes, and `report` measures a training.

Functions marked `@replaceable` have faster substitutes in `fast/tokenizer/`, which give the same results.
"""

from tslm.tokenizer.encode import encode_files
from tslm.tokenizer.serialization import tokenizer_from_texts, tokenizer_texts
from tslm.tokenizer.sources import Span
from tslm.tokenizer.token_file import TokenFile, TokenFileWriter
from tslm.tokenizer.tokenizer import END_OF_TEXT, Tokenizer
from tslm.tokenizer.train import count_pretokens, merge_pretokens, train_bpe

__all__ = [
    "END_OF_TEXT",
    "Span",
    "TokenFile",
    "TokenFileWriter",
    "Tokenizer",
    "count_pretokens",
    "encode_files",
    "merge_pretokens",
    "tokenizer_from_texts",
    "tokenizer_texts",
    "train_bpe",
]
