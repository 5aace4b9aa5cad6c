"""Ultrasound: from clips of a scanner to de-identified clips with their depth, times and modes."""
