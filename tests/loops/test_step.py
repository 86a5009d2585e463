import pytest

from tslm.loops import Budget, Cadence, StepLoop


class Recorder:
    """A driver that records the calls of the loop."""

    def __init__(self, stop_at=None):
        self.events, self.steps, self.stop_at = [], 0, stop_at

    def train_step(self):
        self.steps += 1

    def validate(self):
        self.events.append(("validate", self.steps))
        return True

    def log(self, step):
        self.events.append(("log", step))

    def save(self, step):
        self.events.append(("save", step))

    def stop_requested(self):
        return self.steps == self.stop_at


def run(max_steps, cadence, *, stop_at=None, start=0, validation_due=False):
    driver = Recorder(stop_at)
    loop = StepLoop(driver, Budget(max_steps), cadence)
    loop.load_state_dict({"step": start, "validation_due": validation_due})
    driver.steps = start
    loop.run()
    return loop, driver


def test_a_boundary_logs_then_saves_then_validates():
    _, driver = run(4, Cadence(val=2, log=2, save=2))
    assert driver.events == [
        ("log", 2), ("save", 2), ("validate", 2),
        ("log", 4), ("save", 4), ("validate", 4),
    ]


def test_a_step_is_saved_before_its_validation_and_logged_before_it_is_saved():
    _, driver = run(6, Cadence(val=3, log=0, save=2))
    assert driver.events == [
        ("log", 2), ("save", 2),
        ("log", 3), ("save", 3), ("validate", 3),
        ("log", 4), ("save", 4),
        ("log", 6), ("save", 6), ("validate", 6),
    ]


def test_zero_means_only_at_the_end():
    _, driver = run(5, Cadence())
    assert driver.events == [("log", 5), ("save", 5), ("validate", 5)]


@pytest.mark.parametrize("max_steps", [3, 10])
def test_a_requested_stop_saves_and_leaves_a_validation_to_the_resumed_loop(max_steps):
    loop, driver = run(max_steps, Cadence(val=3, log=1, save=0), stop_at=3)
    assert loop.stopped
    assert loop.state_dict() == {"step": 3, "validation_due": True}
    assert driver.events[-2:] == [("log", 3), ("save", 3)]
    loop, driver = run(max_steps, Cadence(), start=3, validation_due=True)
    assert driver.events[0] == ("validate", 3)
    assert loop.state_dict() == {"step": max_steps, "validation_due": False}


def test_an_interrupted_validation_stays_due():
    class Interrupted(Recorder):
        def validate(self):
            self.stop_at = self.steps
            return False

    driver = Interrupted()
    loop = StepLoop(driver, Budget(2), Cadence())
    loop.run()
    assert driver.events == [("log", 2), ("save", 2)]
    assert loop.state_dict() == {"step": 2, "validation_due": True}


def test_a_stop_is_never_without_a_save():
    class StopsWhileLogging(Recorder):
        def log(self, step):
            super().log(step)
            self.stop_at = step  # too late: whether this step is saved has been decided

        def stop_requested(self):
            return self.stop_at is not None

    driver = StopsWhileLogging()
    StepLoop(driver, Budget(9), Cadence(log=2)).run()
    assert driver.events == [("log", 2), ("log", 3), ("save", 3)]


def test_a_stop_requested_by_validation_takes_effect_at_once():
    class StopsWhileValidating(Recorder):
        def validate(self):
            self.stop_at = self.steps
            return super().validate()

    driver = StopsWhileValidating()
    StepLoop(driver, Budget(9), Cadence(val=2)).run()
    assert driver.events == [("log", 2), ("save", 2), ("validate", 2)]


def test_a_restored_loop_continues_after_its_position():
    whole, first = run(7, Cadence(val=2, log=3, save=5))
    part, second = run(7, Cadence(val=2, log=3, save=5), start=4)
    assert part.state_dict() == whole.state_dict() == {"step": 7, "validation_due": False}
    assert second.events == [event for event in first.events if event[1] > 4]


def test_a_loop_that_has_spent_its_budget_does_nothing():
    loop, driver = run(3, Cadence(log=1), start=3)
    assert loop.done
    assert driver.events == []


def test_tokens_are_rounded_up_to_whole_steps():
    assert Budget.of(max_tokens=8192, tokens_per_step=4096) == Budget(2)
    assert Budget.of(max_tokens=8193, tokens_per_step=4096) == Budget(3)
    assert Budget.of(max_steps=5, tokens_per_step=4096) == Budget(5)
    # Two steps of 1000 tokens are done; the 6193 that are left take two steps of 4096.
    assert Budget.of(max_tokens=8193, tokens_per_step=4096, steps_done=2, tokens_seen=2000) == Budget(4)
    assert Budget.of(max_tokens=8193, tokens_per_step=4096, steps_done=2, tokens_seen=8192) == Budget(3)
    assert Budget.of(max_tokens=8193, tokens_per_step=4096, steps_done=3, tokens_seen=12288) == Budget(3)
    assert Budget.of(max_steps=5, tokens_per_step=4096, steps_done=2, tokens_seen=2000) == Budget(5)


@pytest.mark.parametrize("wrong", [{}, {"max_steps": 1, "max_tokens": 1}, {"max_steps": 0}, {"max_tokens": -5}])
def test_a_budget_is_one_positive_number(wrong):
    with pytest.raises(ValueError, match=r"--trainer\.max_"):
        Budget.of(**wrong)


def test_a_cadence_is_not_negative():
    with pytest.raises(ValueError, match="val_every_n_steps is -1"):
        Cadence(val=-1)
