"""Language models as judges of answers: what they are asked and what their verdicts mean."""
