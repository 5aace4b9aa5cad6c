"""How a question is answered: by the language model, by the classifier, or with the reason why not.

`predict.py`, the API, the demo page and `load_model` all answer through `Answerer`, so that the
same question about the same images has one answer.
"""

from xraygpt.answering.answerer import Answerer, Prepared
from xraygpt.answering.routes import Route

__all__ = ["Answerer", "Prepared", "Route"]
