"""From raw reports to training texts: readers, filters, rules and checks; needs no network."""
