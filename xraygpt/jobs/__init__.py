"""What verbs do once their arguments are read. A verb imports its job late, as that loads torch."""
