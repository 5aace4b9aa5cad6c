"""Profiles training steps: `run.profile` writes a trace and a table.

Phases are measured in wall time of the main thread. GPU work is asynchronous, so its time shows up
in the phase that next waits for a result (`end`, which reads the loss). "rest" is the time
between phases, such as validation and saving. Operators are counted over all threads, excluding the
operators they call.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from xraygpt.common.checkpoint import write_text_atomic

FIRST, STEPS = 1, 4  # steps skipped as warm-up, and steps profiled
PHASES = ("data", "forward", "backward", "end")
OPERATORS = 25


def phase(name: str) -> contextlib.AbstractContextManager[Any]:
    """Context manager that marks one of `PHASES`; almost free without a profiler."""
    return torch.profiler.record_function(f"step/{name}")


@contextlib.contextmanager
def profiler(folder: Path | None) -> Iterator[Any]:
    """Yield an object whose `step()` must be called after every step.

    Args:
        folder: Folder for ``trace.json`` (chrome://tracing, ui.perfetto.dev) and ``profile.txt``;
            None disables profiling.
    """
    if folder is None:
        yield _NoProfiler()
        return

    def write(seen: torch.profiler.profile) -> None:
        seen.export_chrome_trace(str(folder / "trace.json"))
        write_text_atomic(folder / "profile.txt", table(seen))

    with torch.profiler.profile(
        schedule=torch.profiler.schedule(wait=0, warmup=FIRST, active=STEPS, repeat=1),
        on_trace_ready=write,
        with_flops=True,
        acc_events=True,
    ) as seen:
        yield seen


def table(seen: torch.profiler.profile) -> str:
    """List phases and the most expensive operators, in milliseconds per step and shares."""
    every = list(seen.key_averages())
    # With a GPU, marks also appear as GPU events, and kernels next to what launched them.
    host = torch.autograd.DeviceType.CPU
    events = [event for event in every if event.device_type == host]
    steps = sum(e.count for e in events if e.key.startswith("ProfilerStep")) or 1
    return "\n".join([*_phase_lines(events, steps), "", *_operator_lines(events, steps)]) + "\n"


def _phase_lines(events: list[Any], steps: int) -> list[str]:
    phases = {e.key: e for e in events if e.key.startswith("step/")}
    total = sum(e.cpu_time_total for e in events if e.key.startswith("ProfilerStep"))
    lines = [
        f"{steps} steps, {total / steps / 1e3:.1f} ms each",
        "",
        f"{'phase':<12}{'ms a step':>12}{'share':>8}",
    ]
    for name in PHASES:
        if f"step/{name}" in phases:
            lines.append(_line(name, phases[f"step/{name}"].cpu_time_total, steps, total, 12))
    rest = total - sum(e.cpu_time_total for e in phases.values())
    return [*lines, _line("rest", rest, steps, total, 12)]


def _operator_lines(events: list[Any], steps: int) -> list[str]:
    cuda = any(_self_time(e, True) for e in events)
    marks = ("step/", "ProfilerStep")
    operators = [e for e in events if not e.key.startswith(marks) and _self_time(e, cuda) > 0]
    operators.sort(key=lambda e: _self_time(e, cuda), reverse=True)
    busy = sum(_self_time(e, cuda) for e in operators)
    title = f"operator, its own {'GPU' if cuda else 'CPU'} time"
    lines = [f"{title:<52}{'ms a step':>12}{'share':>8}{'calls':>8}{'GFLOP':>10}"]
    for e in operators[:OPERATORS]:
        line = _line(e.key[:50], _self_time(e, cuda), steps, busy, 52)
        gflop = f"{e.flops / steps / 1e9:10.2f}" if e.flops else f"{'':>10}"
        lines.append(f"{line}{e.count / steps:8.0f}{gflop}")
    return lines


def _self_time(event: Any, cuda: bool) -> float:
    return float(event.self_device_time_total if cuda else event.self_cpu_time_total)


def _line(name: str, microseconds: float, steps: int, total: float, width: int) -> str:
    share = microseconds / total if total else 0.0
    return f"{name:<{width}}{microseconds / steps / 1e3:>12.1f}{share:>8.1%}"


class _NoProfiler:
    def step(self) -> None:
        pass
