"""Python's search for garbage while labelers are at it."""

import gc
import weakref

import pytest

from prefloop.pipeline.machine.garbage import searched_less_often


@pytest.fixture
def thresholds():
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)


def test_what_was_set_comes_back_when_the_last_is_done(thresholds):
    gc.set_threshold(700, 10, 10)
    first, second = searched_less_often(), searched_less_often()
    with first:
        second.__enter__()
        assert gc.get_threshold() == (50_000, 10, 10)
    assert gc.get_threshold() == (50_000, 10, 10)
    second.__exit__(None, None, None)
    assert gc.get_threshold() == (700, 10, 10)


@pytest.mark.parametrize("chosen", [(0, 10, 10), (90_000, 5, 5)])
def test_who_chose_otherwise_keeps_it(thresholds, chosen):
    gc.set_threshold(*chosen)
    with searched_less_often():
        assert gc.get_threshold() == chosen
    assert gc.get_threshold() == chosen


def test_a_mistake_sets_it_back_too(thresholds):
    gc.set_threshold(700, 10, 10)
    with pytest.raises(KeyError), searched_less_often():
        raise KeyError
    assert gc.get_threshold() == (700, 10, 10)


def test_cycles_are_found_when_asked_for():
    class Knot:
        def __init__(self):
            self.itself = self

    with searched_less_often():
        gone = weakref.ref(Knot())
        gc.collect()
        assert gone() is None
