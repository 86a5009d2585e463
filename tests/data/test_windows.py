"""Random, seeded and sequential windows: equally likely starts, exact arithmetic, every target once."""

import numpy as np
import pytest
import torch

from tslm.data.windows import WindowStream, _scale, get_batch, sequential_windows

DATASET = np.arange(100, dtype=np.uint16)


def chi_square(starts, number_of_starts):
    counts = np.bincount(starts, minlength=number_of_starts)
    assert len(counts) == number_of_starts, "a start is beyond the last window"
    expected = len(starts) / number_of_starts
    return float(((counts - expected) ** 2 / expected).sum())


def splitmix64(state):
    """The published algorithm in Python's integers: return the next state and the output."""
    state = (state + 0x9E3779B97F4A7C15) % 2**64
    z = state
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return state, z ^ (z >> 31)


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.int64])
def test_get_batch_returns_windows_and_targets_shifted_by_one(dtype):
    inputs, targets = get_batch(DATASET.astype(dtype), 32, 7, "cpu")
    assert inputs.shape == targets.shape == (32, 7)
    assert inputs.dtype == targets.dtype == torch.int64
    assert inputs.is_contiguous()
    assert targets.is_contiguous()
    assert torch.equal(inputs, inputs[:, :1] + torch.arange(7))
    assert torch.equal(targets, inputs + 1)


def test_get_batch_draws_every_start_equally_often():
    generator = torch.Generator().manual_seed(0)
    starts = torch.cat([get_batch(DATASET, 1000, 7, "cpu", generator)[0][:, 0] for _ in range(93)]).numpy()
    # Of 93 starts, chi-square has 92 degrees of freedom and exceeds 147 once in 5,000 runs; the seed is fixed.
    assert chi_square(starts, 93) < 147


def test_get_batch_finds_one_window_in_the_shortest_possible_dataset():
    inputs, targets = get_batch(DATASET[:8], 4, 7, "cpu")
    assert inputs.tolist() == [list(range(7))] * 4
    assert targets.tolist() == [list(range(1, 8))] * 4


def test_get_batch_is_determined_by_its_generator():
    first, second, other = (
        get_batch(DATASET, 16, 7, "cpu", torch.Generator().manual_seed(seed))[0] for seed in (5, 5, 6)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    torch.manual_seed(5)
    assert torch.equal(get_batch(DATASET, 16, 7, "cpu")[0], first)


def test_get_batch_reads_memory_maps(tmp_path):
    DATASET.tofile(tmp_path / "ids")
    mapped = np.memmap(tmp_path / "ids", dtype=np.uint16, mode="r")
    seeds = [torch.Generator().manual_seed(1) for _ in range(2)]
    for ours, theirs in zip(get_batch(mapped, 8, 5, "cpu", seeds[0]), get_batch(DATASET, 8, 5, "cpu", seeds[1]),
                            strict=True):
        assert torch.equal(ours, theirs)
        ours += 1  # a batch is a copy, not a view of the read-only file


def test_get_batch_refuses_a_dataset_shorter_than_one_window():
    with pytest.raises(ValueError, match=r"7 tokens, but a context_length of 7 needs at least 8"):
        get_batch(DATASET[:7], 1, 7, "cpu")


def test_get_batch_refuses_other_arrays_than_token_ids_and_an_empty_window():
    with pytest.raises(ValueError, match="float64"):
        get_batch(DATASET.astype(np.float64), 1, 7, "cpu")
    with pytest.raises(ValueError, match=r"\(10, 10\)"):
        get_batch(DATASET.reshape(10, 10), 1, 7, "cpu")
    with pytest.raises(ValueError, match="context_length is 0"):
        get_batch(DATASET, 1, 0, "cpu")


@pytest.mark.parametrize("device", ["no such device", "cuda:99"])
def test_get_batch_refuses_an_unknown_device(device):
    with pytest.raises((RuntimeError, AssertionError)):
        get_batch(DATASET, 1, 7, device)


def test_window_stream_uses_the_random_numbers_of_splitmix64():
    state = splitmix64((7 - 0x9E3779B97F4A7C15) % 2**64)[1]  # the seed, mixed
    expected = []
    for _ in range(50):
        state, random = splitmix64(state)
        expected.append(random * 93 >> 64)
    assert WindowStream(DATASET, 7, seed=7).starts(range(50)).tolist() == expected


def test_the_reference_splitmix64_has_the_published_output():
    # The first outputs for the state 1234567 in Rosetta Code's task "Pseudo-random numbers/Splitmix64".
    state, outputs = 1234567, []
    for _ in range(3):
        state, random = splitmix64(state)
        outputs.append(random)
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize("number", [1, 2, 93, 2**32 - 1, 2**32, 2**32 + 12345, 2**40 + 7, 2**63 - 1])
def test_the_high_half_of_a_128_bit_product_is_exact(number):
    generator = np.random.default_rng(0)
    random = generator.integers(0, 2**64, 1000, dtype=np.uint64)
    random[:4] = [0, 1, 2**32 - 1, 2**64 - 1]
    assert _scale(random, number).tolist() == [int(value) * number >> 64 for value in random]


@pytest.mark.parametrize("seed", [0, 1, -3, 2**70])
def test_window_stream_draws_every_start_equally_often(seed):
    starts = WindowStream(DATASET, 7, seed).starts(np.arange(93_000))
    assert starts.dtype == np.int64
    assert chi_square(starts, 93) < 147


def test_window_stream_neighbours_in_index_and_seed_are_uncorrelated():
    streams = [WindowStream(DATASET, 7, seed).starts(np.arange(200_000)) for seed in (0, 1)]
    zero, one = streams
    for first, second in [(zero, one), (zero[:-1], zero[1:]), (zero[1:], one[:-1])]:
        assert abs(np.corrcoef(first, second)[0, 1]) < 0.01


def test_window_stream_does_not_depend_on_batch_size_or_processes():
    stream = WindowStream(DATASET, 7, seed=3)
    whole = stream.batch(0, 48)
    for batch_size, world_size in [(48, 1), (16, 1), (8, 2), (4, 3), (1, 4)]:
        parts = [
            stream.batch(step, batch_size, rank=rank, world_size=world_size)
            for step in range(48 // batch_size // world_size)
            for rank in range(world_size)
        ]
        for column in range(2):
            assert torch.equal(torch.cat([part[column] for part in parts]), whole[column])


def test_window_stream_is_a_function_of_seed_and_index():
    first, again, other = (WindowStream(DATASET, 7, seed) for seed in (3, 3, 4))
    order = np.random.default_rng(0).permutation(1000)
    assert np.array_equal(first.starts(order), again.starts(np.arange(1000))[order])
    assert not np.array_equal(first.starts(order), other.starts(order))
    late = 10**15
    assert np.array_equal(first.starts([late]), again.starts(np.arange(late - 5, late + 1))[-1:])


def test_window_stream_reads_windows_of_memory_maps(tmp_path):
    DATASET.tofile(tmp_path / "ids")
    mapped = np.memmap(tmp_path / "ids", dtype=np.uint16, mode="r")
    inputs, targets = WindowStream(mapped, 7, seed=0).batch(5, 16)
    assert torch.equal(inputs, inputs[:, :1] + torch.arange(7))
    assert torch.equal(targets, inputs + 1)
    assert inputs.dtype == torch.int64
    assert torch.equal(WindowStream(DATASET, 7, seed=0).batch(5, 16)[0], inputs)


def test_window_stream_refuses_a_dataset_shorter_than_one_window():
    with pytest.raises(ValueError, match=r"5 tokens, but a context_length of 7 needs at least 8"):
        WindowStream(DATASET[:5], 7, seed=0)


def test_sequential_windows_of_a_hand_example():
    assert sequential_windows(DATASET[:10], 4).tolist() == [[0, 4], [4, 4], [8, 1]]


@pytest.mark.parametrize("size", [2, 3, 8, 9, 10, 64, 65, 66, 100])
@pytest.mark.parametrize("context_length", [1, 4, 8, 200])
def test_in_sequential_windows_each_token_except_the_first_is_a_target_once(size, context_length):
    targets = []
    for start, length in sequential_windows(DATASET[:size], context_length):
        assert 1 <= length <= context_length
        targets += DATASET[start + 1 : start + length + 1].tolist()
    assert targets == list(range(1, size))


def test_sequential_windows_refuse_a_single_token():
    with pytest.raises(ValueError, match="has 1 tokens"):
        sequential_windows(DATASET[:1], 4)
