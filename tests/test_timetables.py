"""Tables of times: the official lists, folding of walks, slices, levels, spacings, clear errors."""

import hashlib
import itertools
import json

import numpy as np
import pytest

import diffjax as dj
from diffjax import process, schedules, timetables

LINEAR = schedules.discrete(schedules.linear_betas(1000))


@pytest.fixture(scope="module")
def lists(golden_dir):
    """The recorded time lists of RePaint, CoPaint and guided-diffusion."""
    found = [
        f for f in sorted((golden_dir / "inpainting").glob("*.json")) if f.stem.removeprefix("h_").startswith("schedules")
    ]
    if not found:
        pytest.skip(f"no inpainting/schedules*.json under {golden_dir}")
    return [json.loads(f.read_text()) for f in found]


def cases(lists, name):
    """The recorded cases of one kind; a kind with none fails."""
    every = [
        case for file in lists for case in (file[name].values() if isinstance(file.get(name), dict) else file.get(name, []))
    ]
    assert every
    return every


def unfold(table):
    """The list of times that a table walks through, climbs spelled out on the table's own grid."""
    grid = np.unique([table.t, table.s, table.r])
    walk = [table.t[0]]
    for t, s, r in zip(table.t, table.s, table.r):
        walk += [s] if s < t else []
        walk += list(grid[(grid > s) & (grid <= r)])
    return np.array(walk)


def same_list(case, got, key):
    got = [int(v) for v in got]
    if case.get(key) is not None:
        assert got == case[key], case.get("params")
    if "length" in case:
        assert len(got) == case["length"]
    if "turning_points" in case:
        step = np.sign(np.diff(got))
        turns = [got[0], *(b for a, b, c in zip(step, got[1:], step[1:]) if a != c), got[-1]]
        assert turns == case["turning_points"]
    if "sha256_of_comma_joined" in case:
        assert hashlib.sha256(",".join(map(str, got)).encode()).hexdigest() == case["sha256_of_comma_joined"]
    for part, mine in (("first", got), ("last", got[::-1])):
        if part in case:
            n = len(case[part])
            assert (mine[:n] if part == "first" else got[-n:]) == case[part]


RENAMED = {
    "jump_length": "jump",
    "jump_n_sample": "times",
    "jump2_length": "jump2",
    "jump2_n_sample": "times2",
    "jump3_length": "jump3",
    "jump3_n_sample": "times3",
}


def jump_arguments(case):
    given = {RENAMED.get(k, k): v for k, v in case["params"].items()}
    return given.pop("t_T"), given


def too_long(n, arguments):
    """Whether repeats are asked for that never happen."""
    pairs = [("jump", "times"), ("jump2", "times2"), ("jump3", "times3")]
    return any(arguments.get(jump, 1) >= n and arguments.get(times, 1) > 1 for jump, times in pairs)


# --- the official lists ---------------------------------------------------------------------------------------------


def test_repaint_jumps(lists):
    for case in cases(lists, "get_schedule_jump"):
        n, arguments = jump_arguments(case)
        same_list(case, timetables.jump_walk(n, **arguments), "times")
    for file in lists:
        if "full_default_250_10_10" in file:
            assert timetables.jump_walk(250) == file["full_default_250_10_10"]


def test_repaint_tables_walk_the_official_list(lists):
    """The folded table has one row per reverse step and unfolds to the list, on the schedule's own times. Lists whose jump is
    as long as the walk, and which therefore climb nowhere, are refused."""
    for case in cases(lists, "get_schedule_jump"):
        n, arguments = jump_arguments(case)
        schedule = schedules.discrete(schedules.cosine_betas(4 * n))
        if too_long(n, arguments):
            with pytest.raises(ValueError, match="is longer than a walk of"):
                timetables.repaint(schedule, n, **arguments)
            continue
        table = timetables.repaint(schedule, n, **arguments)
        assert len(table) == case["n_reverse"], case["params"]
        index = np.append(0, timetables.space(4 * n, n) + 1)
        np.testing.assert_array_equal(unfold(table), index[np.array(timetables.jump_walk(n, **arguments)) + 1])


def test_older_repaint_lists_fold(lists):
    """``get_schedule``: not one of our tables, but any published list of times becomes one."""
    for case in cases(lists, "get_schedule"):
        times = np.array(case["times"])
        table = timetables.from_walk(times - times.min())
        np.testing.assert_array_equal(unfold(table), times - times.min())
        assert len(table) == (np.diff(times) < 0).sum()


def test_copaint_spacing(lists):
    for case in cases(lists, "ddim_timesteps"):
        p = case["params"]
        got = timetables.space_rounded(p["ddpm_num_steps"], p["num_inference_steps"], p.get("schedule_type") == "quad")
        same_list(case, got[::-1], "steps")


def travel_filter(text, n):
    """CoPaint's ``time_travel_filter_type``: which jump points, counted in steps above the end, are used."""
    kind, _, amount = (text or "none").partition("-")
    return {
        "none": lambda j: True,
        "firstp": lambda j: j >= n * (1 - float(amount) / 100),
        "firstn": lambda j: j >= n - float(amount),
        "lastp": lambda j: j <= n * float(amount) / 100,
        "lastn": lambda j: j <= float(amount),
    }[kind]


def test_copaint_time_travel(lists):
    for case in cases(lists, "ddim_repaint_timesteps"):
        p = case["params"]
        n, T = p["num_inference_steps"], p["ddpm_num_steps"]
        grid = timetables.from_times(np.arange(n)[::-1] * (T // n))
        keep = travel_filter(p.get("time_travel_filter_type"), n)
        table = timetables.travel(grid, p["jump_length"], p["jump_n_sample"], keep=keep)
        same_list(case, unfold(table), "steps")
        assert case.get("n_reverse", len(table)) == len(table)
        np.testing.assert_array_equal(table.level, (table.t[0] - table.t) / (T // n))
        twice = timetables.travel(grid, p["jump_length"], p["jump_n_sample"], keep=keep, before_jump=True)
        np.testing.assert_array_equal(unfold(twice), unfold(table))
        assert len(twice) == len(table) + (table.r > table.s).sum()


def test_respacing(lists):
    for case in cases(lists, "space_timesteps"):
        got = timetables.space(case["num_timesteps"], case["section_counts"])
        assert len(got) == case["count"]
        same_list(case, got, "steps")
        schedule = schedules.discrete(schedules.cosine_betas(case["num_timesteps"]))
        np.testing.assert_array_equal(unfold(timetables.respaced(schedule, case["section_counts"])), [*(got[::-1] + 1), 0])


def test_published_names():
    assert len(timetables.published("repaint", LINEAR)) == 2410
    assert len(timetables.published("ddpm", LINEAR)) == 1000
    with pytest.raises(ValueError, match=r"unknown timetable 'repant': did you mean 'repaint'\?"):
        timetables.published("repant", LINEAR)


# --- rows -----------------------------------------------------------------------------------------------------------


def test_a_walk_folds_into_rows():
    table = timetables.from_walk([5, 4, 3, 4, 5, 4, 3, 2, 3, 2, 1, 0])
    rows = [(5, 4, 4), (4, 3, 5), (5, 4, 4), (4, 3, 3), (3, 2, 3), (3, 2, 2), (2, 1, 1), (1, 0, 0)]
    np.testing.assert_array_equal(np.stack([table.t, table.s, table.r], 1), rows)
    np.testing.assert_array_equal(table.fresh, [1, 0, 1, 0, 0, 1, 0, 0])
    np.testing.assert_array_equal(table.up, [5, 5, 5, 5, 4, 4, 3, 2])
    np.testing.assert_array_equal(table.level, [0, 1, 0, 1, 2, 2, 3, 4])
    np.testing.assert_array_equal(table.i, np.arange(8))
    assert table.jumps and len(table) == 8
    assert not timetables.from_walk([3, 2, 0]).jumps


def test_row_before_a_jump():
    table = timetables.from_walk([3, 2, 1, 2, 3, 2, 1, 0], before_jump=True)
    rows = [(3, 2, 2), (2, 1, 1), (1, 1, 3), (3, 2, 2), (2, 1, 1), (1, 0, 0)]
    np.testing.assert_array_equal(np.stack([table.t, table.s, table.r], 1), rows)
    np.testing.assert_array_equal(table.fresh, [1, 0, 0, 1, 0, 0])


def test_a_folded_climb_is_the_same_gaussian():
    """One jump of the plan = the official one-step climbs, composed."""
    table = timetables.repaint(LINEAR, 50, 7, 3)
    a, std = dj.kernels.DDPM(LINEAR).plan(table).jump
    grid = np.unique(table.t)
    checked = 0
    for n in np.flatnonzero(table.r > table.s):
        stops = grid[(grid >= table.s[n]) & (grid <= table.r[n])]
        mean, variance = 1.0, 0.0
        for low, high in itertools.pairwise(stops):
            a_one, std_one = process.transition(LINEAR, high, low)
            mean, variance = a_one * mean, a_one**2 * variance + std_one**2
        np.testing.assert_allclose([a[n], std[n]], [mean, np.sqrt(variance)], rtol=1e-12)
        checked += len(stops) > 2
    assert checked > 3
    np.testing.assert_array_equal(
        np.stack([a, std])[:, table.r == table.s], [[1.0], [0.0]] * np.ones((table.r == table.s).sum())
    )


def test_slices_keep_what_a_resumed_walk_needs():
    table = timetables.repaint(LINEAR, 20, 5, 2)
    head, tail = table[:13], table[13:]
    assert len(head) + len(tail) == len(table)
    for field in ("t", "s", "r", "up", "level", "i", "fresh"):
        np.testing.assert_array_equal(np.concatenate([getattr(head, field), getattr(tail, field)]), getattr(table, field))
    assert tail.i[0] == 13 and head.jumps and tail.jumps
    for wrong in (3, slice(None, None, 2)):
        with pytest.raises(TypeError, match="contiguous range"):
            table[wrong]


def test_printing():
    text = str(timetables.from_walk([3, 2, 3, 2, 0]))
    assert text.splitlines()[0] == "3 rows, t 3 -> 0, 1 jumps"
    assert "up to" in text.splitlines()[1]
    assert len(str(timetables.respaced(LINEAR, 1000)).splitlines()) < 50


def test_start_at():
    grid = timetables.from_times([10, 8, 5, 2, 0])
    np.testing.assert_array_equal(unfold(timetables.start_at(grid, 6.5)), [6.5, 5, 2, 0])
    np.testing.assert_array_equal(unfold(timetables.start_at(grid, 5)), [5, 2, 0])


# --- spacings -------------------------------------------------------------------------------------------------------


def test_uniform_and_quadratic():
    np.testing.assert_allclose(unfold(timetables.uniform(LINEAR, 4)), [1000, 750, 500, 250, 0])
    np.testing.assert_allclose(unfold(timetables.uniform(schedules.VP(), 4)), [1, 0.75, 0.5, 0.25, 0])
    np.testing.assert_allclose(unfold(timetables.quadratic(LINEAR, 4, top=0.8)), [800, 450, 200, 50, 0])


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
    assert (np.diff(unfold(table)) < 0).all()
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
    np.testing.assert_allclose(unfold(table), [80, middle, 0.002, 0], rtol=1e-10)
    for schedule in (LINEAR, schedules.VE(), schedules.VP()):  # they reach less far: the ends are theirs
        times = unfold(timetables.karras(schedule, 18))
        assert 0 < times[-2] and times[0] <= schedule.T and times[-1] == 0


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
