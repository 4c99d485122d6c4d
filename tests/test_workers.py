"""Pieces of work on several threads: all done, in order, their errors seen."""

import threading
import time

import pytest
import torch

from restoration_env.workers import in_parallel


@pytest.fixture(params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_results_come_in_order_without_gradients_and_torch_keeps_its_threads(threads) -> None:
    weight = torch.ones(1, requires_grad=True)
    results = list(in_parallel([lambda i=i: (i, (weight * i).requires_grad) for i in range(50)]))
    assert results == [(i, False) for i in range(50)]
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled()
    seen: list[int] = []
    late = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    late.start()
    late.join()
    assert seen == [threads]  # the workers' own setting is not that of other threads


def test_a_worker_computes_on_one_core(threads) -> None:
    inside = set(in_parallel([torch.get_num_threads for _ in range(20)]))
    assert inside == {1}


def test_an_error_is_raised_where_the_result_is_asked_for(threads) -> None:
    def fail() -> None:
        raise ValueError("a piece failed")

    with pytest.raises(ValueError, match="a piece failed"):
        list(in_parallel([lambda: None, fail, lambda: None]))


def test_pieces_may_have_pieces(threads) -> None:
    inner = [lambda: sum(in_parallel([lambda i=i: i for i in range(4)])) for _ in range(9)]
    assert sum(in_parallel(inner)) == 54


def test_nothing_to_do_is_done(threads) -> None:
    assert list(in_parallel([])) == []


def test_beside_other_work_a_single_piece_has_a_thread_of_its_own(threads) -> None:
    began, where = threading.Event(), threading.current_thread()

    def piece() -> threading.Thread:
        began.set()
        return threading.current_thread()

    coming = in_parallel([piece], beside=True)
    assert threads == 1 or began.wait(10)  # before anybody asks for the result
    (there,) = coming
    assert (there is where) == (threads == 1)
    assert list(in_parallel([threading.current_thread])) == [where]


def test_who_asks_for_results_helps() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        both = threading.Barrier(2)
        where = set(in_parallel([lambda: (both.wait(10), threading.current_thread())[1] for _ in range(2)]))
    finally:
        torch.set_num_threads(before)
    assert len(where) == 2 and threading.current_thread() in where


def test_results_come_before_all_pieces_are_done(threads) -> None:
    done: list[int] = []
    for number, _ in enumerate(in_parallel([lambda i=i: done.append(i) for i in range(40)])):
        if number == 0:
            early = len(done)
    assert early < 40 and len(done) == 40


def test_pieces_nobody_asks_for_any_more_are_not_begun(threads) -> None:
    begun: list[int] = []

    def fail() -> None:
        raise ValueError("a piece failed")

    coming = in_parallel([fail, *(lambda i=i: (begun.append(i), time.sleep(0.01)) for i in range(100))])
    with pytest.raises(ValueError, match="a piece failed"):
        list(coming)
    assert len(begun) < 100
