"""Models that run as programs in environments of their own."""
