"""The data module: what it prepares, how it aligns windows with documents, and which options it refuses."""

import types

import numpy as np
import pytest
import torch

from tslm.data.datamodule import TextDataModule, read_prompts
from tslm.tokenizer import Tokenizer

END = "<|endoftext|>"


@pytest.fixture
def make(story_file, tmp_path):
    def data(**options):
        settings = {
            "train_files": [str(story_file)], "cache_dir": str(tmp_path / "cache"), "vocab_size": 300,
            "context_length": 32, "batch_size": 4, "num_workers": 1,
        }
        return TextDataModule(**(settings | options))
    return data


@pytest.fixture
def byte_tokenizer():
    """A tokenizer of single bytes, without special tokens."""
    return Tokenizer({i: bytes([i]) for i in range(256)}, [])


def test_a_given_tokenizer_is_used(make, byte_tokenizer, tmp_path):
    byte_tokenizer.save(tmp_path / "tokenizer")
    data = make(tokenizer=str(tmp_path / "tokenizer"))
    data.load()
    assert data.train_tokens.tokenizer_hash == data.tokenizer.hash == byte_tokenizer.hash


def test_a_tokenizer_other_than_the_checkpoints_is_refused(make, byte_tokenizer, tmp_path):
    byte_tokenizer.save(tmp_path / "tokenizer")
    data = make(tokenizer=str(tmp_path / "tokenizer"))
    data.use_tokenizer(Tokenizer.from_dir(tmp_path / "tokenizer"))
    with pytest.raises(ValueError, match=r"data\.tokenizer"):
        data.use_tokenizer(Tokenizer({i: bytes([i]) for i in range(255)}, []))


def test_bits_per_byte_count_the_bytes_of_the_targets(make):
    data = make()
    data.load()
    ids = np.array(data.valid_tokens.ids)
    text = data.tokenizer.decode(ids[1:])
    size = len(text.replace("<|endoftext|>\n", "").replace("<|endoftext|>", "").encode())
    assert data.valid_bytes_per_token * (len(ids) - 1) == pytest.approx(size)


def test_training_and_validation_windows_are_aligned_with_documents(make, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("".join(f"The story of cat {i}.\n{END}\n" for i in range(200)))
    data = make(train_files=[str(text)], align_documents=True)
    data.load()
    separator = data.tokenizer.special_ids[END]
    inputs, _ = data.windows.batch(0, 100)
    assert (inputs[:, 0] == separator).float().mean() > 0.9  # all except the first document and the last windows
    module = types.SimpleNamespace()
    data.trainer = types.SimpleNamespace(global_rank=0, world_size=1, lightning_module=module)
    data.setup("fit")
    assert module.separator == separator
    first = torch.cat([inputs[:, 0] for inputs, _ in data.val_dataloader()])
    assert (first == separator).sum() >= len(first) - 1


def test_aligned_documents_need_a_separator(make, byte_tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"data\.align_documents is on, but data\.special_tokens"):
        make(special_tokens=[], align_documents=True)
    byte_tokenizer.save(tmp_path / "tokenizer")
    with pytest.raises(ValueError, match=r"data\.align_documents is on, but the tokenizer has no special token"):
        make(align_documents=True, tokenizer=str(tmp_path / "tokenizer")).load()


@pytest.mark.parametrize(("content", "part"), [(b"", "no prompt"), (b"\n\n", "no prompt"),
                                               (b"One\n\xff", "not UTF-8 at byte 4")])
def test_a_prompts_file_without_prompts_or_with_other_bytes_is_refused(tmp_path, content, part):
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=part):
        read_prompts(str(path))
