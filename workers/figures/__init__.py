"""Answers as pictures: `workers/figures/F/R.py` draws the answers of F.R."""
