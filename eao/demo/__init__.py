"""The demo: a small real data set from pictures and speech, and the whole chain run on it."""
