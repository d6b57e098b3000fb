"""Reports: a run measured and shown on a page, and studies of many runs."""
