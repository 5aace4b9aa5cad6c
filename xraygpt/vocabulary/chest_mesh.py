"""Findings from the human codes of the Indiana University collection.

A code is a heading with qualifiers after slashes, for example ``Opacity/lung/base/right`` or
``Lung/hypoinflation``. The codes describe the reports, so the findings derived here are the ground
truth for evaluating :mod:`xraygpt.vocabulary.chest_labeller`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType

_IN_LUNG = (
    r"(?!.*/(?:sternum|breast|adipose tissue|neck|mediastinum|supracardiac|heart|pleura"
    r"|[a-z]+ vertebrae|spine|humerus|shoulder|abdomen))"
)
_VERTEBRAE = r"(?:thoracic vertebrae|lumbar vertebrae|cervical vertebrae|vertebrae|spine)"

#: One pattern per finding, searched for in the lower-cased code. Definitions:
#:
#: * ``lung_opacity`` is any increased density of the lung, under any name: opacity, infiltrate,
#:   airspace disease, consolidation, density, interstitial markings. Pneumonia and atelectasis are
#:   diagnoses and do not imply it, nor do markings crowded by a shallow breath. A rounded opacity
#:   is also a ``lung_lesion``. Opacities located at ribs or clavicles are included, since these
#:   describe the projection; those at sternum, vertebrae, mediastinum and soft tissues are not.
#: * ``edema`` includes congestion and heart failure, as in CheXpert.
#: * ``cardiomegaly`` includes the borderline degree and enlarged chambers.
#: * ``calcinosis`` includes atherosclerosis, since a radiograph shows only its calcium.
#: * ``calcified_granuloma`` is any sign of healed granulomatous disease.
#: * ``fracture`` includes deformities of ribs, clavicles, vertebrae and shoulders, healed or not.
#: * ``emphysema`` includes chronic obstructive disease and bullae, ``scar`` includes fibrosis.
#: * A blunted costophrenic angle is a separate finding, not an effusion or thickened pleura.
#: * ``support_devices`` is everything man-made, including ``catheter`` and ``surgical_hardware``.
_CODES: Mapping[str, str] = {
    "enlarged_cardiomediastinum": r"^mediastinum/.*(?:prominent|enlarged)"
    r"|^cardiac shadow/.*prominent|^mass/mediastinum|^(?!calcinosis|surgical).*/paratracheal",
    "cardiomegaly": r"^cardiomegaly|^cardiac shadow/(?:.*/)?(?:enlarged|borderline|prominent)"
    r"|^heart (?:atria|ventricles)/(?:.*/)?(?:enlarged|prominent)",
    "lung_lesion": r"^(?:nodule|mass)(?!.*breast)|^cavitation|^cysts/lung"
    rf"|^(?:opacity|density){_IN_LUNG}.*/round",
    "lung_opacity": rf"^(?:opacity|density){_IN_LUNG}"
    r"|^(?:infiltrate|airspace disease|consolidation|lung diseases, interstitial)"
    r"|^(?:markings|lung|thickening)/.*(?:interstitial|irregular|reticular)"
    r"|^markings/.*(?:prominent|hilum)",
    "edema": r"^pulmonary (?:edema|congestion)|^heart failure",
    "consolidation": r"^consolidation",
    "pneumonia": r"^pneumonia",
    "atelectasis": r"^pulmonary atelectasis|^volume loss",
    "pneumothorax": r"^(?:pneumothorax|hydropneumothorax|hemopneumothorax)",
    "pleural_effusion": r"^(?:pleural effusion|hydropneumothorax|hemopneumothorax|hemothorax)",
    "pleural_other": r"^(?:thickening|cicatrix|calcinosis|deformity|opacity|density)/(?:.*/)?pleura"
    r"|^pleura/",
    "fracture": r"^fractures, bone|^deformity/(?:ribs|clavicle|humerus|shoulder|sternum|scapula|"
    + _VERTEBRAE
    + ")",
    "support_devices": r"^(?:catheters, indwelling|tube, inserted|medical device|stents"
    r"|implanted medical device|surgical instruments|sutures|spinal fusion|breast implants)",
    "hyperinflation": r"^lung/(?:.*/)?hyperdistention",
    "hypoinflation": r"^lung/(?:.*/)?hypoinflation",
    "calcified_granuloma": r"^calcified granuloma|^granuloma|^granulomatous disease",
    "calcinosis": r"^calcinosis|^atherosclerosis",
    "scoliosis": r"^scoliosis",
    "degenerative_spine": rf"^{_VERTEBRAE}/(?:.*/)?degenerative|^osteophyte|^spondylosis"
    rf"|^arthritis/(?:.*/)?{_VERTEBRAE}|^hyperostosis, diffuse",
    "catheter": r"^catheters, indwelling",
    "surgical_hardware": r"^(?:surgical instruments|sutures|spinal fusion)"
    rf"|^(?:implanted )?medical device/(?:.*/)?(?:humerus|shoulder|{_VERTEBRAE})",
    "emphysema": r"emphysema(?<!subcutaneous emphysema)(?<!subcutaneous  emphysema)"
    r"|^pulmonary disease, chronic obstructive|^blister",
    "scar": r"^cicatrix(?!.*/(?:ribs|breast))|^(?:pulmonary )?fibrosis",
    "aortic_tortuosity": r"^aorta(?:, thoracic)?/|^aortic aneurysm",
    "hiatal_hernia": r"^hernia, hiatal",
    "elevated_diaphragm": r"^diaphragm/(?:.*/)?elevated|^diaphragmatic eventration",
    "costophrenic_blunting": r"^costophrenic angle/(?:.*/)?(?:blunted|obscured)|^sulcus/.*blunted",
}

MESH_RULES: Mapping[str, re.Pattern[str]] = MappingProxyType(
    {finding: re.compile(pattern) for finding, pattern in _CODES.items()}
)

#: Codes that describe no abnormality in the patient: normality, image quality, devices.
_NOT_ABNORMAL = re.compile(
    r"^normal|^no indexing|^technical quality|^catheters, indwelling|^tube, inserted"
    r"|^(?:implanted )?medical device|^stents|^surgical instruments|^sutures|^spinal fusion"
    r"|^breast implants|^contrast media|^nipple shadow"
)


def is_coded(codes: Iterable[str]) -> bool:
    """Return whether a person coded the report.

    Args:
        codes: The codes for one report.

    Returns:
        False for a report without codes or with only "No Indexing".
    """
    return any(code.strip().lower() != "no indexing" for code in codes)


def findings_of(codes: Iterable[str]) -> frozenset[str]:
    """Convert the codes for one report to findings.

    Args:
        codes: Codes such as ``"Cardiomegaly/mild"``.

    Returns:
        The findings that are present; ``other_finding`` stands for abnormal codes without a finding
        in the vocabulary, and ``no_finding`` means that no code is abnormal.
    """
    lowered = [code.strip().lower() for code in codes]
    by_code = {code: _matching_findings(code) for code in lowered}
    abnormal = [code for code in lowered if not _NOT_ABNORMAL.search(code)]
    findings = {finding for matches in by_code.values() for finding in matches}
    if any(not by_code[code] for code in abnormal):
        findings.add("other_finding")
    if not abnormal and is_coded(lowered):
        findings.add("no_finding")
    return frozenset(findings)


def _matching_findings(code: str) -> list[str]:
    return [finding for finding, pattern in MESH_RULES.items() if pattern.search(code)]
