"""Benchmarks: what ``facelock bench`` runs. Held-out characters, both arms in one run, judged by the judge."""
