"""Which frames of a clip are read, from times and counts alone."""

from __future__ import annotations

import math
import pickle
from fractions import Fraction

import numpy as np
import pytest

from xraygpt.common.checks import SettingsError
from xraygpt.common.errors import DataError
from xraygpt.media.frame_sampling import (
    FrameSampling,
    displayed_at_even_times,
    evenly_spaced,
    has_constant_rate,
)

# 1 s at 30 fps, then one frame every 2 s for 20 s
PAUSED = [i / 30 for i in range(30)] + [1.0 + 2 * i for i in range(10)]


def regular(count: int, rate: float) -> list[float]:
    return [i / rate for i in range(count)]


@pytest.mark.parametrize("rate", [Fraction(25), Fraction(30), Fraction(30000, 1001), Fraction(19)])
@pytest.mark.parametrize(("fps", "longest"), [(4.0, 128), (2.0, 128), (0.5, 16), (60.0, 32)])
def test_a_constant_rate_gives_the_frames_of_llama_factory(rate, fps, longest):
    """Its rule, from its documentation in our notes: n frames by count, indices by linspace."""
    sampling = FrameSampling(fps=fps, max_frames=longest)
    for total in (1, 2, 7, 57, 96, 540, 5000):
        duration = float(total / rate)
        n = min(total, longest, max(1, math.floor(duration * fps)))
        expected = np.linspace(0, total - 1, n).astype(np.int32).tolist()
        times = [float(i / rate) for i in range(total)]
        assert sampling.indices(times, total, duration) == expected


@pytest.mark.parametrize("rate", [24, 25, 29.97, 30, 50])
def test_both_rules_coincide_at_a_constant_rate(rate):
    """But for products such as 3 x 0.33…, which linspace may round to just below a whole number."""
    for total in (2, 3, 31, 96, 540):
        for n in (1, 2, 3, 8, total):
            positions = np.linspace(0, total - 1, n)
            exact = np.floor(positions + 1e-5).astype(int).tolist()
            assert displayed_at_even_times(regular(total, rate), n) == exact
            off = np.abs(positions - np.round(positions)) > 1e-9
            truncated = np.asarray(evenly_spaced(total, n))
            assert np.array_equal(truncated[off], np.asarray(exact)[off])


def test_a_variable_rate_is_sampled_by_time_not_by_number():
    assert not has_constant_rate(PAUSED)
    chosen = FrameSampling(fps=0.5).indices(PAUSED, 40, 21.0)
    assert len(chosen) == math.floor(21 * 0.5)
    even = np.linspace(0, PAUSED[-1], 10)
    late = [t - PAUSED[i] for t, i in zip(even, chosen, strict=True)]
    assert min(late) > -1e-5 and max(late) <= 2 + 1e-5  # each frame is on display at its time
    assert sum(i < 30 for i in chosen) == 1  # 1 of 19 seconds; by number it would be 30 of 40


def test_times_rounded_to_milliseconds_count_as_constant():
    for rate in (24, 30, 60, 120):
        times = [round(i / rate, 3) for i in range(500)]
        assert has_constant_rate(times)
        assert FrameSampling(fps=2).indices(times, 500, 500 / rate) == evenly_spaced(
            500, math.floor(500 / rate * 2)
        )


def test_whole_duration_is_sampled_not_the_first_64_seconds():
    """A clip of 10 minutes at 2 fps and at most 128 frames: one every 4.7 s up to the end."""
    chosen = FrameSampling(fps=2, max_frames=128).indices(regular(15000, 25), 15000, 600.0)
    assert len(chosen) == 128 and chosen[0] == 0 and chosen[-1] == 14999
    assert max(np.diff(chosen)) - min(np.diff(chosen)) <= 1


def test_fps_changes_the_number_of_frames_and_max_frames_caps_it():
    times = regular(300, 30)
    counts = {f: len(FrameSampling(fps=f).indices(times, 300, 10.0)) for f in (1, 2, 4, 30, 60)}
    assert counts == {1: 10, 2: 20, 4: 40, 30: 300, 60: 300}
    capped = {
        f: len(FrameSampling(fps=f, max_frames=16).indices(times, 300, 10.0)) for f in (1, 2, 4)
    }
    assert capped == {1: 10, 2: 16, 4: 16}
    assert len(FrameSampling(max_frames=16).indices(None, 300)) == 16
    assert FrameSampling(max_frames=16).indices(None, 9) == list(range(9))


def test_a_number_of_frames_can_be_asked_for():
    assert FrameSampling(num_frames=4).indices(None, 10) == [0, 3, 6, 9]
    assert FrameSampling(num_frames=1).indices(None, 10) == [0]
    assert FrameSampling(num_frames=4).indices(None, 2) == [0, 0, 0, 1]  # repeated, not fewer
    assert FrameSampling().indices(None, 3) == [0, 1, 2]


def test_a_heartbeat_of_less_than_a_second_is_not_reduced_to_a_still():
    beat = regular(24, 30)  # 0.8 s
    assert FrameSampling(fps=2).indices(beat, 24, 0.8) == [0]
    chosen = FrameSampling(fps=2, min_frames=8).indices(beat, 24, 0.8)
    assert len(set(chosen)) == 8 and chosen[-1] == 23
    assert FrameSampling(fps=2, min_frames=8).indices(regular(3, 30), 3) == [0, 1, 2]


def test_phases_of_every_slice():
    sampling = FrameSampling(frames_per_slice=3, phases_per_slice=30)
    assert sampling.indices(None, 60) == [0, 10, 20, 30, 40, 50]
    everything = FrameSampling(frames_per_slice=30, phases_per_slice=30)
    assert everything.indices(None, 540) == list(range(540))
    uneven = FrameSampling(frames_per_slice=4, phases_per_slice=30).indices(None, 30)
    assert uneven == [0, 7, 15, 22]
    with pytest.raises(DataError, match=r"541 frames, .* slices of 30 phases \(1 are left over\)"):
        sampling.indices(None, 541)


def test_unknown_times_and_empty_clips_are_errors():
    with pytest.raises(DataError, match="set `fps` of the clip, or sample with num_frames"):
        FrameSampling(fps=2).indices(None, 10)
    with pytest.raises(DataError, match="no frames"):
        FrameSampling().indices(None, 0)


@pytest.mark.parametrize(
    ("settings", "field", "message"),
    [
        ({"num_frames": 8, "fps": 2.0}, "num_frames", "cannot be combined with fps"),
        ({"num_frames": 8, "max_frames": 9}, "num_frames", "cannot be combined with max_frames"),
        ({"frames_per_slice": 4}, "phases_per_slice", "set both"),
        ({"phases_per_slice": 4}, "frames_per_slice", "set both"),
        ({"frames_per_slice": 9, "phases_per_slice": 8}, "frames_per_slice", "at most"),
        ({"frames_per_slice": 4, "phases_per_slice": 8, "fps": 1.0}, "frames_per_slice", "fps"),
        ({"min_frames": 9, "max_frames": 8, "fps": 1.0}, "min_frames", r"max_frames \(8\), got 9"),
        ({"fps": 0.0}, "fps", "must be above 0"),
        ({"num_frames": 0}, "num_frames", "must be at least 1"),
    ],
)
def test_contradictory_settings_are_refused(settings, field, message):
    with pytest.raises(SettingsError, match=message) as caught:
        FrameSampling(**settings)
    assert caught.value.problems[0].field == field


def test_settings_are_hashable_and_readable():
    sampling = FrameSampling(fps=4.0, max_frames=128)
    assert {sampling: 1}[pickle.loads(pickle.dumps(sampling))] == 1
    assert str(sampling) == "fps 4.0, max_frames 128" and str(FrameSampling()) == "all frames"
