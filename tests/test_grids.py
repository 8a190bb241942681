"""Spacings of time, within a trace too, the schedule a table belongs to, and what all of ``timetables`` refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax import schedules, timetables

LINEAR = schedules.discrete(schedules.linear_betas(1000))


def walk_of(table):
    """The times of a plain descent."""
    return np.append(table.t, table.s[-1])


def test_uniform_and_quadratic():
    np.testing.assert_allclose(walk_of(timetables.uniform(LINEAR, 4)), [1000, 750, 500, 250, 0])
    np.testing.assert_allclose(walk_of(timetables.uniform(schedules.VP(), 4)), [1, 0.75, 0.5, 0.25, 0])
    np.testing.assert_allclose(walk_of(timetables.quadratic(LINEAR, 4, top=0.8)), [800, 450, 200, 50, 0])
    np.testing.assert_allclose(timetables.quadratic(schedules.VP(), 50).t[-1], 1 / 50**2)  # a formula goes as low as it says


@pytest.mark.parametrize("make", [timetables.uniform, timetables.quadratic, timetables.log_snr, timetables.karras])
def test_a_network_trained_on_a_table_is_told_no_index_below_0(make):
    for betas in (schedules.linear_betas(1000), schedules.cosine_betas(1000), schedules.sr3_betas(2000)):
        schedule = schedules.discrete(betas)
        for n in (1, 2, 20, 50, 300, 1000):
            table = make(schedule, n)
            assert len(table) == n and table.s[-1] == 0
            assert table.t.min() >= 1 and (table.s < table.t).all(), n
    squares = np.sqrt(timetables.quadratic(LINEAR, 300).t)
    np.testing.assert_allclose([squares[0] ** 2, squares[-1]], [1000, 1], rtol=1e-12)
    np.testing.assert_allclose(np.diff(squares), np.diff(squares)[0], rtol=1e-9)


def test_an_int_for_the_largest_sigma_is_no_table():
    whole, real = (timetables.log_snr(schedules.EDM(T), 20) for T in (80, 80.0))
    np.testing.assert_array_equal(whole.t, real.t)
    assert whole.t[-1] < 0.01


@pytest.mark.parametrize(
    "schedule",
    [
        LINEAR,
        schedules.discrete(schedules.cosine_betas(1000)),
        schedules.VP(),
        schedules.VE(),
        schedules.EDM(),
        schedules.RectifiedFlow(),
    ],
    ids=["linear", "cosine", "VP", "VE", "EDM", "flow"],
)
def test_log_snr_steps_are_equal(schedule):
    table = timetables.log_snr(schedule, 30)
    assert len(table) == 30 and table.t[0] == schedule.T and table.r[-1] == 0
    assert (np.diff(walk_of(table)) < 0).all()
    steps = np.diff(schedule.log_snr(table.t))
    np.testing.assert_allclose(steps[1:], steps[-1], rtol=1e-6)  # the first may start deeper in the noise
    assert steps[0] >= steps[-1] * (1 - 1e-6)
    cut = timetables.log_snr(schedule, 7, t_max=0.5 * schedule.T)
    assert cut.t[0] == 0.5 * schedule.T
    assert len(timetables.log_snr(schedule, 1)) == 1


def test_karras():
    """Karras et al. 2022, eq. 5 and table 1: sigma_i at n = 3 is (80^(1/7) + i / 2 (0.002^(1/7) - 80^(1/7)))^7."""
    table = timetables.karras(schedules.EDM(), 3)
    middle = (0.5 * (80 ** (1 / 7) + 0.002 ** (1 / 7))) ** 7
    np.testing.assert_allclose(walk_of(table), [80, middle, 0.002, 0], rtol=1e-10)
    cosine = schedules.discrete(schedules.cosine_betas(1000))
    for schedule in (LINEAR, schedules.VE(), schedules.VP(), cosine):  # where they reach less far, the ends are theirs
        table = timetables.karras(schedule, 18)
        ratio = np.exp(-0.5 * schedule.log_snr(table.t))
        ends = [np.exp(-0.5 * schedule.log_snr(t)) for t in (float(schedule.T), 1.0 if schedule.discrete else 1e-5)]
        assert len(table) == 18 and table.s[-1] == 0
        np.testing.assert_allclose(ratio[[0, -1]], [min(80, ends[0]), max(0.002, ends[1])], rtol=1e-6)
        np.testing.assert_allclose(np.diff(ratio ** (1 / 7)), np.diff(ratio ** (1 / 7))[0], rtol=1e-6)


def test_a_table_knows_its_schedule():
    """Not by name: by the log-SNR at its times. A table of times alone fits every schedule that reaches as far."""
    cosine = schedules.discrete(schedules.cosine_betas(1000))
    grid = timetables.log_snr(LINEAR, 30)
    late = timetables.start_at(grid, 300.0)
    for table in (
        *(make(LINEAR, 30) for make in (timetables.respaced, timetables.uniform, timetables.quadratic, timetables.karras)),
        *(grid, grid[5:], late, timetables.diffpir(LINEAR, 20), timetables.ddnm(LINEAR, 20), timetables.dpir(LINEAR, 0.05)),
        *(
            timetables.repaint(LINEAR, 30, jump=5, times=2),
            timetables.travel(grid, 5),
            timetables.from_times([900, 0], LINEAR),
        ),
        *(timetables.from_rows([(9, 3, 9), (9, 0, 0)], LINEAR), timetables.from_walk([9, 3, 9, 0], schedule=LINEAR)),
    ):
        table.check(LINEAR)
        jax.tree.map(jnp.asarray, table).check(jax.tree.map(jnp.float32, LINEAR))
        with pytest.raises(
            ValueError, match=r"another schedule: at t = .* log-SNR is .* there and .* here: build both from one"
        ):
            table.check(cosine)
    timetables.from_times(np.append(grid.t, 0)).check(cosine)
    with pytest.raises(ValueError, match=r"another schedule: at t = 500 "):
        timetables.log_snr(schedules.discrete(schedules.linear_betas(500)), 20).check(LINEAR)
    with pytest.raises(ValueError, match=r"reaches t = 4000, beyond the schedule's 1000"):
        timetables.uniform(schedules.discrete(schedules.linear_betas(4000)), 20).check(LINEAR)
    with pytest.raises(ValueError, match="another schedule"):
        timetables.uniform(schedules.VP(), 20).check(schedules.RectifiedFlow())
    timetables.log_snr(schedules.RectifiedFlow(), 300).check(schedules.RectifiedFlow())  # log-SNR -inf at t = 1


FIELDS = ("t", "s", "r", "up", "level", "i", "fresh")


def test_traced_times_bounds_and_schedules_make_the_same_tables():
    """In one program, under strict promotion. Only what needs a traced number of rows is refused."""
    walk = timetables.repaint(LINEAR, jump=3, times=3, grid=timetables.log_snr(LINEAR, 12))
    rows = np.stack([walk.t, walk.s, walk.r], 1)

    def tables(a, linear, vp, times, rows):
        """``a``: 1, known or traced."""
        for schedule in (linear, vp):
            yield timetables.uniform(schedule, 12)
            yield timetables.quadratic(schedule, 12, 0.5 * a)
            yield timetables.log_snr(schedule, 12)
            yield timetables.log_snr(schedule, 12, t_max=0.5 * schedule.T * a, t_min=0.01 * schedule.T)
            yield timetables.karras(schedule, 12, 0.01 * a)
            yield timetables.dpir(schedule, 0.05 * a)
        yield timetables.repaint(linear, jump=3, times=3, grid=timetables.log_snr(linear, 12))
        yield timetables.travel(timetables.uniform(linear, 12), 3, before_jump=True)
        yield timetables.from_times(times)
        yield timetables.from_rows(rows)

    known = (1.0, LINEAR, schedules.VP(), np.array([9.0, 9, 5, 5, 2, 0]), rows)
    expected = list(tables(*known))
    with jax.numpy_dtype_promotion("strict"):
        got = jax.jit(lambda *a: list(tables(*a)))(*jax.tree.map(jnp.float32, known))
    assert len(got) == len(expected) == 16
    for ours, right in zip(got, expected):
        assert ours.jumps == right.jumps
        for name in FIELDS:
            np.testing.assert_allclose(getattr(ours, name), getattr(right, name), rtol=2e-3, atol=1e-4, err_msg=name)
    for make in (lambda t: timetables.from_walk([t, 1, 0]), lambda t: timetables.start_at(timetables.uniform(LINEAR, 5), t)):
        with pytest.raises(ValueError, match="build the timetable outside jit"):
            jax.jit(make)(300.0)


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: timetables.from_rows([]), r"give at least one \(t, s, r\)"),
        (lambda: timetables.from_rows([(3, 2, 2), (1, 0, 0)]), "row 1 starts at t = 1, but row 0 ended at 2"),
        (lambda: timetables.from_rows([(3, 2, 1), (1, 0, 0)]), r"row 0 jumps down from 2 to 1: a jump climbs"),
        (lambda: timetables.from_rows([(3, -1, -1)]), "negative or non-finite"),
        (lambda: timetables.from_rows([(np.nan, 1, 1)]), "negative or non-finite"),
        (lambda: timetables.from_times([5]), r"at least two times, for example \[1000, 500, 0\]"),
        (lambda: timetables.from_walk([1]), "at least two times"),
        (lambda: timetables.from_walk([1, 2, 0]), "starts by climbing from 1 to 2: start with a step down"),
        (lambda: timetables.respaced(LINEAR, 1001), "1001 is out of range: choose a whole number from 1 to 1000"),
        (lambda: timetables.respaced(LINEAR, "600,500"), "600 is out of range: choose a whole number from 1 to 500"),
        (lambda: timetables.respaced(LINEAR, 0), "0 is out of range"),
        (lambda: timetables.respaced(LINEAR, "ddim300"), "no whole stride gives 300 of 1000 steps: the nearest is ddim334"),
        (lambda: timetables.respaced(LINEAR, "many"), "steps 'many' is not understood: give a number"),
        (lambda: timetables.uniform(LINEAR, 1001), "steps 1001 is out of range: choose a whole number from 1 to 1000"),
        (lambda: timetables.uniform(LINEAR, 2.5), "steps 2.5 is out of range"),
        (lambda: timetables.log_snr(LINEAR, 0), "steps 0 is out of range"),
        (lambda: timetables.log_snr(LINEAR, 1001), "steps 1001 is out of range: choose a whole number from 1 to 1000"),
        (lambda: timetables.repaint(LINEAR, 20, jump=0), "jump 0 is out of range: choose a whole number >= 1"),
        (lambda: timetables.repaint(LINEAR, 20, times=0.5), "times 0.5 is out of range"),
        (lambda: timetables.repaint(LINEAR, 20, times=0), "times 0 is out of range"),
        (lambda: timetables.repaint(LINEAR, 20, jump2=0), "jump2 0 is out of range: choose a whole number >= 1"),
        (lambda: timetables.repaint(LINEAR, 20, times3=-1), "times3 -1 is out of range"),
        (
            lambda: timetables.repaint(LINEAR, 10),
            "jump 10 is longer than a walk of 10 levels allows: choose at most 9, times=1",
        ),
        (
            lambda: timetables.repaint(LINEAR, 1),
            "jump 10 is longer than a walk of 1 levels allows: choose more levels, times=1",
        ),
        (lambda: timetables.repaint(LINEAR, 20, jump2=20, times2=2), "jump2 20 is longer than a walk of 20 levels"),
        (lambda: timetables.repaint(LINEAR, 20, start_resampling=3), "no stretch of the 20 levels would be walked again"),
        (
            lambda: timetables.repaint(LINEAR, grid=timetables.from_times([0, 5])),
            "grid must descend: its row 0 goes from 0 to 5",
        ),
        (lambda: timetables.travel(timetables.uniform(LINEAR, 5), length=0), "length 0 is out of range"),
        (lambda: timetables.travel(timetables.uniform(LINEAR, 5), length=-2), "length -2 is out of range"),
        (lambda: timetables.travel(timetables.uniform(LINEAR, 5), times=0), "times 0 is out of range"),
        (lambda: timetables.travel(timetables.uniform(LINEAR, 5), length=6), "length 6 is longer than a walk of 6 levels"),
        (lambda: timetables.jump_walk(10, 2.5), "jump 2.5 is out of range"),
        (lambda: timetables.jump_walk(0), "n 0 is out of range"),
        (lambda: timetables.uniform(LINEAR, True), "steps True is out of range"),
        (lambda: timetables.respaced(schedules.VP(), 50), "respaced counts entries of a table, but VP is a formula"),
        (lambda: timetables.diffpir(schedules.VP(), 50), "diffpir counts entries of a table"),
        (lambda: timetables.ddnm(schedules.EDM(80), 50), "ddnm counts entries of a table, but EDM is a formula"),
        (
            lambda: timetables.quadratic(LINEAR, 5, top=2.0),
            r"top 2.0 is out of range: choose a share of T = 1000, from 0.001 to 1",
        ),
        (
            lambda: timetables.log_snr(LINEAR, 5, t_max=2000),
            "t_max 2000 and t_min 1: choose times with 0 < t_min < t_max <= 1000",
        ),
        (lambda: timetables.log_snr(LINEAR, 5, t_min=0), "t_max 1000 and t_min 0"),
        (lambda: timetables.karras(LINEAR, 5, 3.0, 1.0), "choose 0 < sigma_min < sigma_max"),
        (lambda: timetables.dpir(LINEAR, np.ones(3)), r"noise_std of shape \(3,\) is not one number"),
        (lambda: timetables.dpir(LINEAR, -0.1), "noise_std -0.1 is out of range"),
        (lambda: timetables.from_rows([1, 2]), r"rows have shape \(2,\)"),
        (lambda: timetables.repaint(LINEAR, grid=timetables.from_walk([3, 2, 3, 0])), "grid must descend without jumps"),
        (lambda: timetables.travel(timetables.from_walk([3, 2, 3, 0])), "grid must descend without jumps"),
        (lambda: timetables.space_rounded(10, 0), "steps 0 is out of range"),
        (lambda: timetables.start_at(timetables.from_times([4, 2, 0]), 5), r"t = 5 lies outside the table's \(0, 4\]"),
        (lambda: timetables.start_at(timetables.from_walk([3, 2, 3, 0]), 2), "takes a table without jumps"),
    ],
)
def test_errors_name_value_and_remedy(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_table_beyond_the_schedule_is_refused():
    short = schedules.discrete(schedules.linear_betas(100))
    with pytest.raises(ValueError, match=r"reaches t = 1000, beyond the schedule's 100"):
        dj.sample(
            None,
            lambda x, t: None,
            timetables.uniform(LINEAR, 5),
            np.zeros((2, 2, 1), np.float32),
            kernel=dj.kernels.DDPM(short),
            recorded=dj.Draws(),
        )
