"""Rows of a batch: by free memory, fewer once it runs out, with the same text; a cache that grows."""

from dataclasses import replace

import pytest
import torch

from stagealign.base.batching import GROWTH, SampledBatch
from stagealign.base.errors import CannotRun
from stagealign.data.records import Prompt
from stagealign.grid.spec import Decoding
from stagealign.policy import batch_rows, fast, general
from stagealign.policy.batch_rows import RowBatches, free_bytes, rows_within, shape_of
from stagealign.policy.draw import draws
from stagealign.policy.prefix_cache import PrefixCache
from stagealign.policy.sample import sample

DECODING = Decoding(temperature=0.7, top_p=0.9, top_k=50, max_new_tokens=12)
PROMPTS = [Prompt(f"Review the film {title}.", "train") for title in ("Jaws", "Heat", "The Piano", "Up", "Brazil")]
ERRORS = {
    "cpu": lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:122] DefaultCPUAllocator: can't allocate memory"),
    "windows": lambda: RuntimeError("not enough memory: you tried to allocate 9 bytes"),
    "gpu": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "python": MemoryError,
}


def failing(forward, error, most):
    """A forward that has no memory for more rows than `most`, at any of its steps."""

    def limited(*given, **named):
        ids = named["input_ids"] if "input_ids" in named else given[0]
        if ids.shape[0] > most:
            raise ERRORS[error]()
        return forward(*given, **named)

    return limited


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("most", [1, 3, 7])
def test_memory_that_runs_out_lowers_the_rows_and_keeps_the_text(error, most, tiny, monkeypatch):
    """15 rows of 5 prompts; the candidates of one prompt may come apart."""
    lm = tiny()
    expected = sample(lm, PROMPTS, DECODING, 3, seed=8)
    monkeypatch.setattr(lm.model, "forward", failing(lm.model.forward, error, most))
    found = sample(lm, PROMPTS, DECODING, 3, seed=8)
    assert [(c.completion, c.token_ids, c.truncated) for c in found] == [
        (c.completion, c.token_ids, c.truncated) for c in expected
    ]


@pytest.mark.parametrize("most", [1, 4])
def test_so_it_does_on_the_general_path(most, tiny, monkeypatch):
    lm = tiny()
    ids = [lm.prompt_ids(prompt.text) for prompt in PROMPTS]
    chance = [[draws(8, prompt.hash, j, 12) for j in range(3)] for prompt in PROMPTS]
    expected = dict(general.general_rows(lm, ids, chance, DECODING))
    monkeypatch.setattr(lm.model, "forward", failing(lm.model.forward, "cpu", most))
    found = dict(general.general_rows(lm, ids, chance, DECODING))
    assert {i: [row.ids for row in rows] for i, rows in found.items()} == {
        i: [row.ids for row in rows] for i, rows in expected.items()
    }


def test_one_row_that_does_not_fit_is_said(tiny, monkeypatch):
    lm = tiny()
    sample(lm, PROMPTS[:1], DECODING, 1, seed=8)  # the path is known before memory runs out
    monkeypatch.setattr(lm.model, "forward", failing(lm.model.forward, "cpu", 0))
    with pytest.raises((CannotRun, RuntimeError), match="memory"):
        sample(lm, PROMPTS, DECODING, 3, seed=8)
    with pytest.raises(CannotRun, match="one row at a time"):
        list(RowBatches().run([1, 2], lambda row: 2, lambda batch: (_ for _ in ()).throw(MemoryError())))


def test_another_error_is_not_taken_for_memory(tiny, monkeypatch):
    def broken(batch):
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        list(RowBatches().run([1, 2], lambda row: 2, broken))


def test_later_batches_keep_the_lower_limit():
    """By hand: 10 rows at once do not fit, then 5 do."""
    tried = []

    def small(batch):
        tried.append(len(batch))
        if len(batch) > 6:
            raise MemoryError
        return list(batch)

    found = list(RowBatches().run(list(range(23)), lambda row: 10, small))
    assert tried == [10, 5, 5, 5, 5, 3]
    assert [row for batch, _ in found for row in batch] == list(range(23))


def test_rows_follow_from_free_memory(tiny, monkeypatch):
    lm, row = tiny(), SampledBatch(1, 0.5, 20, 30, 100)
    each = shape_of(lm).peak(row)
    for rows in (1, 5, 256):
        monkeypatch.setattr(batch_rows, "free_bytes", lambda device, rows=rows: (rows + 0.5) * each / 0.5)
        assert rows_within(lm, row, 256) == rows
    monkeypatch.setattr(batch_rows, "free_bytes", lambda device: 0.0)
    assert rows_within(lm, row, 256) == 1, "one row is always tried"
    monkeypatch.undo()
    assert free_bytes(torch.device("cpu")) > 0


def test_a_container_limits_free_memory(tmp_path, monkeypatch):
    """By hand: 1,000 of 5,000 bytes are used, 300 of them by files that the kernel can drop."""
    monkeypatch.setattr(batch_rows, "CGROUP", tmp_path)
    assert batch_rows._container_bytes() == float("inf")
    for name, text in (
        ("memory.max", "5000\n"),
        ("memory.current", "1000\n"),
        ("memory.stat", "anon 7\ninactive_file 300\n"),
    ):
        (tmp_path / name).write_text(text)
    assert batch_rows._container_bytes() == 4300
    assert free_bytes(torch.device("cpu")) == 4300
    (tmp_path / "memory.max").write_text("max\n")
    assert batch_rows._container_bytes() == float("inf")


def test_the_cache_grows_as_needed_up_to_its_capacity():
    cache = PrefixCache()
    cache.open_rows(200)
    held = []
    for step, tokens in enumerate([10, *[1] * 190]):
        new = torch.full((2, 1, tokens, 4), float(step))
        keys, values = cache.update(new, -new, 0)
        cache.filled += tokens
        held.append(cache.keys[0].shape[2])
        assert keys.shape[2] == values.shape[2] == cache.filled
        assert torch.equal(keys, -values)
    assert held[0] == 10, "what the prompts take"
    assert max(held) == 200, "and never more than it may"
    assert len(set(held)) <= 2 + 190 / GROWTH + 1
    assert keys[0, 0, 9:, 0].tolist() == [0.0, *range(1, 191)]
    cache.open_rows(0)
    assert cache.keys == cache.values == []


def test_rows_are_picked_layer_by_layer(monkeypatch):
    """Never more than one tensor beside the kept ones: those before are picked already, those after not yet."""
    cache = PrefixCache()
    cache.open_rows(8)
    for layer in range(3):
        cache.update(torch.full((4, 1, 8, 2), float(layer)), torch.full((4, 1, 8, 2), float(layer)), layer)
    seen, plain = [], torch.Tensor.__getitem__

    def watched(tensor, rows):
        seen.append([keys.shape[0] for keys in (*cache.keys, *cache.values)])
        return plain(tensor, rows)

    monkeypatch.setattr(torch.Tensor, "__getitem__", watched)
    cache.pick(torch.tensor([2, 0]))
    assert seen == [[2] * done + [4] * (6 - done) for done in range(6)]


def test_batches_of_any_size_leave_nothing_behind(tiny, monkeypatch):
    lm, caches = tiny(), []
    opened = fast.PrefixCache.open_rows
    monkeypatch.setattr(fast.PrefixCache, "open_rows", lambda self, n: caches.append(self) or opened(self, n))
    sample(lm, PROMPTS, replace(DECODING, presence_penalty=0.5), 2, seed=1, rows=3)
    assert caches[-1].keys == []
