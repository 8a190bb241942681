"""Clocks of the benchmarks: contestants in turn, on one core, the least of several rounds. Imports nothing but Python."""

from __future__ import annotations

import json
import os
import sys
import time


def cores() -> list[int]:
    """Cores this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def pin() -> list[int]:
    """Keep this process on its last core; returns the cores it had. Call it before jax or torch start their threads."""
    had = cores()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, had[-1:])
    return had


def load() -> float:
    return round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else 0.0


def contest(programs: dict, rounds: int, clock=time.process_time, least: float = 0.06) -> dict[str, float]:
    """Least seconds of each program over rounds in which all take turns; a turn repeats what takes less than `least` s:
    the kernel books the time of other threads in ticks of some milliseconds.

    programs: name -> function without arguments, finished when it returns; the first call, which compiles, is not counted
    clock: CPU seconds of all threads, so that others on the machine count little; wall seconds for accelerators and many cores
    """
    times = {}
    for name, program in programs.items():
        program()
        start = clock()
        program()
        times[name] = max(1, round(least / max(clock() - start, 1e-6)))
    best = dict.fromkeys(programs, float("inf"))
    for _ in range(rounds):
        for name, program in programs.items():
            start = clock()
            for _ in range(times[name]):
                program()
            best[name] = min(best[name], (clock() - start) / times[name])
    return best


def serve(build, finite, differences=None) -> None:
    """Answer lines of JSON on stdin with lines of JSON on stdout, until the end:

    {"prepare": work} -> {"calls", "finite", "first"}; the works prepared are numbered from 0
    {"run": number, "least": s} -> {"cpu", "wall"} of one run, repeated until `least` CPU seconds are over
    {"forget": true} -> {}; {"differences": true} -> differences()

    build(work) -> (function, network calls); finite(its result) -> bool
    """
    runs = []
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is not an answer
    for line in sys.stdin:
        asked, answer = json.loads(line), {}
        if "prepare" in asked:
            run, calls = build(asked["prepare"])
            start = time.process_time()
            answer = {"calls": calls, "finite": finite(run()), "first": time.process_time() - start}
            runs.append(run)
        elif "run" in asked:
            wall, cpu, times = time.perf_counter(), time.process_time(), 0
            while not times or time.process_time() - cpu < asked["least"]:
                runs[asked["run"]]()
                times += 1
            answer = {"cpu": (time.process_time() - cpu) / times, "wall": (time.perf_counter() - wall) / times}
        elif "differences" in asked:
            answer = differences()
        else:
            runs.clear()
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
