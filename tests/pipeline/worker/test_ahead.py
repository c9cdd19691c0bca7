"""The host's work beside the device's, in the order in which it happens."""

from threading import Event, get_ident

import pytest

from pipeline.worker.ahead import made_ahead, one_later

LONG = 60  # seconds until a test fails that waits for something which should happen at once


def test_the_next_thing_is_made_while_one_is_used():
    begun = [Event() for _ in range(4)]

    def make(number):
        begun[number].set()
        return number, get_ident()

    for number, thread in made_ahead(make, range(4)):
        if number < 3:
            assert begun[number + 1].wait(LONG)  # still in use, and the next one is under way
        assert thread != get_ident()


def test_only_one_is_made_ahead():
    made = []
    things = made_ahead(lambda number: made.append(number) or number, range(9))
    assert next(things) == 0
    assert next(things) == 1
    things.close()  # waits for the thread
    assert made == [0, 1, 2]


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_the_order_stays(count):
    assert list(made_ahead(lambda n: n * n, range(count))) == [n * n for n in range(count)]
    assert list(one_later(range(count))) == list(range(count))


def test_an_error_comes_in_its_place():
    things = made_ahead(lambda n: 12 // n, [3, 2, 0, 1])
    assert [next(things), next(things)] == [4, 6]
    with pytest.raises(ZeroDivisionError):
        next(things)


def test_a_thing_is_handed_on_when_the_next_is_there():
    begun = []

    def work():
        for number in range(3):
            begun.append(number)
            yield number

    seen = [(thing, list(begun)) for thing in one_later(work())]
    assert seen == [(0, [0, 1]), (1, [0, 1, 2]), (2, [0, 1, 2])]
