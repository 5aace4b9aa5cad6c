"""Which findings a free question about a chest X-ray is about."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from xraygpt.vocabulary.chest_labeller import FINDINGS, mentions

EXAMPLES = (
    "Which findings are there?",
    "Is the heart enlarged?",
    "Is there a pleural effusion?",
    "Is there a pneumothorax?",
    "Are the lungs clear?",
    "Is there a nodule or a mass?",
    "Are there tubes, lines or devices?",
    "Is a bone broken?",
)
_LUNGS = (
    "lung_opacity", "consolidation", "pneumonia", "atelectasis", "edema", "lung_lesion",
    "pleural_effusion", "pneumothorax",
)  # fmt: skip

#: Patterns for parts of the body and everyday words, and the findings that they are about. They
#: apply only if a question names no finding itself, and the first pattern that matches counts.
_TOPICS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        r"collapse\w*": ("atelectasis", "pneumothorax"),
        r"broken|break|trauma": ("fracture",),
        r"infect\w*|infiltrat\w*|tuberculosis|tb|covid\w*": ("pneumonia", "consolidation"),
        r"fluid|water|congest\w*|wet": ("pleural_effusion", "edema"),
        r"tumou?rs?|cancer\w*|malignan\w*|metasta\w*|lesions?": ("lung_lesion",),
        r"tubes?|lines?|devices?|wires?|pacemaker|implants?|hardware|ports?|foreign": (
            "support_devices", "catheter", "surgical_hardware",
        ),
        r"surg\w*|operat\w*|clips?": ("surgical_hardware",),
        r"hearts?|cardiac|cardiothoracic": ("cardiomegaly",),
        r"mediastin\w*": ("enlarged_cardiomediastinum",),
        r"aort\w*": ("aortic_tortuosity", "calcinosis"),
        r"calcif\w*|calci\w*": ("calcified_granuloma", "calcinosis"),
        r"costophrenic|angles?|sulc\w*": ("costophrenic_blunting", "pleural_effusion"),
        r"pleura\w*": ("pleural_effusion", "pneumothorax", "pleural_other"),
        r"diaphragms?|hemidiaphragms?": ("hiatal_hernia", "hypoinflation", "hyperinflation"),
        r"inspirat\w*|breath\w*|inflat\w*|aerat\w*": ("hypoinflation", "hyperinflation"),
        r"spine|spinal|vertebra\w*|scolio\w*|curv\w*": ("degenerative_spine", "scoliosis"),
        r"ribs?|clavicles?|shoulders?": ("fracture",),
        r"bon(?:es?|y)|skelet\w*|osseous": ("fracture", "degenerative_spine", "scoliosis"),
        r"lungs?|lobes?": _LUNGS,
    }
)  # fmt: skip
#: Findings without a name in the vocabulary, although some of their words have one.
_UNKNOWN = re.compile(
    r"\b(?:free (?:intraperitoneal )?air|subcutaneous (?:air|emphysema)|pneumo(?:mediastinum"
    r"|peritoneum|pericardium)|bronchiectasis|pulmonary embol\w+|embolus|dissection)\b"
)
_IMAGE = re.compile(r"\bchest (?:x ?rays?|films?|images?|radiographs?|pictures?|stud(?:y|ies))\b")
_CLEAR_LUNGS = re.compile(r"\b(?:lungs?|lung fields?)\b.*\b(?:clear|normal|ok|okay|healthy)\b")
_COMPILED = [(re.compile(rf"\b(?:{p})\b"), names) for p, names in _TOPICS.items()]
_OVERVIEW = re.compile(
    r"\b(?:normal|abnormal\w*|findings?|wrong|see|shows?|visible|first|healthy|sick|ill|diseases?"
    r"|patholog\w*|diagnos\w*|problems?|everything|anything|important|notable|acute|serious"
    r"|describe|interpret\w*|summar\w*|unremarkable)\b"
)
_NAMES = [(name, re.compile(rf"\b{name.replace('_', ' ')}s?\b")) for name in FINDINGS[1:]]


def asked_findings(question: str) -> list[str]:
    """Return the findings that a question names or, if it names none, those of its topic.

    The result is empty if the question is about something without a name in the vocabulary.
    """
    text = _IMAGE.sub("image", " ".join(re.sub(r"[?\-_]", " ", question.lower()).split()))
    if _UNKNOWN.search(text):
        return []
    named = {mention.finding for mention in mentions(text)}
    named.update(_LUNGS if _CLEAR_LUNGS.search(text) else ())
    named |= {name for name, pattern in _NAMES if pattern.search(text)}
    named -= {"other_finding", "no_finding"}
    if not named:
        named = set(next((names for pattern, names in _COMPILED if pattern.search(text)), ()))
    return [name for name in FINDINGS if name in named]


def asks_for_overview(question: str) -> bool:
    """Return whether a question is about the image as a whole."""
    return not _UNKNOWN.search(question.lower()) and bool(_OVERVIEW.search(question.lower()))
