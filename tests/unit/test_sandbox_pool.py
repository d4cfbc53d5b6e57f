from __future__ import annotations

import pytest

from headstock.sandbox import LostError, Pool


class Worker:
    """Answers with its number; lost when it was ended."""

    made = 0

    def __init__(self) -> None:
        Worker.made += 1
        self.number = Worker.made
        self.is_ended = False
        self.is_alive = True
        self.close = lambda: None

    def answer(self) -> int:
        if self.is_ended:
            raise LostError
        return self.number


@pytest.fixture
def pool():
    Worker.made = 0
    return Pool(Worker, 2)


def test_an_idle_process_is_asked_again(pool):
    assert [pool.call(Worker.answer) for _ in range(3)] == [1, 1, 1]


def test_one_that_ended_while_idle_is_replaced_though_it_still_seems_alive(pool):
    held = []
    pool.call(lambda worker: held.append(worker))
    held[0].is_ended = True
    assert pool.call(Worker.answer) == 2
    assert pool.call(Worker.answer) == 2


def test_what_a_new_process_does_not_answer_is_not_asked_of_another(pool):
    def lose(worker):
        raise LostError

    with pytest.raises(LostError):
        pool.call(lose)
    assert Worker.made == 1


def test_a_question_that_cannot_be_asked_keeps_the_process(pool):
    def refuse(worker):
        raise TypeError

    with pytest.raises(TypeError):
        pool.call(refuse)
    assert pool.call(Worker.answer) == 1
