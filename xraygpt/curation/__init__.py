"""From raw reports to training texts: sources, rules, filters, checks. Needs no network."""
