"""Tables of times: the official lists, folding of walks, slices, levels, spacings, clear errors."""

import hashlib
import itertools
import json

import jax
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


def test_published_tables_are_the_recorded_configurations(lists):
    """RePaint's default walk and ADM's spacings; DDRM, DDNM and DiffPIR are compared beside their recorded runs."""
    assert len(timetables.published("repaint", LINEAR)) == 2410
    np.testing.assert_array_equal(timetables.published("ddpm", LINEAR).t, np.arange(1000, 0, -1))
    spaced = {str(c["section_counts"]): c["steps"] for c in cases(lists, "space_timesteps") if c["num_timesteps"] == 1000}
    for name, steps in (("adm-250", "250"), ("adm-ddim25", "ddim25")):
        if steps in spaced:
            np.testing.assert_array_equal(timetables.published(name, LINEAR).t[::-1], np.array(spaced[steps]) + 1)
    for file in lists:
        if "full_default_250_10_10" in file:
            times = np.append(0, timetables.space(1000, 250) + 1)[np.array(file["full_default_250_10_10"]) + 1]
            np.testing.assert_array_equal(unfold(timetables.published("repaint", LINEAR)), times)


def test_ddnms_grid():
    """skip = 1000 // T_sampling, times skip (T_sampling - 1) ... 0: with 12 and 15 steps not ADM's "ddim12", "ddim15"."""
    np.testing.assert_array_equal(timetables.ddnm(LINEAR, 12).t, 83 * np.arange(11, -1, -1) + 1)
    np.testing.assert_array_equal(timetables.ddnm(LINEAR, 15).t, 66 * np.arange(14, -1, -1) + 1)
    assert timetables.respaced(LINEAR, "ddim12").t[0] == 925 and timetables.ddnm(LINEAR, 12).t[0] == 914
    np.testing.assert_array_equal(timetables.ddnm(LINEAR, 100).t, timetables.respaced(LINEAR, "ddim100").t)
    assert len(timetables.published("ddnm-travel", LINEAR)) == len(timetables.ddnm(LINEAR, 100, 10, 3)) == 280


def test_published_names():
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


def test_tables_that_jump_and_that_do_not_are_stacked():
    plain, jumping = timetables.uniform(LINEAR, 4), timetables.repaint(LINEAR, 3, jump=2, times=2)[:4]
    assert jumping.jumps and not plain.jumps and plain.with_jumps().jumps
    stacked = jax.tree.map(lambda *a: np.stack(a), plain.with_jumps(), jumping)
    assert stacked.jumps and stacked.t.shape == (2, 4)
    denoise = dj.denoisers.from_x0(lambda x, i: 0.5 * x, None, LINEAR)
    run = lambda table: dj.sample(jax.random.key(0), denoise, table, (2, 2, 1), kernel=dj.kernels.DDIM(LINEAR, eta=0.5)).x
    np.testing.assert_allclose(run(plain), run(plain.with_jumps()), rtol=1e-6)  # two programs


def test_start_at():
    grid = timetables.from_times([10, 8, 5, 2, 0])
    np.testing.assert_array_equal(unfold(timetables.start_at(grid, 6.5)), [6.5, 5, 2, 0])
    np.testing.assert_array_equal(unfold(timetables.start_at(grid, 5)), [5, 2, 0])
