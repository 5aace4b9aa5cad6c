"""The control with shuffled images gives every sample images for which its answers are wrong."""

from __future__ import annotations

from pathlib import Path

from xraygpt.datasets import controls
from xraygpt.datasets.base import Record, StudyDataset
from xraygpt.media.base import MediaRef
from xraygpt.prompting.renderer import Turn


def dataset(*answers: tuple[str, ...]) -> StudyDataset:
    """One study per tuple, with one question for each of its answers."""
    records = []
    for number, texts in enumerate(answers):
        turns: list[Turn] = []
        for text in texts:
            turns += [{"role": "user", "text": "?"}, {"role": "assistant", "text": text}]
        media = (MediaRef(Path(f"{number}.png")),)
        name = f"s{number}"
        records.append(Record(sample_id=name, study_id=name, media=media, turns=tuple(turns)))
    return StudyDataset(records, lambda ref, *_: ref)


def files(data: StudyDataset) -> list[str]:
    return [record.media[0].file for record in data.records]


def test_samples_with_the_same_last_answer_but_other_answers_exchange_images(caplog):
    data = dataset(("yes", "no"), ("no", "no"), ("yes", "no"), ("no", "no"))
    swapped = files(controls.shuffled(data, seed=0))
    assert {swapped[0], swapped[2]} == {"1.png", "3.png"}  # for which "yes" is wrong
    assert {swapped[1], swapped[3]} == {"0.png", "2.png"}
    assert not caplog.records


def test_samples_with_the_same_answers_keep_their_images_and_a_warning_says_so(caplog):
    data = dataset(("yes", "no"), ("yes", "no"))
    controls.shuffled(data, seed=0)
    assert "2 of 2 samples got no image" in caplog.text
