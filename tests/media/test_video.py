"""Videos from disk: the right frames, their true times, and clear errors."""

from __future__ import annotations

import gc
import math
import pickle
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from tests.media.dicom_files import dataset, save
from tests.media.video_files import (
    LOSSLESS,
    STEP,
    numbered,
    numbers_shown,
    write_sound,
    write_video,
)
from xraygpt.common.errors import DataError, InputError
from xraygpt.datasets.base import Record, StudyDataset
from xraygpt.datasets.mapped_records import MappedRecords
from xraygpt.datasets.media_paths import RecordError, parse_media_ref
from xraygpt.features.cache import CachedReader
from xraygpt.media import video
from xraygpt.media.base import MediaRef, read_media_file
from xraygpt.media.frame_sampling import FrameSampling
from xraygpt.media.picture import ReadLimits

FORMATS = {
    "a.mp4": {},
    "fragmented.mp4": {"options": {"g": "10"}, "muxer": {"movflags": "frag_keyframe+empty_moov"}},
    "a.m4v": {"codec": "mpeg4", "options": {"qmin": "1", "qmax": "2"}},
    "a.mov": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "a.mkv": {},
    "a.webm": {"codec": "libvpx", "options": {"deadline": "realtime", "cpu-used": "8"}},
    "a.avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "b_frames.avi": {"options": {"bf": "2"}},  # packets are not in the order of display
    "a.gif": {"codec": "gif", "pix_fmt": "rgb8"},
}


def read(path, uint8=True, **settings):
    sampling = FrameSampling(**settings) if settings else None
    return read_media_file(MediaRef(path, sampling=sampling), uint8=uint8)


# ---- frames and times ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_chosen_frames_at_their_times(tmp_path, name):
    path = write_video(tmp_path / name, 40, **FORMATS[name])
    clip = read(path, fps=5)
    expected = np.linspace(0, 39, 8).astype(int).tolist()
    assert list(clip.clip.indices) == expected
    assert numbers_shown(clip.data) == pytest.approx(expected, abs=0 if name != "a.gif" else 1)
    assert clip.frame_times == pytest.approx([i / 25 for i in expected], abs=1e-9)
    assert clip.data.dtype == torch.uint8 and clip.data.shape == (8, 48, 64, 3)
    assert (clip.clip.total_frames, clip.clip.fps, clip.kind) == (40, 25.0, "clip")
    assert clip.clip.duration == pytest.approx(1.6)


def test_true_times_of_a_variable_frame_rate(tmp_path):
    times = [i * 0.04 for i in range(20)] + [0.8 + 0.5 * i for i in range(10)]
    for name in ("v.mkv", "v.mp4"):
        path = write_video(tmp_path / name, 30, times=times, **LOSSLESS if "mkv" in name else {})
        everything = read(path)
        assert everything.frame_times == pytest.approx(times, abs=1e-3)
        assert numbers_shown(everything.data) == list(range(30))
        assert not everything.clip.constant_rate
        sampled = read(path, fps=2)
        even = np.linspace(0, times[-1], len(sampled.data))
        assert len(even) == math.floor(everything.clip.duration * 2)
        expected = [max(i for i, t in enumerate(times) if t <= e + 2e-3) for e in even]
        assert numbers_shown(sampled.data) == expected == list(sampled.clip.indices)
        assert sampled.video_metadata()["frames_indices"] == [
            round(t * 1000) for t in sampled.frame_times
        ]


def test_times_begin_at_the_first_frame_shown(tmp_path):
    path = write_video(tmp_path / "late.mkv", 5, times=[3 + i * 0.1 for i in range(5)], **LOSSLESS)
    assert read(path).frame_times == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


@pytest.mark.slow
def test_whole_duration_is_sampled_not_the_first_64_seconds(tmp_path):
    """Matroska does not count its frames, so that other readers take the first 128."""
    frames = [np.full((16, 16, 3), i, np.uint8) for i in range(200)]
    path = write_video(tmp_path / "long.mkv", frames, rate=1, **LOSSLESS)
    clip = read(path, fps=2, max_frames=128)
    expected = np.linspace(0, 199, 128).astype(int).tolist()
    assert clip.data[:, 0, 0, 0].tolist() == expected and clip.frame_times[-1] == 199


def test_a_rate_above_that_of_the_file_gives_every_frame_once(tmp_path):
    clip = read(write_video(tmp_path / "a.mp4", 12), fps=100)
    assert numbers_shown(clip.data) == list(range(12))


def test_frames_are_counted_by_decoding_when_the_header_is_wrong(tmp_path):
    path = write_video(tmp_path / "a.avi", 24, codec="mjpeg", pix_fmt="yuvj420p")
    data = bytearray(path.read_bytes())
    for mark, offset in ((b"avih", 8 + 16), (b"strh", 8 + 32)):  # the two counts of frames
        start = data.index(mark) + offset
        assert int.from_bytes(data[start : start + 4], "little") == 24
        data[start : start + 4] = (41).to_bytes(4, "little")
    path.write_bytes(bytes(data))
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 41
    clip = read(path, num_frames=3)
    assert clip.clip.total_frames == 24 and numbers_shown(clip.data) == [0, 11, 23]
    assert clip.clip.duration == pytest.approx(24 / 25)


@pytest.mark.parametrize("fault", ["too many", "too few", "other times"])
def test_packets_that_promise_other_frames_are_not_believed(tmp_path, monkeypatch, fault):
    path = write_video(tmp_path / "a.mp4", 12)
    true = video._read_packets

    def wrong(file, limits):
        found = true(file, limits)
        stamps = list(found.stamps)
        if fault == "other times":
            stamps[5] += 1
        else:
            stamps = [*stamps, stamps[-1] + 512] if fault == "too many" else stamps[:-1]
        return video._Timeline(
            tuple(stamps), len(stamps), found.base, found.rate, found.stated, found.last
        )

    monkeypatch.setattr(video, "_read_packets", wrong)
    clip = read(path, num_frames=4)
    assert list(clip.clip.indices) == numbers_shown(clip.data) == [0, 3, 7, 11]
    assert clip.clip.total_frames == 12


def test_only_the_frames_kept_are_converted(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", 40)
    calls = []
    true = video._to_rgb
    monkeypatch.setattr(video, "_to_rgb", lambda *args: calls.append(1) or true(*args))
    read(path, num_frames=3)
    assert len(calls) == 3


def test_frames_and_sampling_work_together(tmp_path):
    path = write_video(tmp_path / "a.mp4", 40)
    ref = MediaRef(path, frames=(10, 30, 1), sampling=FrameSampling(num_frames=3))
    clip = read_media_file(ref, uint8=True)
    assert numbers_shown(clip.data) == [10, 19, 29] == list(clip.clip.indices)
    with pytest.raises(DataError, match=r"frames 10 to 41 .* the file has 40 frames"):
        read_media_file(ref._replace(frames=(10, 41, 1)))


def test_an_error_in_the_choice_of_frames_names_the_file_once(tmp_path):
    path = write_video(tmp_path / "a.mp4", 40)
    with pytest.raises(DataError, match="not a whole number of slices") as caught:
        read(path, frames_per_slice=2, phases_per_slice=30)
    assert str(caught.value).count("a.mp4") == 1


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("flip", [False, True])
def test_rotation_and_reflection_in_the_file_are_applied(tmp_path, degrees, flip):
    display = {"degrees": degrees, "hflip": flip}
    path = write_video(tmp_path / "r.mp4", [numbered(9)] * 2, display=display)
    expected = np.rot90(numbered(9), degrees // 90)
    expected = expected[:, ::-1] if flip else expected
    clip = read(path)
    assert clip.size == expected.shape[:2]
    assert np.abs(clip.data[0].numpy().astype(int) - expected).mean() < 8


def test_odd_sizes_and_a_single_frame(tmp_path):
    frames = [numbered(i, (47, 63)) for i in range(3)]
    odd = read(write_video(tmp_path / "o.mkv", frames, **LOSSLESS))
    assert odd.data.shape == (3, 47, 63, 3) and numbers_shown(odd.data) == [0, 1, 2]
    assert np.array_equal(odd.data, np.stack(frames))
    one = read(write_video(tmp_path / "one.mp4", 1), fps=2)
    assert len(one.data) == 1 and one.frame_times == (0.0,) and one.fps is None
    assert one.clip.duration == pytest.approx(0.04)


def test_colours_are_red_green_blue(tmp_path):
    frame = np.zeros((32, 32, 3), np.uint8)
    frame[..., 0], frame[..., 1] = 200, 90
    clip = read(write_video(tmp_path / "c.mkv", [frame], **LOSSLESS))
    assert clip.data[0, 3, 3].tolist() == [200, 90, 0]


def test_float_values_are_the_bytes_over_255(tmp_path):
    path = write_video(tmp_path / "a.mp4", 5)
    stored, shown = read(path), read(path, uint8=False)
    assert shown.data.dtype == torch.float32
    assert torch.equal(shown.data, stored.data.float() / 255)
    assert stored.content == shown.content  # answers do not depend on the data type
    assert np.array_equal(stored.still_image(), shown.data[2])
    mirrored = read_media_file(MediaRef(path, mirrored=True), uint8=True)
    assert torch.equal(mirrored.data, stored.data.flip(-2))


def test_a_format_is_known_by_its_content_not_its_name(tmp_path):
    path = write_video(tmp_path / "a.mp4", 5)
    hidden = path.rename(tmp_path / "a.dcm")
    assert len(read_media_file(MediaRef(hidden, kind="clip")).data) == 5
    cine = dataset(np.zeros((4, 8, 8), np.uint8), FrameTime=40)
    assert read(save(tmp_path / "cine.mp4", cine)).data.shape == (4, 8, 8)


def test_a_frame_of_a_video_as_an_image(tmp_path):
    path = write_video(tmp_path / "a.mkv", 9, **LOSSLESS)
    image = read_media_file(MediaRef(path, kind="image", index=7))
    assert np.array_equal(image.data * 255, numbered(7)) and image.clip is None
    with pytest.raises(DataError, match="clip or image, not as volume"):
        read_media_file(MediaRef(path, kind="volume"))


# ---- other clips ---------------------------------------------------------------------------------


def test_a_clip_as_a_list_of_images(tmp_path):
    files = [tmp_path / f"{i}.png" for i in range(9)]
    for i, file in enumerate(files):
        Image.fromarray(np.full((8, 8), STEP * i, np.uint8)).save(file)
    ref = MediaRef(files[0], frame_files=files, sampling=FrameSampling(fps=2, max_frames=5))
    clip = read_media_file(ref, uint8=True)
    assert ref.kind == "clip" and clip.data[:, 0, 0].tolist() == [0, 12, 24, 36, 48]
    assert clip.frame_times == (0, 1, 2, 3, 4) and clip.clip.fps == 2  # assumed to be 2 per second
    timed = read_media_file(ref._replace(fps=8.0), uint8=True)
    assert timed.clip.indices == (0, 8) and timed.clip.duration == 9 / 8
    untimed = read_media_file(MediaRef(files[0], frame_files=files))
    assert untimed.frame_times is None and untimed.data.shape == (9, 8, 8)
    Image.fromarray(np.zeros((8, 9, 3), np.uint8)).save(files[4])
    with pytest.raises(DataError, match=r"4\.png: this frame is 9 x 8 pixels, but .*0\.png is 8 x"):
        read_media_file(ref)
    assert "frame_files 9 (" in ref.selection and len(ref.selection) < 80


def test_a_dicom_cine_is_sampled_before_it_is_decoded(tmp_path, monkeypatch):
    stored = np.stack([np.full((8, 8), 10 * i, np.uint8) for i in range(20)])
    steady = {"FrameTime": "50", "WindowCenter": "128", "WindowWidth": "256"}
    path = save(tmp_path / "c.dcm", dataset(stored, **steady))
    clip = read(path, fps=5)
    assert clip.clip.indices == (0, 4, 9, 14, 19) and clip.clip.duration == pytest.approx(1.0)
    assert clip.frame_times == pytest.approx((0, 0.2, 0.45, 0.7, 0.95))
    assert clip.data[:, 0, 0].tolist() == [0, 40, 90, 140, 190]
    vector = ["0", *["20"] * 14, *["200"] * 5]  # 15 frames in 0.28 s, then five of 0.2 s
    del steady["FrameTime"]
    uneven = save(tmp_path / "v.dcm", dataset(stored, FrameTimeVector=vector, **steady))
    late = read(uneven, fps=5)
    assert not late.clip.constant_rate and set(late.clip.indices[2:]) <= set(range(14, 20))
    cine_rate = save(tmp_path / "r.dcm", dataset(stored, CineRate="20", **steady))
    assert read(cine_rate, fps=5).clip.indices == clip.clip.indices
    silent = save(tmp_path / "s.dcm", dataset(stored, **steady))
    with pytest.raises(DataError, match=r"s\.dcm: the file does not say when"):
        read(silent, fps=5)


def test_arrays_are_sampled_too(tmp_path):
    frames = np.stack([numbered(i, (8, 12)) for i in range(30)])
    np.save(tmp_path / "c.npy", frames)
    ref = MediaRef(tmp_path / "c.npy", kind="clip", fps=10.0, sampling=FrameSampling(fps=2))
    clip = read_media_file(ref, uint8=True)
    assert np.array_equal(clip.data, frames[[0, 5, 11, 17, 23, 29]])
    assert clip.frame_times == pytest.approx((0, 0.5, 1.1, 1.7, 2.3, 2.9))
    assert float(read_media_file(ref).data.max()) == 1.0
    with pytest.raises(DataError, match="set kind: clip"):
        read_media_file(MediaRef(tmp_path / "c.npy", sampling=FrameSampling(num_frames=2)))


def test_metadata_for_processors_of_video_models(tmp_path):
    clip = read(write_video(tmp_path / "a.mp4", 50), fps=4)
    assert clip.video_metadata() == {
        "total_num_frames": 50,
        "fps": 25.0,
        "width": 64,
        "height": 48,
        "duration": 2.0,
        "frames_indices": [0, 7, 14, 21, 28, 35, 42, 49],
    }


@pytest.mark.slow
def test_times_that_transformers_derives_from_the_metadata(tmp_path):
    from transformers.video_utils import VideoMetadata

    times = [i * 0.04 for i in range(20)] + [0.8 + 0.5 * i for i in range(10)]
    for given in (None, times):
        clip = read(write_video(tmp_path / "v.mkv", 30, times=given, **LOSSLESS), fps=2)
        metadata = VideoMetadata(**clip.video_metadata())
        assert metadata.timestamps == pytest.approx(clip.frame_times, abs=1e-3)
        rate = len(clip.data) / clip.clip.duration
        assert metadata.sampled_fps == pytest.approx(rate, rel=1e-3)


# ---- damaged files -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_a_truncated_file_is_an_error(tmp_path, name):
    path = write_video(tmp_path / name, 40, **FORMATS[name])
    whole = path.read_bytes()
    for part in (0.3, 0.6, 0.95):
        path.write_bytes(whole[: int(len(whole) * part)])
        with pytest.raises(DataError, match=rf"{name}: .*copy or download it again"):
            read(path, num_frames=2)


def test_damaged_packets_are_an_error(tmp_path):
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 255, (48, 64, 3), np.uint8) for _ in range(10)]
    path = write_video(tmp_path / "a.mp4", frames)
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat")
    middle = start + int.from_bytes(data[start - 4 : start], "big") // 2
    data[middle : middle + 200] = b"\xa5" * 200
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"a\.mp4: .*damaged"):
        read(path, num_frames=2)


def test_files_without_pictures_are_errors(tmp_path):
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("not a video " * 30)
    write_sound(tmp_path / "sound.mp4")
    write_video(tmp_path / "none.mkv", 0)
    for name, message in (
        ("empty.mp4", r"is empty \(0 bytes\)"),
        ("text.mp4", "not a video that can be decoded"),
        ("sound.mp4", "only sound; choose a file with pictures"),
        ("none.mkv", "no frames"),
        ("absent.mp4", r"cannot be opened \(No such file"),
    ):
        with pytest.raises(DataError, match=rf"{name}: .*{message}"):
            read(tmp_path / name, num_frames=2)


def test_without_pyav_the_message_says_how_to_install_it(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", 2)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match="need PyAV: type make install-vlm"):
        read(path)


def test_a_huge_video_is_refused_before_it_fills_the_memory(tmp_path):
    path = write_video(tmp_path / "a.mp4", 40)
    small = ReadLimits(max_clip_samples=5 * 48 * 64 * 3)
    sampled = MediaRef(path, sampling=FrameSampling(num_frames=5))
    assert len(read_media_file(sampled, limits=small).data) == 5
    with pytest.raises(DataError, match=r"a\.mp4: 40 frame\(s\) of 64 x 48 .* or raise ReadLimits"):
        read_media_file(MediaRef(path), limits=small)
    with pytest.raises(DataError, match=r"a\.mp4: the video has more than the limit of 39 frames"):
        read_media_file(sampled, limits=ReadLimits(max_video_frames=39))


@pytest.mark.slow
def test_memory_does_not_depend_on_the_length_of_the_clip(tmp_path):
    """A clip whose frames would take 270 MB needs no more memory than one of a tenth of them."""
    code = (
        "import resource, sys\n"
        "from xraygpt.media.base import MediaRef, read_media_file\n"
        "from xraygpt.media.frame_sampling import FrameSampling\n"
        "for path in sys.argv[1:]:\n"
        "    ref = MediaRef(path, sampling=FrameSampling(num_frames=4))\n"
        "    read_media_file(ref, uint8=True)\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)\n"
    )
    paths = []
    for count in (60, 600):
        frames = [np.full((300, 500, 3), i % 256, np.uint8) for i in range(count)]
        path = write_video(tmp_path / f"{count}.mp4", frames, options={"preset": "ultrafast"})
        paths.append(str(path))
    run = subprocess.run(
        [sys.executable, "-c", code, *paths], capture_output=True, text=True, check=True
    )
    short, long = map(int, run.stdout.split())
    assert long - short < 30  # MB


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads as Linux does")
def test_reading_leaves_no_threads_for_which_a_forked_worker_would_wait(tmp_path):
    """FFmpeg joins its threads when garbage is collected; in a forked process they do not exist."""
    frames = [np.full((300, 500, 3), i, np.uint8) for i in range(4)]
    path = write_video(tmp_path / "a.mp4", frames, display={"degrees": 90})
    gc.collect()
    gc.disable()
    try:
        before = len(list(Path("/proc/self/task").iterdir()))
        for _ in range(3):
            video.read_video(path, lambda count, *_: range(count))
        assert len(list(Path("/proc/self/task").iterdir())) == before
    finally:
        gc.enable()


# ---- references ----------------------------------------------------------------------------------


def test_references_to_clips():
    for name in ("a.mp4", "b.AVI", "c.mov", "d.mkv", "e.webm", "f.m4v", "g.gif"):
        assert MediaRef(name).kind == "clip" and MediaRef(name).selection == ""
    sampling = FrameSampling(fps=4.0, max_frames=128)
    ref = MediaRef("a.dcm", sampling=sampling)
    assert ref.kind == "clip" and pickle.loads(pickle.dumps(ref)) == ref
    assert ref.selection == "kind clip, index None, sampling fps 4.0, max_frames 128"
    assert MappedRecords([Record("s", "s", (ref,), ())])[0].media == (ref,)
    assert len({ref, ref._replace(sampling=None), MediaRef("a.dcm", sampling=sampling)}) == 2


def test_references_pickled_before_sampling_existed():
    old = ("a.png", "PA", "image", 0, None, "", None, None, False)
    assert MediaRef._make(old) == MediaRef("a.png", "PA")
    assert MediaRef("a.png", "PA").identity == list(old)  # so that digests stay the same
    with pytest.raises(TypeError):
        MediaRef._make(old[:-1])


def test_digests_and_cache_names_depend_on_the_sampling(tmp_path):
    files = [tmp_path / f"{i}.png" for i in range(3)]
    for file in files:
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(file)
    refs = [
        MediaRef(files[0], kind="clip"),
        MediaRef(files[0], sampling=FrameSampling(num_frames=2)),
        MediaRef(files[0], sampling=FrameSampling(num_frames=3)),
        MediaRef(files[0], frame_files=files),
        MediaRef(files[0], frame_files=files[:2]),
    ]
    data = [StudyDataset([Record("s", "s", (ref,), ())], read_media_file) for ref in refs]
    assert len({d.digest() for d in data}) == 5
    reader = CachedReader.__new__(CachedReader)
    reader.views = 0
    assert len({reader.name(ref, 0) for ref in refs}) == 5


def test_sampling_of_an_entry_in_a_table():
    ref = parse_media_ref({"path": "a.mp4", "sampling": {"fps": 4, "max_frames": 128}}, str)
    assert ref.sampling == FrameSampling(fps=4, max_frames=128)
    listed = parse_media_ref({"path": ["a.png", "b.png"], "fps": 5}, str)
    assert listed.frame_files == ("a.png", "b.png") and listed.file == "a.png"
    for value, message in (
        ({"frames": 4}, "unknown key 'frames' in sampling"),
        ({"fps": 4, "num_frames": 2}, "invalid sampling: num_frames: cannot be combined with fps"),
        (4, "must be a mapping"),
    ):
        with pytest.raises(RecordError, match=message):
            parse_media_ref({"path": "a.mp4", "sampling": value}, str)
    with pytest.raises(RecordError, match="empty list of paths"):
        parse_media_ref({"path": []}, str)


# ---- real clips ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.data
def test_a_real_cine_of_18_slices(real_data):
    path = real_data / "cmr" / "cmr_vl" / "Demo_Figures" / "Motion" / "motion.mp4"
    clip = read(path, fps=4, max_frames=128)
    assert clip.clip.indices == tuple(np.linspace(0, 539, 86).astype(int).tolist())
    assert clip.clip.duration == 21.6 and clip.frame_times[-1] == pytest.approx(539 / 25)
    phases = read(path, frames_per_slice=5, phases_per_slice=30)
    assert phases.clip.indices[:6] == (0, 6, 12, 18, 24, 30) and len(phases.data) == 90
    everything = read(path).data.float()
    assert torch.equal(everything[list(phases.clip.indices)], phases.data.float())
    change = (everything[1:] - everything[:-1]).abs().mean((1, 2, 3))
    borders = set(torch.topk(change, 17).indices.tolist())
    assert len(borders & set(range(29, 539, 30))) >= 12  # the slice changes every 30 frames


@pytest.mark.slow
@pytest.mark.data
def test_a_real_heartbeat_gives_different_frames(real_data):
    files = sorted((real_data / "echo" / "my_heart").glob("*.mp4"))
    assert len(files) == 9
    for path in files:
        ref = MediaRef(path, frames=(0, 24, 1), sampling=FrameSampling(fps=2, min_frames=8))
        clip = read_media_file(ref, uint8=True)
        assert len({frame.numpy().tobytes() for frame in clip.data}) == 8
        assert clip.frame_times[-1] == pytest.approx(23 / clip.clip.fps, abs=1e-3)


@pytest.mark.slow
@pytest.mark.data
def test_real_dicom_cines(real_data):
    from pydicom.data import get_testdata_file

    heart = read(real_data / "cmr" / "dicom" / "cine_16_frames.dcm", num_frames=8)
    assert heart.clip.total_frames == 16 and heart.data.shape == (8, 256, 256)
    assert heart.clip.fps == pytest.approx(1000 / 69.47, rel=1e-4)
    echo = read(get_testdata_file("examples_ybr_color.dcm"), fps=10)
    assert echo.clip.total_frames == 30 and echo.data.shape == (9, 240, 320, 3)  # 0.99999 s
    assert len({frame.numpy().tobytes() for frame in echo.data}) == 9
