"""The language: what can be asked and what is answered."""
