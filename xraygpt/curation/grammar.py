"""Detection of sentences that have become ungrammatical because words were removed."""

from __future__ import annotations

import re

from xraygpt.vocabulary.chest_labeller import mentions

_BE = r"(?:is|are|was|were)"
_FAULTS = re.compile(
    "|".join(
        (
            # The sentence ends too early: "the fibrosis appears slightly increased, in."
            r"\b(?:in|of|from|to|by|with|at|on|for|over|versus|than|as|since|the|a|an|be|has|have|"
            r"is|are|was|were|and|or|which|that|not|significantly|slightly|mildly|moderately|most|"
            r"recommend|status|post|dr|measur(?:es|ing)|there|due|appears?|"
            r"represents?|on a)[,;]?\.?$",
            # A noun or verb is lost: "lungs have in the", "opacities are represent", "in the the".
            rf"\b{_BE} (?:represents?|{_BE}|has|have|there|since|from)\b",
            r"\b(?:has|have) (?:in|of|from|since|at|on|with|and|but|over|significantly\.)(?!\w)",
            rf"\b(?:the|a|an) (?:in|of|{_BE}|has|have|and|or|the|there|from|with|at|to|"
            r"remains?|bilaterally)\b",
            rf"\b(?:in|of|from|by|at|for|on|between|versus) (?:{_BE}|and|or|but|has|have|from|of|"
            r"partially|to)\b",
            rf"\bwith (?:{_BE}|and|has|have|of)\b|\bto (?:{_BE}|and|or|from|of|slightly)\b",
            rf"\b(?:pulmonary|hilar|mediastinal) (?:{_BE}|appears?|within|unremarkable|normal)\b",
            r"\bpulmonary and\b|^(?:normal|mild|small) and\b|\b(?:mildly|slightly) opacit",
            r"\bcostophrenic(?! (?:angle|sulc|recess|region|blunt|space|margin))",
            r"\blymph(?! (?:nodes?|adenopathy))\b|\bin position from\b|\bround over\b",
            r"\bcalcified(?: (?:hilar|mediastinal|left|right|bilateral|lung|and|paratracheal|"
            r"aortic))*\.?$|\bvisuali[sz]ed of\b|\b(?:in|of|from|to|by|with|at|for),",
            r"^(?:and|but|or|which|from|than|since|onset|of|with|is|are)\b",
        )
    ),
    re.IGNORECASE,
)
# Without one of these words, a text that names no finding makes no statement.
_STATEMENT = re.compile(
    rf"\b(?:{_BE}|has|have|had|seen|noted|appears?|remains?|demonstrates?|shows?|identified|present|"
    r"visuali[sz]ed|clear|normal|intact|unremarkable|within|no|not|without|negative|free|evidence|"
    r"midline|stable|limits|obscures?|reveals?|suggests?|projects?|overlies|terminates?|tip|post|"
    r"prominent|mild|moderate|large|small|tortuous|degenerative|chronic|old|calcified|healed)\b",
    re.IGNORECASE,
)


def is_broken(text: str) -> bool:
    """Return whether words are missing, for example because a text ends in a preposition.

    Two adjacent verbs and a text that states nothing also count. Use this only for sentences that
    words were removed from: radiologists write in note form themselves.
    """
    body = text.strip().rstrip(". ")
    if not body or _FAULTS.search(body):
        return True
    states_nothing = not _STATEMENT.search(body) or " " not in body
    return states_nothing and not mentions(text)
