"""Shared by the tests of the loops: windows of a small text."""

import pytest

from tslm.data.datamodule import TextDataModule


@pytest.fixture
def data(story_file, cache_dir):
    def make(**options):
        return TextDataModule(**{
            "train_files": [str(story_file)], "cache_dir": str(cache_dir), "vocab_size": 300, "context_length": 32,
            "batch_size": 4, "num_workers": 1,
        } | options)
    return make
