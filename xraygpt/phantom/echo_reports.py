"""SYNTHETIC echocardiogram reports with known traits, for tests of models that write reports.

The sentences are our own. Traits have roughly the frequencies of a hospital's laboratory and depend
on one latent variable, so that a model can learn that a low ejection fraction comes with a large
left atrium. Nothing in these reports is from a patient.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from xraygpt.common.keyed_random import keyed_random
from xraygpt.vocabulary.traits import GRADES

#: A grade, whether a trait is present, or a number; None for a number that is not reported.
Truth = str | bool | float | None

SOURCE = "SYNTHETIC echocardiogram report"

_PRESENT = {
    "pacemaker": 0.10,
    "impella": 0.02,
    "tavr": 0.06,
    "mitraclip": 0.03,
    "bicuspid_aov_morphology": 0.05,
    "dilated_ivc": 0.15,
    "elevated_left_atrial_pressure": 0.20,
}
# Cumulative probabilities of none, trace, mild, mild-moderate, moderate and moderate-severe.
_GRADED = {
    "aortic_root_dilation": (0.80, 0.80, 0.91, 0.93, 0.98, 0.985),
    "aortic_stenosis": (0.78, 0.78, 0.87, 0.89, 0.95, 0.96),
    "tricuspid_stenosis": (0.96, 0.96, 0.98, 0.985, 0.995, 0.996),
    "aortic_regurgitation": (0.55, 0.70, 0.87, 0.90, 0.97, 0.98),
    "left_atrium_dilation": (0.50, 0.50, 0.72, 0.76, 0.90, 0.92),
    "mitral_annular_calcification": (0.70, 0.70, 0.85, 0.87, 0.95, 0.96),
    "mitral_stenosis": (0.90, 0.90, 0.95, 0.96, 0.985, 0.99),
    "mitral_regurgitation": (0.25, 0.50, 0.76, 0.81, 0.93, 0.95),
    "pericardial_effusion": (0.85, 0.89, 0.95, 0.96, 0.985, 0.988),
    "right_atrium_dilation": (0.65, 0.65, 0.82, 0.85, 0.95, 0.96),
    "rv_systolic_function_depressed": (0.78, 0.78, 0.88, 0.90, 0.96, 0.97),
    "right_ventricle_dilation": (0.74, 0.74, 0.87, 0.89, 0.96, 0.97),
    "tricuspid_valve_regurgitation": (0.20, 0.48, 0.76, 0.81, 0.93, 0.95),
    "pulmonic_valve_regurgitation": (0.50, 0.72, 0.90, 0.93, 0.98, 0.985),
    "atrial_septum_hypertrophy": (0.93, 0.93, 0.97, 0.975, 0.99, 0.992),
}
_LATENT_SHARE = 0.4  # how strongly a trait follows the latent variable
_SIZES = {"mild": "small", "mild-moderate": "small to moderate", "moderate": "moderate",
          "moderate-severe": "moderate to large", "severe": "large"}  # fmt: skip

Traits = dict[str, Truth]
_Section = Callable[[Traits, random.Random], list[str]]


def synthetic_report(seed: int) -> tuple[str, Traits]:
    """Write a SYNTHETIC report of 60 to 150 words.

    Args:
        seed: Seed of the traits and of the wording.

    Returns:
        The report, and the truth of all traits of the vocabulary ``echo``: a grade of `GRADES`,
        whether a trait is present, or a number (in % or mmHg; None if it is not reported).
    """
    rng = keyed_random(str(seed), "echo report")
    traits = _sample_traits(rng)
    with_headings = rng.random() < 0.6
    parts = []
    for heading, section in _SECTIONS.items():
        sentences = section(traits, rng)
        if sentences:
            text = " ".join(sentences)
            parts.append(f"{heading}: {text}" if with_headings else text)
    return ("\n" if with_headings else " ").join(parts), traits


def _sample_traits(rng: random.Random) -> Traits:
    """Sample traits that depend on one latent variable; higher means sicker."""
    latent = rng.random()

    def rank() -> float:
        """Return a uniform number, or the latent one."""
        return latent if rng.random() < _LATENT_SHARE else rng.random()

    traits: Traits = {name: rank() > 1 - share for name, share in _PRESENT.items()}
    for name, limits in _GRADED.items():
        draw = rank()
        traits[name] = GRADES[sum(draw >= limit for limit in limits)]
    if traits["tavr"]:
        traits |= {"bicuspid_aov_morphology": False, "aortic_stenosis": "none"}
    low = 5 * round((68 - 40 * latent**2 + rng.gauss(0, 4)) / 5)
    low = min(max(low, 15), 70)
    traits["ejection_fraction"] = float(low + 2.5 if rng.random() < 0.5 else low + rng.randrange(5))
    pressure = float(round(22 + 35 * latent**2 + abs(rng.gauss(0, 6))))
    traits["pulmonary_artery_pressure_continuous"] = pressure if rng.random() < 0.8 else None
    traits["wall_motion_hypokinesis"] = low < 50 and rng.random() < 0.8
    return traits


def _words(grade: Truth) -> str:
    return str(grade).replace("-", " to ")


def _adverb(grade: Truth) -> str:
    """Return "mildly" and "mildly to moderately"."""
    return " to ".join(f"{word}ly" for word in str(grade).split("-"))


def _of(name: str, noun: str, traits: Traits, rng: random.Random) -> str:
    """Write a sentence on a valve's regurgitation or stenosis."""
    grade = traits[name]
    if grade == "none":
        return rng.choice((f"There is no {noun}.", f"No {noun} is seen."))
    words = _words(grade)
    return rng.choice(
        (f"There is {words} {noun}.", f"{words.capitalize()} {noun} is present.")
        + ((f"{noun.capitalize()} is {words}.",) if " to " not in words else ())
    )


def _size(name: str, noun: str, traits: Traits, rng: random.Random) -> str:
    grade = traits[name]
    if grade == "none":
        return rng.choice((f"The {noun} is normal in size.", f"The {noun} is not dilated."))
    word = _adverb(grade)
    return rng.choice((f"The {noun} is {word} dilated.", f"The {noun} is {word} enlarged."))


def _left_ventricle(traits: Traits, rng: random.Random) -> list[str]:
    value = traits["ejection_fraction"]
    assert isinstance(value, float)
    is_range = value % 1 != 0
    amount = f"{value - 2.5:.0f} to {value + 2.5:.0f} %" if is_range else f"{value:.0f} %"
    sentences = [
        rng.choice(
            (
                f"The left ventricular ejection fraction is {amount}.",
                f"LVEF is estimated at {amount}.",
                f"The ejection fraction by the biplane method is {amount}.",
            )
        )
    ]
    if traits["wall_motion_hypokinesis"]:
        wall = rng.choice(("inferior", "anterior", "lateral", "apical"))
        sentences.append(rng.choice((f"The {wall} wall is hypokinetic.", "Global hypokinesis.")))
    else:
        sentences.append("No wall motion abnormality is seen.")
    if traits["elevated_left_atrial_pressure"]:
        sentences.append("Left atrial pressure is elevated.")
    return sentences


def _right_heart(traits: Traits, rng: random.Random) -> list[str]:
    grade = traits["rv_systolic_function_depressed"]
    function = "normal" if grade == "none" else f"{_adverb(grade)} reduced"
    sentences = [
        _size("right_ventricle_dilation", "right ventricle", traits, rng),
        f"Right ventricular systolic function is {function}.",
    ]
    if traits["pacemaker"]:
        sentences.append(rng.choice(("A pacemaker lead is seen.", "There is a pacing wire.")))
    return sentences


def _atria(traits: Traits, rng: random.Random) -> list[str]:
    left, right = traits["left_atrium_dilation"], traits["right_atrium_dilation"]
    sentences = []
    if left == right and left != "none" and rng.random() < 0.5:
        sentences.append(f"Both atria are {_adverb(left)} dilated.")
    else:
        sentences.append(_size("left_atrium_dilation", "left atrium", traits, rng))
        sentences.append(_size("right_atrium_dilation", "right atrium", traits, rng))
    septum = traits["atrial_septum_hypertrophy"]
    if septum != "none":
        sentences.append(f"{_words(septum).capitalize()} lipomatous hypertrophy of the septum.")
    return sentences


def _mitral(traits: Traits, rng: random.Random) -> list[str]:
    sentences = [_of("mitral_regurgitation", "mitral regurgitation", traits, rng)]
    if traits["mitraclip"]:
        sentences.insert(0, "A MitraClip is in place.")
    for name, noun in (
        ("mitral_stenosis", "mitral stenosis"),
        ("mitral_annular_calcification", "mitral annular calcification"),
    ):
        if traits[name] != "none" or rng.random() < 0.3:
            sentences.append(_of(name, noun, traits, rng))
    return sentences


def _aortic(traits: Traits, rng: random.Random) -> list[str]:
    sentences = []
    if traits["tavr"]:
        sentences.append(rng.choice(("Status post TAVR.", "A transcatheter aortic valve is seen.")))
    elif traits["bicuspid_aov_morphology"]:
        sentences.append("The aortic valve is bicuspid.")
    else:
        sentences.append("The aortic valve is trileaflet.")
    if traits["impella"]:
        sentences.append("An Impella pump crosses the aortic valve.")
    sentences.append(_of("aortic_stenosis", "aortic stenosis", traits, rng))
    sentences.append(_of("aortic_regurgitation", "aortic regurgitation", traits, rng))
    return sentences


def _right_valves(traits: Traits, rng: random.Random) -> list[str]:
    sentences = [_of("tricuspid_valve_regurgitation", "tricuspid regurgitation", traits, rng)]
    if traits["tricuspid_stenosis"] != "none":
        sentences.append(_of("tricuspid_stenosis", "tricuspid stenosis", traits, rng))
    pressure = traits["pulmonary_artery_pressure_continuous"]
    if pressure is not None:
        name = rng.choice(("RVSP", "pulmonary artery systolic pressure"))
        sentences.append(f"The estimated {name} is {pressure:.0f} mmHg.")
    sentences.append(_of("pulmonic_valve_regurgitation", "pulmonic regurgitation", traits, rng))
    return sentences


def _vessels(traits: Traits, rng: random.Random) -> list[str]:
    sentences = [_size("aortic_root_dilation", "aortic root", traits, rng)]
    if traits["dilated_ivc"]:
        sentences.append("The inferior vena cava is dilated.")
    elif rng.random() < 0.5:
        sentences.append("The inferior vena cava is not dilated.")
    return sentences


def _pericardium(traits: Traits, rng: random.Random) -> list[str]:
    grade = traits["pericardial_effusion"]
    if grade == "none":
        return ["No pericardial effusion."]
    size = _SIZES.get(str(grade), str(grade))
    return [f"There is a {size} pericardial effusion."]


_SECTIONS: Mapping[str, _Section] = {
    "Left ventricle": _left_ventricle,
    "Right ventricle": _right_heart,
    "Atria": _atria,
    "Mitral valve": _mitral,
    "Aortic valve": _aortic,
    "Right-sided valves": _right_valves,
    "Vessels": _vessels,
    "Pericardium": _pericardium,
}
