"""What one thread is told to compute with holds for no other, whenever that one begins."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from prefloop.labelers.scorers.compute_threads import compute_with, computing_with


def _of_a_new_thread() -> int:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(torch.get_num_threads).result()


def test_a_thread_is_told_and_no_other() -> None:
    usual, here = _of_a_new_thread(), torch.get_num_threads()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(compute_with, usual + 3).result()
        assert pool.submit(torch.get_num_threads).result() == usual + 3
        assert (_of_a_new_thread(), torch.get_num_threads()) == (usual, here)
        pool.submit(compute_with, None).result()
        assert pool.submit(torch.get_num_threads).result() == usual


def test_a_block_ends_as_it_began_also_by_an_error() -> None:
    usual = _of_a_new_thread()

    def broken() -> int:
        with pytest.raises(ValueError, match="stop"), computing_with(usual + 3):  # noqa: PT012
            assert torch.get_num_threads() == usual + 3
            raise ValueError("stop")
        return torch.get_num_threads()

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(broken).result() == usual
    assert _of_a_new_thread() == usual
